"""Train variants of a network on the same terms, and keep every result.

    python benchmarks/accuracy/compare.py --budget cpu                   # the comparison with TF-MOT, most telling runs first; two cores, many hours
    python benchmarks/accuracy/compare.py --budget long                  # long training, few images, trained networks: does the noise pay?
    python benchmarks/accuracy/compare.py --budget long --list           # only say which runs these are, and how long they take
    python benchmarks/accuracy/compare.py --budget survey                # the methods of the survey's frame at 90 and 95 %, seed 0; about two hours of one core
    python benchmarks/accuracy/compare.py --budget smoke                 # a look, about a minute; its results are worth nothing
    python benchmarks/accuracy/compare.py --budget full                  # 200 epochs, for a GPU; KERAS_BACKEND=jax serves one without TensorFlow
    python benchmarks/accuracy/compare.py resnet8 --only tfmot-98 gibbs-98 --seeds 0 1 2
    python benchmarks/accuracy/compare.py extraction                     # all variants of a suite, seeds 0 and 1
    python benchmarks/accuracy/report.py resnet8                         # tables and plots, at any time

Every finished run is a line in benchmarks/results/<suite>.jsonl. A run whose line is there is not repeated, and Ctrl-C keeps what is finished and goes on
from the last epoch of what is not (a run of TF-MOT or of lottery tickets begins again). The same command may be given twice at the same time: each process
takes the next run that the other has not. To compute on one core, set TF_NUM_INTRAOP_THREADS=1 and TF_NUM_INTEROP_THREADS=1.

Seeds are paired: one seed is one initialization and one order of the batches for all variants. Test images are looked at once, after the last epoch, with the
stripped model and its .tflite files.
"""

import argparse
import contextlib
import dataclasses
import shutil
import statistics
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.budgets import BUDGETS
from benchmarks.accuracy.experiment import train
from benchmarks.accuracy.runs import Run
from benchmarks.accuracy.suites import SUITES
from benchmarks.accuracy.tables import finished, markdown
from benchmarks.accuracy.train_tfmot import TFMOT, named_weights, obstacle
from benchmarks.common import data
from benchmarks.common.machine import commit, environment, gpus
from benchmarks.common.results import BUILD, RESULTS, append, lock


def load_images(suite, folder=None):
    """Training, validation and test images of a suite."""
    x, y = data.load(suite.dataset, "train", folder)
    (x, y), validation = data.holdout(x, y, suite.validation)
    splits = (x[: suite.images], y[: suite.images]), validation, data.load(suite.dataset, "test", folder)
    return [(a[: suite.limit], b[: suite.limit]) for a, b in splits]


def is_finished(run, out):
    """Whether there is nothing to be done for a run."""
    weights = run.weights(out)
    return run.seed in finished(run.file(out)).get(run.variant.name, {}) and (weights is None or weights.exists())


def why_not(run, out):
    """Why a run cannot be made now, or None."""
    known = finished(run.file(out))
    if missing := [need for need in run.variant.needs if run.seed not in known.get(need, {})]:
        return f"it follows {missing}, which is not there"
    if run.suite.start and not run.start(out).exists():
        return f"it starts from the trained network of `compare.py {run.suite.start} --only dense --seeds {run.seed}`, which is not there"
    return obstacle() if isinstance(run.variant.method, TFMOT) else None


def perform(runs, out, load):
    """Every run whose result is not there yet and that no other process is at.

    Args:
        runs: List of `Run`.
        out: The folder of results.
        load: Function of a `Suite` to its images.

    Returns:
        How many were made.
    """
    pending, made = [run for run in runs if not is_finished(run, out)], 0
    for number, run in enumerate(pending, 1):
        name = f"{run.name}, {run.variant.name}, seed {run.seed}"
        if reason := why_not(run, out):
            print(f"Left out: {name}: {reason}.", flush=True)
            continue
        with taken(run, out) as mine:
            if not mine:
                print(f"Left to another process: {name}.", flush=True)
                continue
            print(f"Run {number} of {len(pending)}: {name}{_left(pending[number - 1 :], out)}", flush=True)
            make(run, out, load(run.suite))
        keras.backend.clear_session()
        made += 1
    return made


@contextlib.contextmanager
def taken(run, out):
    """Take a run from the other processes; False where one of them has it, or had it before."""
    folder = run.unfinished(out)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, wait=False) as mine:
        done = mine and is_finished(run, out)
        yield mine and not done
        if mine and is_finished(run, out):
            shutil.rmtree(folder)


def make(run, out, images):
    """Train one run and write down what came of it."""
    began, known = time.perf_counter(), finished(run.file(out))
    earlier = {need: known[need][run.seed] for need in run.variant.needs}
    start = dict(np.load(run.start(out))) if run.suite.start else None
    result, final = train(run.suite, run.variant, run.seed, earlier, images, run.unfinished(out), start)
    if weights := run.weights(out):
        weights.parent.mkdir(parents=True, exist_ok=True)
        np.savez(run.unfinished(out) / "final.npz", **named_weights(final))
        (run.unfinished(out) / "final.npz").replace(weights)
    name = {"suite": run.name, "variant": run.variant.name, "family": run.variant.family, "level": run.variant.level, "seed": run.seed}
    measured = {"environment": environment() | {"gpus": gpus()}, "run_seconds": round(time.perf_counter() - began, 1)}
    append(run.file(out), name | measured | result)


def _left(pending, out):
    """About how long these runs will take, by those of the same suite, or else of all; nothing where none is finished."""
    files = {run.name: run.file(out) for run in pending}
    seconds = {name: [one.get("run_seconds", one["seconds"]) for runs in finished(file).values() for one in runs.values()] for name, file in files.items()}
    known = [run for suite in seconds.values() for run in suite]
    if not known:
        return ""
    minutes = sum(statistics.fmean(seconds[run.name] or known) for run in pending) / 60
    return f"; about {minutes // 60:.0f} h {minutes % 60:.0f} min left in all"


def chosen(arguments, parser):
    """The runs that the command line asks for."""
    if arguments.budget:
        if arguments.suite or arguments.seeds or arguments.only or arguments.dataset:
            parser.error("a budget says by itself which suites, variants and seeds are run. Leave them out, or leave out --budget.")
        return list(BUDGETS[arguments.budget].runs())
    if arguments.list:
        parser.error("--list goes with a --budget")
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
    parser.add_argument("--list", action="store_true", help="print the runs of the budget as a Markdown table, and train nothing")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 and 1 if not given")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="some of the suite's variants")
    parser.add_argument("--dataset", choices=data.DATASETS, help="another data set than the suite's; results go to <suite>-<dataset>.jsonl")
    parser.add_argument("--data", type=Path, help="a folder of .npz parts instead of tensorflow-datasets")
    parser.add_argument("--out", type=Path, help=f"the folder of results ({RESULTS}; for --budget smoke {BUILD})")
    arguments = parser.parse_args()
    runs, images = chosen(arguments, parser), {}
    if arguments.list:
        print(markdown(BUDGETS[arguments.budget].plan()))
        return
    out = arguments.out or (BUILD if arguments.budget == "smoke" else RESULTS)

    def load(suite):
        key = (suite.dataset, suite.validation, suite.images, suite.limit)
        if key not in images:
            images.clear()  # one data set at a time
            images[key] = load_images(suite, arguments.data)
        return images[key]

    commit()  # of the code that is running, whatever is checked out meanwhile
    try:
        made = perform(runs, out, load)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. Finished runs are kept, and the same command goes on from the last epoch of this one.") from None
    names = " ".join(dict.fromkeys(run.name for run in runs))
    print(f"{made} runs made; results in {out}. Tables and plots: python benchmarks/accuracy/report.py {names}{f' --results {out}' if out != RESULTS else ''}")


if __name__ == "__main__":
    main()
