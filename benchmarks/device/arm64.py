"""An ARM64 Linux with Python and LiteRT on another machine: qemu-user and what it runs, in one folder.

Nothing is installed outside that folder: apt and pip, as they are configured here, only download into it. It has three parts, and each is a folder that
gets its name when it is complete, so a set-up that was broken off goes on with the part it was at:

    qemu/      the emulator, unless `qemu-aarch64` is on the PATH already
    linux/     Python and the C and C++ libraries of this distribution, for arm64
    litert-*/  the aarch64 wheels of LiteRT, in the version installed here, and of what it needs
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

RUNNER = Path(__file__).resolve().parent / "run_tflite.py"
CPU = "cortex-a76"  # its half-precision and dot-product instructions are those of most phones since 2019
LINUX_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
QEMU_PACKAGE = "qemu-user-static"  # one that needs no libraries of the system

# The runtime reads /proc/cpuinfo, and crashes on that of another architecture.
CPUINFO = "".join(
    f"""processor\t: {core}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
    for core in range(2)
)


class SetupError(RuntimeError):
    """The machine could not be set up; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Something that runs Python with LiteRT.

    Attributes:
        command: What the command line begins with: the Python, behind its emulator if it has one.
        environment: The environment variables.
        versions: What it is made of, name -> version.
    """

    command: tuple[str, ...]
    environment: dict
    versions: dict = dataclasses.field(default_factory=dict)

    def run(self, file, inputs, runs, timeout=600.0):
        """Run a .tflite file in a process of its own.

        Args:
            file: The file.
            inputs: Arrays (samples, *shape), one for each input of the file.
            runs: Number of timed runs.
            timeout: Seconds until it is given up.

        Returns:
            `(milliseconds, outputs, failure)`: a list of times, a list of arrays and None, or None twice and what went wrong.
        """
        with tempfile.TemporaryDirectory() as folder:  # also the place where a crash would leave its core
            given, found = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
            np.savez(given, **{f"input{index}": values for index, values in enumerate(inputs)})
            command = [*self.command, str(RUNNER), str(Path(file).resolve()), str(given), str(found), "--runs", str(runs)]
            try:
                done = subprocess.run(command, env=self.environment, cwd=folder, capture_output=True, text=True, errors="replace", timeout=timeout)
            except subprocess.TimeoutExpired:
                return None, None, f"no result after {timeout:g} s"
            if not done.stdout.strip():
                return None, None, f"the process ended with status {done.returncode}: {' '.join(done.stderr.split())[-400:]}"
            answer = json.loads(done.stdout.splitlines()[-1])
            if done.returncode:
                return None, None, answer["failure"]
            with np.load(found) as held:
                return answer["milliseconds"], [held[f"output{index}"] for index in range(len(held.files))], None


def this_machine():
    """The machine that this Python runs on."""
    return Machine((sys.executable,), dict(os.environ))


def machine(root, sources=None):
    """An emulated ARM64 machine, set up first where parts of it are missing.

    Args:
        root: The folder for it.
        sources: A file of apt sources for arm64, in place of this machine's own.

    Returns:
        A `Machine`.

    Raises:
        SetupError: This machine lacks something that the set-up needs, or a download failed. A part that was not complete is not kept.
    """
    version = _litert()
    if sys.platform != "linux":
        raise SetupError("QEMU emulates single programs on Linux only: run this on Debian or Ubuntu, in a container or a virtual machine if need be.")
    if platform.machine() in ("aarch64", "arm64"):
        raise SetupError("This machine is ARM64 itself and needs no emulator: time each file with `python benchmarks/device/run_tflite.py`.")
    root = Path(root).resolve()
    if _missing(root, version):
        with _locked(root):
            _set_up(root, version, sources)
    qemu, linux = _qemu(root / "qemu"), root / "linux"
    versions = {"emulator": _output([qemu, "--version"]).splitlines()[0], "cpu": CPU, "python": _python(linux), "ai-edge-litert": version}
    return Machine(*_emulated(qemu, linux, _site(root, version)), versions)


def _set_up(root, version, sources):
    """Download and unpack the missing parts."""
    missing = _missing(root, version)
    if not missing:
        return
    _check_tools(root, missing)
    print(f"Setting up an emulated ARM64 machine in {root}; nothing is installed outside of it. It downloads:")
    for text in missing.values():
        print(f"  {text}", flush=True)
    linux = root / "linux"
    if "qemu" in missing:
        _set_up_qemu(root / "qemu")
    if "linux" in missing:
        _set_up_linux(linux, _qemu(root / "qemu"), sources)
    if not _site(root, version).exists():  # not by `missing`: its name depends on what linux/ has become
        _set_up_litert(_site(root, version), version, _qemu(root / "qemu"), linux)


def _litert():
    try:
        return importlib.metadata.version("ai-edge-litert")
    except importlib.metadata.PackageNotFoundError:
        raise SetupError("The files are also run on this machine, and LiteRT is not installed. Run `pip install ai-edge-litert`.") from None


def _missing(root, version):
    """The parts that are not there: name -> what will be downloaded."""
    parts = {}
    if _qemu(root / "qemu") is None:
        parts["qemu"] = f"the emulator: {QEMU_PACKAGE}, by apt-get (about 60 MB)"
    if not (root / "linux").exists():
        parts["linux"] = f"{', '.join(LINUX_PACKAGES)} and what they depend on, for arm64, by apt-get (about 20 MB)"
    if "linux" in parts or not _site(root, version).exists():
        parts["litert"] = f"the wheels of ai-edge-litert {version} and what it depends on, for aarch64, by pip (about 30 MB)"
    return parts


def _check_tools(root, missing):
    """Raise where the tools for the missing parts are not there, and say how to do without."""
    tools = ("apt-get", "dpkg", "dpkg-deb", "tar")
    if {"qemu", "linux"} & set(missing) and not (sys.platform == "linux" and all(map(shutil.which, tools))):
        raise SetupError(
            "The emulated ARM64 machine is set up by apt-get, on Debian or Ubuntu, and this system has none. Run this in a container with one of them, or "
            "set it up by hand: put `qemu-aarch64` (QEMU 7.2 or newer, user-mode emulation for Linux) on the PATH; unpack the arm64 packages "
            f"{', '.join(LINUX_PACKAGES)} of a distribution, with what they depend on, into {root / 'linux'}; write a /proc/cpuinfo of an ARM64 machine to "
            f"{root / 'linux' / 'proc' / 'cpuinfo'}. Folders that are there are used as they are."
        )
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        raise SetupError("The aarch64 wheels are downloaded by pip, which this Python does not have. Run `python -m ensurepip`.")


@contextlib.contextmanager
def _locked(root):
    """Of two set-ups in one folder at a time, the second waits."""
    import fcntl  # not on every system

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("w")
    except OSError as error:
        raise SetupError(f"The folder for the emulated machine cannot be written ({error}). Name another with --root.") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def whole(folder):
    """A new folder that becomes `folder` if the block ends without an error; until then there is no `folder`."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)  # of a set-up that was killed
    new.mkdir(parents=True)
    try:
        yield new
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _qemu(folder):
    """The emulator on the PATH or in `folder`, if it knows the CPU; else None."""
    own = [str(path) for path in sorted(folder.glob("usr/bin/qemu-aarch64*"))]
    for path in (shutil.which("qemu-aarch64"), shutil.which("qemu-aarch64-static"), *own):
        if path and CPU in _output([path, "-cpu", "help"]):
            return path
    return None


def _output(command):
    """What a command prints; nothing if it does not run."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ""


def _emulated(qemu, linux, site):
    """Command and environment of the emulated Python. The variables of this process stay out: they are for another architecture."""
    environment = {"PYTHONHOME": str(linux / "usr"), "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    return (qemu, "-cpu", CPU, "-L", str(linux), str(linux / "usr/bin/python3")), environment


def _python(linux):
    """Version of the emulated Python, as "3.11"."""
    return os.readlink(linux / "usr/bin/python3").removeprefix("python")


def _site(root, version):
    return root / f"litert-{version}-python{_python(root / 'linux')}"


def _try(what, machine):
    """Run a line of the emulated Python, to see that it works."""
    command, environment = machine
    done = subprocess.run([*command, "-c", what], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"The emulated machine was set up but does not work: `{what}` ended with status {done.returncode}.\n{done.stderr[-2000:]}")


def _download_packages(names, architecture, folder, sources=None):
    """Download Debian packages and all they depend on, with the apt sources of this machine, into `folder`; nothing outside of it changes."""
    for inner in ("state/lists/partial", "cache/archives/partial"):
        (folder / inner).mkdir(parents=True)
    (folder / "status").touch()  # the list of installed packages: none, so that every dependency is downloaded
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",  # apt's own user may not be able to write here
        "Acquire::Languages": "none",
    }
    if sources is not None:
        settings |= {"Dir::Etc::sourcelist": Path(sources).resolve(), "Dir::Etc::sourceparts": "-"}
    # The system's settings (proxies and the like) hold, but not what it does after an update.
    lines = ["#clear APT::Architectures;", "#clear APT::Update;", *(f'{name} "{value}";' for name, value in settings.items())]
    (folder / "apt.conf").write_text("\n".join(lines) + "\n")
    apt = ["apt-get", "-q", "-y", "-c", str(folder / "apt.conf")]
    # A source without this architecture fails the update and yet may not be needed: what counts is whether the packages come.
    messages = ""
    for action in (["update"], ["install", "--download-only", *names]):
        done = subprocess.run([*apt, *action], capture_output=True, text=True)
        messages += done.stderr
    if done.returncode:
        raise SetupError(
            f"apt-get could not download {', '.join(names)} for {architecture}. If the sources of this machine do not carry that architecture (Ubuntu keeps "
            f"arm64 in an archive of its own, ports), write ones that do into a file and pass it with --sources FILE. Its messages:\n{messages[-2000:]}"
        )
    return sorted((folder / "cache/archives").glob("*.deb"))


def _unpack(package, folder, only=()):
    """Unpack a Debian package, or those files of it that match `only`."""
    patterns = ["--wildcards", "--no-anchored", *only] if only else []
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as archive:
        tar = ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", str(folder), "-f", "-", *patterns]
        done = subprocess.run(tar, stdin=archive.stdout, capture_output=True, text=True)
    if not only and (done.returncode or archive.returncode):  # tar also fails where nothing matches
        raise SetupError(f"{package.name} could not be unpacked. {done.stderr[-2000:]}")


def _set_up_qemu(folder):
    architecture = _output(["dpkg", "--print-architecture"]).strip()
    with whole(folder) as new:
        for package in _download_packages([QEMU_PACKAGE], architecture, new / "apt"):
            _unpack(package, new, only=["qemu-aarch64", "qemu-aarch64-static"])
        shutil.rmtree(new / "apt")
        if _qemu(new) is None:
            raise SetupError(f"The QEMU of this distribution does not emulate a {CPU}: 7.2 and newer do. Put such a `qemu-aarch64` on the PATH.")


def _set_up_linux(folder, qemu, sources):
    with whole(folder) as new:
        packages = _download_packages(LINUX_PACKAGES, "arm64", new / "apt", sources)
        for name in ("bin", "lib", "sbin"):  # packages name either place; on Debian and Ubuntu they are the same
            (new / "usr" / name).mkdir(parents=True)
            (new / name).symlink_to(f"usr/{name}")
        for package in packages:
            _unpack(package, new)
        shutil.rmtree(new / "apt")
        (new / "proc").mkdir()
        (new / "proc/cpuinfo").write_text(CPUINFO)
        _try("import ctypes, json, zipfile", _emulated(qemu, new, ""))


def _set_up_litert(folder, version, qemu, linux):
    python = _python(linux)
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 36))]
    with whole(folder) as new:
        wheels = new / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", python, "--dest", str(wheels)]
        command += [part for name in platforms for part in ("--platform", name)]
        done = subprocess.run([*command, f"ai-edge-litert=={version}"], capture_output=True, text=True)
        if done.returncode:
            raise SetupError(f"pip could not download ai-edge-litert {version} for aarch64 and Python {python}. Its messages:\n{done.stderr[-2000:]}")
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(new)
        shutil.rmtree(wheels)
        _try("import numpy, ai_edge_litert.interpreter", _emulated(qemu, linux, new))
