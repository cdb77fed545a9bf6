"""What the methods of the survey's frame cost: scores before training against a training step, and steps of sparse training between two updates.

    python benchmarks/cost/survey_cost.py                 # about ten minutes of CPU time
    python benchmarks/cost/survey_cost.py --only MobileNetV2

Times are CPU seconds over all threads of the process, so that other processes disturb them little; models are timed in turns, as in step_cost.py. TensorFlow.

- `steps`: a training step of ResNet-20 with the callback that moves before every batch, at a progress between two updates of the mask.
- `scores`: a score of ResNet-20 on a batch of the size of a training step's, once it is compiled; the cold time, compilation included, is in the note.
- `MobileNetV2`: `prune` of MobileNetV2 at 96x96 as a whole, compilation included, by scores on 100 images of 10 classes, against a minute.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.common import networks
from benchmarks.common.machine import environment
from benchmarks.common.results import RESULTS, append
from benchmarks.cost.timing import BATCH, CLOCKS, SEED, SPARSITY, Row, interleave, random_batches, rows_against, show, stopwatch, train_step

MINUTE = 60_000.0  # milliseconds


def cpu_ms(function):
    """A timer of one call of `function`, which gives NumPy arrays, in milliseconds of CPU time."""

    def timed():
        start = CLOCKS["cpu"]()
        function()
        return 1e3 * (CLOCKS["cpu"]() - start)

    return timed


def case_steps(rounds):
    import keras

    import keras_gibbs as kg

    keras.utils.set_random_seed(SEED)
    batches, _ = random_batches(networks.resnet(20).input_shape[1:])
    timers = {name: stopwatch(train_step(networks.resnet(20), batches), 2, clock="cpu") for name in ("dense", "dense again")}
    bounds = {"RigL": 1.05, "SET": 1.05, "GReg": None}
    for name in bounds:
        model = kg.prune(networks.resnet(20), getattr(kg, name)(SPARSITY), where=networks.prunable, seed=SEED)
        timers[name] = stopwatch(between_updates(model, train_step(model, batches)), 2, clock="cpu")
    return rows_against(interleave(timers, rounds), "dense", "ResNet-20 step", bounds, {"RigL": "the callback's part included", "SET": "likewise"})


def between_updates(model, step):
    """A training step before which the callback moves, to a progress at which no mask does."""
    import keras_gibbs as kg

    callback = kg.GibbsPruningCallback("batch", epochs=1000)
    callback.set_model(model)
    callback.set_params({"steps": 10_000, "epochs": 1000})
    callback.on_train_begin()
    callback.on_epoch_begin(1)
    batch = iter(range(1, 10_000))

    def run():
        callback.on_train_batch_begin(next(batch))
        return step()

    return run


def case_scores(rounds):
    import keras

    from keras_gibbs.scores.batches import batches
    from keras_gibbs.scores.losses import ModelLoss
    from keras_gibbs.scores.on_data import connection_sensitivity, gradient_flow
    from keras_gibbs.structure.prunable import prunable_weights

    keras.utils.set_random_seed(SEED)
    model = networks.resnet(20)
    data, (x, y) = random_batches(model.input_shape[1:])
    variables = [weight.variable for weight in prunable_weights(model)]
    loss = ModelLoss(model, variables, batches((x[:BATCH], y[:BATCH])), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ones = [keras.ops.ones(variable.shape) for variable in variables]
    timers = {
        "dense": stopwatch(train_step(networks.resnet(20), data), 2, clock="cpu"),
        "SNIP": cpu_ms(lambda: connection_sensitivity(loss, loss.values(), ones)),
        "GraSP": cpu_ms(lambda: gradient_flow(loss, loss.values(), ones)),
    }
    cold = {name: f"cold, with its compilation: {timers[name]() / 1e3:.1f} s" for name in ("SNIP", "GraSP")}
    return rows_against(interleave(timers, rounds), "dense", "ResNet-20 score", {"SNIP": 3.0, "GraSP": 8.0}, cold)


def case_mobilenet(rounds):
    import keras
    import numpy as np

    import keras_gibbs as kg

    keras.utils.set_random_seed(SEED)
    model = keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3), classes=10, classifier_activation=None)
    rng = np.random.default_rng(SEED)
    data = rng.normal(size=(100, 96, 96, 3)).astype("float32"), np.arange(100) % 10
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rows = []
    for method in (kg.SNIP(SPARSITY), kg.GraSP(SPARSITY), kg.FORCE(SPARSITY), kg.SynFlow(SPARSITY)):
        own = cpu_ms(lambda method=method: kg.prune(model, method, data=data, loss=loss, seed=SEED))()
        bound = 1.0 if isinstance(method, (kg.SNIP, kg.GraSP)) and not isinstance(method, kg.FORCE) else None
        rows.append(Row("MobileNetV2, pruned once", method.brief(), "a minute", [(MINUTE, own)], bound, note=f"{own / 1e3:.0f} s of CPU time"))
    return rows


CASES = {"steps": (case_steps, 12), "scores": (case_scores, 8), "MobileNetV2": (case_mobilenet, 1)}  # name -> (function of the number of rounds, rounds)


def main():
    parser = argparse.ArgumentParser(description="Time scores before training, and steps of sparse training.")
    parser.add_argument("--only", choices=CASES, action="append", metavar="CASE", help=f"one or more of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, default=RESULTS / "survey_cost.jsonl", help="the file of results, which gets a line a case (%(default)s)")
    arguments = parser.parse_args()
    machine, rows = environment(), []
    for name in arguments.only or CASES:
        case, rounds = CASES[name]
        print(f"Timing {name} ...", flush=True)
        start = time.perf_counter()
        found = case(rounds)
        measured = {"clock": "cpu", "batch": BATCH, "seed": SEED, "sparsity": SPARSITY, "seconds": {name: round(time.perf_counter() - start, 1)}}
        append(arguments.out, {"benchmark": "survey_cost", "environment": machine, **measured, "rows": [row.as_dict() for row in found]})
        rows += found
    show(rows, f"CPU time, batch {BATCH}, TensorFlow {machine['versions']['tensorflow']}, {machine['cores']} cores, {machine['cpu']}")
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    main()
