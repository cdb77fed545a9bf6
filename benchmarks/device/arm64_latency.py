"""Whether a phone's processor runs a .tflite file, and how much faster a sparse one is there, without a phone.

    python benchmarks/device/arm64_latency.py dense.tflite sparse.tflite     # ratios to the first file
    python benchmarks/device/arm64_latency.py --mobilenet                    # a MobileNetV1, 90 % sparse, with four heads: about two minutes

LiteRT runs float convolutions by XNNPACK, which has sparse kernels on ARM64 and none on an x86 processor with AVX: there a sparse file takes as long as
a dense one, and a file that runs there may fail on ARM64. So each file is run twice on the same inputs: on this machine, and by the aarch64 LiteRT
under qemu-user. The emulated machine is set up in a folder the first time (see arm64.py), on Debian or Ubuntu; no root is needed.

Emulated milliseconds are not a phone's, and an emulator weighs instructions in its own way: what they tell is whether the sparse kernels run, and
roughly what that saves. One thread, CPU time; the files are timed in turns, each in a process of its own, and a ratio is the median over the rounds.
"""

import argparse
import dataclasses
import platform
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common.machine import environment
from benchmarks.common.results import BUILD, RESULTS, append
from benchmarks.device import arm64
from keras_gibbs.tables import render

SEED = 1
SPARSITY = 0.9
SAMPLES = 4
TOLERANCE = 1e-4  # between the predictions of two processors
FASTER = 3.0  # what 90 % zeros must bring, in times as fast as the dense file


@dataclasses.dataclass
class File:
    """A .tflite file and what was found out about it.

    Attributes:
        name: Its name in the table.
        path: Where it is.
        dense: Name of the file that it is compared with.
        faster: How many times as fast as that one it must be, or None where it is for information.
        rounds: The emulated milliseconds of its runs, a list a round.
        failure: What the ARM64 runtime had to say, if it did not run.
        host_ms: Median milliseconds on this machine, or None if it does not run here.
        host_failure: What the runtime of this machine had to say.
        differences: Largest difference between the outputs on ARM64 and what is wanted, of every round; a share of the largest output where `wanted` is given.
        host_difference: The same on this machine; None where nothing is wanted.
        largest_output: The largest output on this machine, to judge the difference by.
        wanted: What it should predict, a list of arrays (samples, *shape); None for what it predicts on this machine.
    """

    name: str
    path: Path
    dense: str
    faster: float | None = None
    rounds: list[list[float]] = dataclasses.field(default_factory=list)
    failure: str | None = None
    host_ms: float | None = None
    host_failure: str | None = None
    differences: list[float] = dataclasses.field(default_factory=list)
    host_difference: float | None = None
    largest_output: float | None = None
    wanted: list[np.ndarray] | None = dataclasses.field(default=None, repr=False)

    @property
    def ms(self):
        return None if self.failure else statistics.median(time for times in self.rounds for time in times)

    @property
    def difference(self):
        return max(self.differences, default=None)

    @property
    def equal(self):
        return self.difference is not None and max(self.difference, self.host_difference or 0.0) <= TOLERANCE

    def ratio(self, dense):
        """Median over the rounds of the time against the time of `dense`, or None if one of them did not run."""
        if self.failure or dense.failure:
            return None
        return statistics.median(statistics.median(own) / statistics.median(other) for own, other in zip(self.rounds, dense.rounds, strict=True))

    def met(self, dense):
        if self.faster is None:
            return None
        ratio = self.ratio(dense)
        return ratio is not None and 1 / ratio >= self.faster and self.equal

    def as_dict(self, dense):
        kept = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("path", "wanted")}
        found = {"ms": self.ms, "ratio": self.ratio(dense), "difference": self.difference, "equal": self.equal, "met": self.met(dense)}
        return kept | {"raw_bytes": self.path.stat().st_size} | found


def random_inputs(path, seed=SEED):
    """Inputs for a file: for each of its inputs an array (samples, *shape), open dimensions being 1; small integers where it takes integers.

    Raises:
        ValueError: It is no .tflite file, or takes strings.
    """
    from ai_edge_litert.interpreter import Interpreter

    rng = np.random.default_rng(seed)
    inputs = []
    for place in Interpreter(str(path)).get_input_details():
        shape, dtype = (SAMPLES, *place["shape"]), np.dtype(place["dtype"])
        if dtype.kind not in "fiub":
            raise ValueError(f"no random inputs of type {dtype.name}")
        wide = dtype.itemsize == 1 and dtype.kind in "iu"  # quantised; wider integers are mostly indices, of which 0 and 1 are valid everywhere
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max + 1) if wide else (0, 2)
        inputs.append((rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(low, high, shape)).astype(dtype))
    return inputs


def largest_difference(outputs, expected):
    """Largest absolute difference between two lists of arrays; infinite where only one of two values is a number."""
    largest = 0.0
    for one, other in zip(outputs, expected, strict=True):
        one, other = one.astype("float64").ravel(), other.astype("float64").ravel()
        unlike = ~((one == other) | (np.isnan(one) & np.isnan(other)))
        gaps = np.nan_to_num(np.abs(one[unlike] - other[unlike]), nan=np.inf)
        largest = max(largest, float(np.max(gaps, initial=0.0)))
    return largest


def measure(files, machine, host, runs, rounds, timeout=600.0, inputs=None):
    """Run every file on both machines; what is found goes into the files.

    Args:
        files: List of `File`.
        machine: The ARM64 machine.
        host: This machine.
        runs: Timed runs a round.
        rounds: How often each file is timed on `machine`.
        timeout: Seconds a process may take.
        inputs: Arrays (samples, *shape), one for each input, that all files are run on; random ones if None.
    """
    inputs = {file.name: inputs or random_inputs(file.path) for file in files}
    expected, scales = {}, {}
    for file in files:
        times, outputs, file.host_failure = host.run(file.path, inputs[file.name], runs, timeout)
        expected[file.name], scales[file.name] = file.wanted or outputs, 1.0
        if times:
            file.host_ms = statistics.median(times)
            file.largest_output = max(float(np.max(np.abs(values), initial=0)) for values in outputs)
        if file.wanted:
            scales[file.name] = max(float(np.max(np.abs(values))) for values in file.wanted)
            file.host_difference = largest_difference(outputs, file.wanted) / scales[file.name] if times else None
    for number in range(rounds):
        print(f"Round {number + 1} of {rounds} on ARM64 ...", flush=True)
        turn = number % len(files)
        for file in files[turn:] + files[:turn]:
            if file.failure:
                continue
            times, outputs, file.failure = machine.run(file.path, inputs[file.name], runs, timeout)
            if times:
                file.rounds.append(times)
                if expected[file.name] is not None:
                    file.differences.append(largest_difference(outputs, expected[file.name]) / scales[file.name])


def mobilenet_files(folder):
    """Write a MobileNetV1 whose 1x1 convolutions are 90 % zeros, with each of its heads, dense and sparse.

    The BatchNorm statistics are those of noise: an untrained network without them has outputs near 0, which would agree whatever they are.
    """
    import keras

    import keras_gibbs as kg
    from benchmarks.common import networks

    files = []
    for head in networks.HEADS:
        keras.utils.set_random_seed(SEED)
        pruned = kg.prune(networks.mobilenet(head=head), kg.Magnitude(SPARSITY), where=networks.prunable, seed=SEED)
        model = kg.strip_pruning(pruned)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        model(np.random.default_rng(SEED).standard_normal((32, *model.input_shape[1:])).astype("float32"), training=True)
        dense = f"{head} head, dense"
        for encoding in ("dense", "sparse"):
            path = folder / f"{head}_{encoding}.tflite"
            kg.export_tflite(model, path, encoding=encoding)
            files.append(File(f"{head} head, {encoding}", path, dense, FASTER if (head, encoding) == ("dense", "sparse") else None))
    return files


def show(files, title):
    """Print the table, and below it why files did not run."""
    dense = {file.name: file for file in files}
    headings = ("bytes", "on ARM64", "emulated ms", "ratio to dense", "times as fast", f"{platform.machine()} ms", "difference", "must be", "met")
    cells, notes = [], []
    for file in files:
        ratio = file.ratio(dense[file.dense])
        figures = [
            f"{file.path.stat().st_size:,}",
            "FAILS" if file.failure else "runs",
            "" if file.failure else f"{file.ms:.1f}",
            "" if ratio is None else f"{ratio:.3f}",
            "" if ratio is None else f"{1 / ratio:.2f}",
            "fails" if file.host_ms is None else f"{file.host_ms:.2f}",
            "" if file.difference is None else f"{file.difference:.1e}" + ("" if file.equal else " (!)"),
            "" if file.faster is None else f">= {file.faster:g}",
            {None: "", True: "yes", False: "NO"}[file.met(dense[file.dense])],
        ]
        cells.append([file.name, *figures])
        for where, failure in (("ARM64", file.failure), (platform.machine(), file.host_failure)):
            if failure:
                notes.append(f"{file.name} fails on {where}: {failure}")
    notes.append(f"Difference: the largest between the predictions of the two machines on {SAMPLES} random inputs; (!) marks one above {TOLERANCE:g}.")
    print(render(title, [("file", "left"), *((heading, "right") for heading in headings)], cells, notes))


def add_machine_arguments(parser):
    """The arguments of a script that say where the emulated machine is."""
    parser.add_argument("--root", type=Path, default=BUILD / "arm64", help="folder of the emulated machine (build/arm64)")
    parser.add_argument("--sources", type=Path, metavar="FILE", help="apt sources that carry arm64, if those of this machine do not")


def machine_of(given):
    """The emulated machine that the arguments of a script name, set up first where parts of it are missing; the script ends where it cannot be."""
    try:
        return arm64.machine(given.root, given.sources)
    except arm64.SetupError as error:
        raise SystemExit(str(error)) from error


def parse(arguments=None):
    """The command line, checked."""
    parser = argparse.ArgumentParser(description="Run and time .tflite files on an emulated ARM64 machine.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=".tflite files")
    parser.add_argument("--dense", type=Path, metavar="FILE", help="which of the files the others are compared with (the first)")
    parser.add_argument("--mobilenet", action="store_true", help="write and run the files of a sparse MobileNetV1 with four heads")
    parser.add_argument("--runs", type=int, default=10, help="timed runs of a file a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a file may take a round (%(default)s)")
    add_machine_arguments(parser)
    parser.add_argument("--out", type=Path, help="the file of results (arm64_latency.jsonl in build/; in benchmarks/results/ with --mobilenet)")
    given = parser.parse_args(arguments)
    if given.mobilenet == bool(given.files):
        parser.error("name .tflite files, or pass --mobilenet to have some made.")
    if given.mobilenet and given.dense:
        parser.error("--dense goes with files of your own.")
    if given.dense is not None and given.dense not in given.files:
        parser.error(f"--dense must be one of the files. Received: --dense {given.dense}.")
    for name in ("runs", "rounds", "timeout"):
        if getattr(given, name) <= 0:
            parser.error(f"--{name} must be positive. Received: --{name} {getattr(given, name)}.")
    if len(set(given.files)) < len(given.files):
        parser.error("every file may be named once.")
    for path in [*given.files, *([given.sources] if given.sources else [])]:
        if not path.is_file():
            parser.error(f"there is no file {path}.")
    for path in given.files:
        try:
            random_inputs(path)
        except ImportError:
            break  # what is missing is said when the machine is set up
        except (ValueError, RuntimeError) as error:
            parser.error(f"{path} cannot be read as a .tflite file: {error}")
    given.out = given.out or (RESULTS if given.mobilenet else BUILD) / "arm64_latency.jsonl"
    return given


def main(arguments=None):
    given = parse(arguments)
    machine = machine_of(given)
    if given.mobilenet:
        print("Writing the files of the MobileNet ...", flush=True)
        files = mobilenet_files(BUILD / "mobilenet")
    else:
        dense = str(given.dense or given.files[0])
        files = [File(str(path), path, dense) for path in given.files]
    measure(files, machine, arm64.this_machine(), given.runs, given.rounds, given.timeout)
    by_name = {file.name: file for file in files}
    results = {
        "benchmark": "arm64_latency",
        "environment": environment(("keras_gibbs", "keras", "tensorflow", "numpy", "ai-edge-litert")),
        "arm64": machine.versions,
        "settings": {"seed": SEED, "samples": SAMPLES, "runs": given.runs, "rounds": given.rounds, "threads": 1, "clock": "CPU time"},
        "rows": [file.as_dict(by_name[file.dense]) for file in files],
    }
    append(given.out, results)
    show(files, f"On an emulated {machine.versions['cpu']}, LiteRT {machine.versions['ai-edge-litert']}, {machine.versions['emulator']}, one thread")
    print(f"Written: {given.out}")
    if any(file.met(by_name[file.dense]) is False or (given.files and file.failure) for file in files):
        sys.exit(1)


if __name__ == "__main__":
    main()
