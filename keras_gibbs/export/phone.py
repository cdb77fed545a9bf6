"""Time .tflite files on a phone: a folder with the files and a script for it, and a table of what `benchmark_model` printed there.

    python -m keras_gibbs.export.phone bundle timing dense.tflite sparse.tflite
    sh timing/run.sh                 # with a phone on the cable, and LiteRT's benchmark_model for it in the folder
    python -m keras_gibbs.export.phone table timing
"""

import argparse
import dataclasses
import re
import shlex
import shutil
import statistics
from pathlib import Path

from keras_gibbs.tables import render

_SCRIPT = """#!/bin/sh
# Times the files of this folder on the phone that `adb devices` lists, in turns, one thread. It needs adb, and beside this script LiteRT's benchmark_model for
# the phone: `bazel build -c opt --config=android_arm64 //tflite/tools/benchmark:benchmark_model` in a checkout of LiteRT.
# CORES=f0 sh run.sh keeps the runs on the cores of that mask; which are the fast ones differs from phone to phone.
set -eu
cd "$(dirname "$0")"
phone=/data/local/tmp/keras_gibbs
adb shell mkdir -p "$phone"
adb push benchmark_model {files} "$phone"
adb shell chmod +x "$phone/benchmark_model"
mkdir -p logs
for round in {rounds}; do
  for file in {files}; do
    echo "round $round: $file"
    adb shell ${{CORES:+taskset $CORES}} "$phone/benchmark_model" --graph="$phone/$file" --num_threads=1 --use_xnnpack=true --warmup_runs=3 --num_runs={runs} \\
      > "logs/$file.$round.log" 2>&1 || echo "  it failed: see logs/$file.$round.log"
  done
done
"""
_FILES = "files.txt"  # in the order in which they are compared, the dense one first
_NAME = re.compile(r"[A-Za-z0-9._-]+\.tflite")
_NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"
_TIMES = re.compile(rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}")
_RUNS = re.compile(rf"count=(\d+) (?:first=\S+ )?curr={_NUMBER}(?: min={_NUMBER})?")
_FAULT = re.compile(r"^.*(?:ERROR|[Ff]ailed|not found|No such file|inaccessible).*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Timings:
    """A table of times on a phone; `print` it, or read it.

    Attributes:
        rows: One dict per file: `file`, `bytes`, `rounds` (milliseconds of an average run, one a round), `ms` (their median), `least_ms` (of a single run),
            `init_ms`, `ratio` (median over the rounds of the time against the first file's) and `failure` (what was printed instead of times, or "").
    """

    rows: list[dict]

    def __str__(self) -> str:
        headings = ("bytes", "ms", "least ms", "to load, ms", "times as fast")
        columns = [("file", "left"), *((heading, "right") for heading in headings)]
        cells = []
        for row in self.rows:
            figures = ["FAILS" if row["failure"] else "", "", "", ""]
            if not row["failure"]:
                figures = [f"{row['ms']:.2f}", f"{row['least_ms']:.2f}", f"{row['init_ms']:.1f}", f"{1 / row['ratio']:.2f}" if row["ratio"] else ""]
            cells.append([row["file"], f"{row['bytes']:,}", *figures])
        notes = [f"{row['file']}: {row['failure']}" for row in self.rows if row["failure"]]
        return render("On the phone, one thread", columns, cells, notes)


def bundle(files: list, folder, *, rounds: int = 5, runs: int = 50) -> Path:
    """Copy .tflite files into a folder, with a script that times them on a phone.

    Args:
        files: Paths; the others are compared with the first, the dense one. Names of letters, digits, `.`, `_` and `-`.
        folder: Where to; it is made, and must not exist or be empty.
        rounds: How often each file is timed; they take turns.
        runs: Runs a round at least; `benchmark_model` goes on for a second.

    Returns:
        The script. It needs `adb` and, in the folder, LiteRT's `benchmark_model` for the phone; the script says where that comes from.

    Raises:
        ValueError: A file is not there, two have one name, or a name, a number or the folder is not as above.

    Reference: google-ai-edge/LiteRT, tflite/tools/benchmark/README.md.
    """
    files, folder = [Path(file) for file in files], Path(folder)
    names = [file.name for file in files]
    if not files or len(set(names)) < len(names):
        raise ValueError(f"`files` must be .tflite files of different names, at least one. Received: files={names}. Rename some.")
    for file in files:
        if not file.is_file() or not _NAME.fullmatch(file.name):
            raise ValueError(f"`files` must exist and have names of letters, digits, '.', '_', '-' that end in .tflite. Received: {str(file)!r}.")
    for name, value in (("rounds", rounds), ("runs", runs)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`folder` must be new or empty. Received: folder={str(folder)!r}. Choose another, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    (folder / _FILES).write_text("\n".join(names) + "\n")
    script = folder / "run.sh"
    listed = " ".join(map(shlex.quote, names))
    script.write_text(_SCRIPT.format(files=listed, rounds=" ".join(map(str, range(1, rounds + 1))), runs=runs))
    return script


def table(folder) -> Timings:
    """The times that the script of a `bundle` has left in its folder.

    Raises:
        ValueError: It is no such folder, or its script has not run.
    """
    folder = Path(folder)
    if not (folder / _FILES).is_file():
        raise ValueError(f"`folder` must be one that `bundle` wrote. Received: folder={str(folder)!r}.")
    rows = []
    for name in (folder / _FILES).read_text().split():
        logs = sorted((folder / "logs").glob(f"{name}.*.log"), key=lambda log: int(log.suffixes[-2][1:]))
        if not logs:
            raise ValueError(f"`folder` must hold logs of every file. Received: none of {name} in folder={str(folder)!r}. Run its run.sh first.")
        rows.append({"file": name, "bytes": (folder / name).stat().st_size, **_merged([read(log.read_text(errors="replace")) for log in logs])})
    for row in rows:
        pairs = zip(row["rounds"], rows[0]["rounds"])
        row["ratio"] = None if row["failure"] or rows[0]["failure"] else statistics.median(own / first for own, first in pairs)
    return Timings(rows)


def read(text: str) -> dict:
    """What one run of `benchmark_model` printed: `ms` (average), `least_ms`, `init_ms`, `runs` and `failure`, "" if there are times."""
    found, runs = _TIMES.search(text), _RUNS.findall(text)
    if not found or not runs:
        faults = [line.strip() for line in _FAULT.findall(text)]
        return {"failure": faults[0] if faults else "benchmark_model printed no times"}
    init, _, _, average = (float(number) / 1e3 for number in found.groups())
    count, current, least = runs[-1]  # the warm-up comes first; with one run, or all alike, only `curr` is printed
    return {"ms": average, "least_ms": float(least or current) / 1e3, "init_ms": init, "runs": int(count), "failure": ""}


def _merged(results):
    failure = next((result["failure"] for result in results if result["failure"]), "")
    if failure:
        return {"rounds": [], "ms": None, "least_ms": None, "init_ms": None, "failure": failure}
    times = [result["ms"] for result in results]
    least, load = min(result["least_ms"] for result in results), statistics.median(result["init_ms"] for result in results)
    return {"rounds": times, "ms": statistics.median(times), "least_ms": least, "init_ms": load, "failure": ""}


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m keras_gibbs.export.phone", description="Time .tflite files on a phone.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("bundle", help="a folder with the files and a script that times them")
    making.add_argument("folder", type=Path)
    making.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the dense file first")
    making.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    making.add_argument("--runs", type=int, default=50, help="a round (%(default)s)")
    commands.add_parser("table", help="a table of what the script measured").add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "bundle":
            print(f"Put LiteRT's benchmark_model into {given.folder}, then: sh {bundle(given.files, given.folder, rounds=given.rounds, runs=given.runs)}")
        else:
            print(table(given.folder))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
