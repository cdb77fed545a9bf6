"""Train variants of a network on the same terms, and keep every result.

    python benchmarks/compare.py --budget cpu                   # the comparison with TF-MOT, most telling runs first; two cores, many hours
    python benchmarks/compare.py --budget smoke                 # a look, about a minute; its results are worth nothing
    python benchmarks/compare.py --budget full                  # 200 epochs, for a GPU; KERAS_BACKEND=jax serves one without TensorFlow
    python benchmarks/compare.py resnet8 --only tfmot-98 gibbs-98 --seeds 0 1 2
    python benchmarks/compare.py extraction                     # all variants of a suite, seeds 0 and 1
    python benchmarks/report.py resnet8                         # tables and plots, at any time

Every finished run is one JSON file in benchmarks/results/<suite>/; a run whose file is there is not repeated, and Ctrl-C keeps what is finished and goes on
from the last epoch of what is not (a run of TF-MOT begins again). Seeds are paired: one seed is one initialization and one order of the batches for all
variants. Test images are looked at once, after the last epoch, with the stripped model and its .tflite files.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import time
from pathlib import Path

import data
import keras
from budgets import BUDGETS, Run
from experiment import train
from gpu import gpus
from step_cost import RESULTS, environment, write
from suites import SUITES
from train_tfmot import TFMOT, obstacle

TRIALS = RESULTS.parent.parent / "build"


def load_images(suite, folder=None):
    """Training, validation and test images of a suite."""
    x, y = data.load(suite.dataset, "train", folder)
    (x, y), (x_val, y_val) = data.holdout(x, y, suite.validation)
    return [(a[: suite.limit], b[: suite.limit]) for a, b in ((x, y), (x_val, y_val), data.load(suite.dataset, "test", folder))]


def why_not(run, out):
    """Why a run cannot be made now, or None."""
    if missing := [need for need in run.variant.needs if not run.file(out, need).exists()]:
        return f"it follows {missing}, which is not there"
    return obstacle() if isinstance(run.variant.method, TFMOT) else None


def perform(runs, out, load):
    """Every run whose result is not there yet.

    Args:
        runs: List of `Run`.
        out: The folder of results.
        load: Function of a `Suite` to its images.

    Returns:
        How many were made.
    """
    pending, made = [run for run in runs if not run.file(out).exists()], 0
    taken = {folder: _seconds(out, folder) for folder in {run.folder for run in pending}}
    for number, run in enumerate(pending, 1):
        if reason := why_not(run, out):
            print(f"Left out: {run.folder}, {run.variant.name}, seed {run.seed}: {reason}.", flush=True)
            continue
        print(f"Run {number} of {len(pending)}: {run.folder}, {run.variant.name}, seed {run.seed}{_left(pending[number - 1 :], taken)}", flush=True)
        start, kept = time.perf_counter(), run.file(out).with_suffix(".resume")
        result = train(run.suite, run.variant, run.seed, {need: read(run.file(out, need)) for need in run.variant.needs}, load(run.suite), kept)
        taken[run.folder].append(time.perf_counter() - start)
        name = {"suite": run.folder, "variant": run.variant.name, "family": run.variant.family, "level": run.variant.level, "seed": run.seed}
        write(run.file(out), name | {"environment": environment() | {"gpus": gpus()}, "run_seconds": round(taken[run.folder][-1], 1), **result})
        shutil.rmtree(kept, ignore_errors=True)
        keras.backend.clear_session()
        made += 1
    return made


def _seconds(out, folder):
    """How long the finished runs of a folder took."""
    results = [read(file) for file in (Path(out) / folder).glob("*-seed*.json")]
    return [result.get("run_seconds", result["seconds"]) for result in results]


def _left(pending, taken):
    """About how long these runs will take, by those of the same suite, or else of all; nothing where none is finished."""
    known = [seconds for folder in taken.values() for seconds in folder]
    if not known:
        return ""
    minutes = sum(statistics.fmean(taken[run.folder] or known) for run in pending) / 60
    return f"; about {minutes // 60:.0f} h {minutes % 60:.0f} min left in all"


def read(file):
    return json.loads(Path(file).read_text())


def chosen(arguments, parser):
    """The runs that the command line asks for."""
    if arguments.budget:
        if arguments.suite or arguments.seeds or arguments.only or arguments.dataset:
            parser.error("a budget says by itself which suites, variants and seeds are run. Leave them out, or leave out --budget.")
        return list(BUDGETS[arguments.budget].runs())
    if not arguments.suite:
        parser.error(f"name a suite ({', '.join(SUITES)}), or a --budget ({', '.join(BUDGETS)})")
    name, suite = arguments.suite, SUITES[arguments.suite]
    known = [variant.name for variant in suite.variants]
    if unknown := set(arguments.only or ()) - set(known):
        parser.error(f"unknown variants {sorted(unknown)}; {name} has {', '.join(known)}")
    if arguments.dataset:
        name, suite = f"{name}-{arguments.dataset}", dataclasses.replace(suite, dataset=arguments.dataset)
    variants = [suite.variant(one) for one in known if not arguments.only or one in arguments.only]
    return [Run(name, suite, variant, seed) for seed in arguments.seeds or (0, 1) for variant in variants]


def main():
    parser = argparse.ArgumentParser(description="Train variants of a network on the same terms and keep every result.")
    parser.add_argument("suite", nargs="?", choices=SUITES, metavar="suite", help=", ".join(SUITES))
    parser.add_argument("--budget", choices=BUDGETS, help="a prepared list of runs, in place of a suite")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 and 1 if not given")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="some of the suite's variants")
    parser.add_argument("--dataset", choices=data.DATASETS, help="another data set than the suite's; results go to <suite>-<dataset>")
    parser.add_argument("--data", type=Path, help="a folder of .npz parts instead of tensorflow-datasets")
    parser.add_argument("--out", type=Path, help=f"the folder of results ({RESULTS}; for --budget smoke {TRIALS})")
    arguments = parser.parse_args()
    runs, images = chosen(arguments, parser), {}
    out = arguments.out or (TRIALS if arguments.budget == "smoke" else RESULTS)

    def load(suite):
        key = (suite.dataset, suite.validation, suite.limit)
        if key not in images:
            images.clear()  # one data set at a time
            images[key] = load_images(suite, arguments.data)
        return images[key]

    try:
        made = perform(runs, out, load)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. Finished runs are kept, and the same command goes on from the last epoch of this one.") from None
    folders = " ".join(dict.fromkeys(run.folder for run in runs))
    print(f"{made} runs made; results in {out}. Tables and plots: python benchmarks/report.py {folders}{f' --results {out}' if out != RESULTS else ''}")


if __name__ == "__main__":
    main()
