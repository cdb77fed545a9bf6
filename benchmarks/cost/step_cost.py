"""What pruning costs at every training step, as a ratio to the same model without it.

    python benchmarks/cost/step_cost.py                  # all cases, about eight minutes on two quiet cores
    python benchmarks/cost/step_cost.py --quick          # three rounds
    python benchmarks/cost/step_cost.py --only mlp

Models are timed in turns, a few steps each: one round times all of them, in an order that rotates, and gives one ratio per model; the
table has the median over the rounds. So what slows the machine down slows both sides of a ratio. A second copy of the dense model is timed
like the others: its ratio, which should be 1, shows the noise. A step is one call of the train function that `fit` compiles, on batches
that lie in memory; the case `callback` times whole epochs of `fit`. Threads and XLA are at their defaults. TensorFlow backend.

A Gibbs model is timed at the beginning of the authors' schedule (progress 0, hot) and at its end (progress 1, cold), one that comes to hold its mask just
before that and after: the slower one counts.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.common import networks
from benchmarks.common.machine import environment, version
from benchmarks.common.results import RESULTS, append
from benchmarks.cost.timing import BATCH, SEED, SPARSITY, Row, interleave, random_batches, rows_against, show, stopwatch, train_step


def at_progress(model, progress, timer):
    """`timer` on a pruned model whose schedules stand at `progress`."""
    import keras_gibbs as kg
    from keras_gibbs.model import distribute

    def timed():
        distribute(model, progress=progress)
        for layer in kg.pruned_layers(model):
            layer.anneal(progress)
        return timer()

    return timed


def by_curvature():
    """Gibbs pruning by curvature, one threshold for the network, with a constant sparsity."""
    import keras_gibbs as kg

    return kg.Gibbs(SPARSITY, criterion=kg.CurvatureEnergy(), scope="global", scale="log")


def methods():
    """The pruned variants of a convolutional network: name -> (method, bound)."""
    import keras_gibbs as kg

    return {
        "Gibbs": (kg.Gibbs(SPARSITY), 1.08),
        "Gibbs Kernel()": (kg.Gibbs(SPARSITY, structure=kg.Kernel()), 1.20),
        "Gibbs Filter()": (kg.Gibbs(SPARSITY, structure=kg.Filter()), 1.20),
        "Gibbs.recommended": (kg.Gibbs.recommended(SPARSITY), 1.08),
        "Gibbs CurvatureEnergy()": (by_curvature(), 1.08),
        "Magnitude": (kg.Magnitude(SPARSITY), None),
        "RigL": (kg.RigL(SPARSITY), 1.05),
        "GumbelSoftmax": (kg.GumbelSoftmax(), 1.15),
    }


def states(method):
    """The states of training in which a method is timed, and their progress."""
    if getattr(method, "settle", None) is not None:
        return {", drawing": 0.98 * method.settle, ", held": 1.0}
    return {", hot": 0.0, ", cold": 1.0} if any(schedule.span for schedule in method.schedules().values()) else {"": 1.0}


def training(case, build, where, variants, steps, rounds):
    """Rows of a network's training step: dense, dense again, and every variant in each of its states."""
    import keras

    import keras_gibbs as kg

    keras.utils.set_random_seed(SEED)
    batches, _ = random_batches(build().input_shape[1:])
    timers = {name: stopwatch(train_step(build(), batches), steps) for name in ("dense", "dense again")}
    bounds = {}
    for name, (method, bound) in variants.items():
        model = kg.prune(build(), method, where=where, seed=SEED)
        timer = stopwatch(train_step(model, batches), steps)
        for state, progress in states(method).items():
            label = f"{name}{state}"
            timers[label], bounds[label] = at_progress(model, progress, timer), bound
    return rows_against(interleave(timers, rounds), "dense", case, bounds)


def case_resnet(rounds):

    return training("ResNet-20 step", lambda: networks.resnet(20), networks.prunable, methods(), 2, rounds)


def case_coupled(rounds):
    """Channels of the whole network, in place of single filters."""
    import keras_gibbs as kg

    structure = kg.Filter(coupled=True)
    variants = {"Magnitude coupled": (kg.Magnitude(0.5, structure=structure), 1.08), "Gibbs coupled": (kg.Gibbs(0.5, structure=structure), 1.08)}
    return training("ResNet-20 step", lambda: networks.resnet(20), None, variants, 2, rounds)


def case_shrunken(rounds, side=64, batch=32):
    """ResNet-50 without half of its coupled filters, which have left the network: at most 1.5 times what is left of its multiply-adds."""
    import keras

    import keras_gibbs as kg

    keras.utils.set_random_seed(SEED)
    dense = keras.applications.ResNet50(weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=None)
    pruned = kg.prune(dense, kg.Random(0.5, structure=kg.Filter(coupled=True)), seed=SEED)
    report = kg.shrink(pruned, plan_only=True)
    left = report.total("macs_after") / report.total("macs")
    batches, _ = random_batches((side, side, 3), number=2, batch=batch)
    models = {"dense": dense, "dense again": keras.models.clone_model(dense), "shrunken": kg.shrink(pruned)}
    timers = {name: stopwatch(train_step(model, batches), 1) for name, model in models.items()}
    note = f"{side}x{side}, batch {batch}; {left:.3f} of the multiply-adds"
    return rows_against(interleave(timers, rounds), "dense", "ResNet-50 step", {"shrunken": 1.5 * left}, {"shrunken": note})


def case_mlp(rounds):

    import keras_gibbs as kg

    variants = {
        "Gibbs": (kg.Gibbs(SPARSITY), 2.0),
        "Gibbs.recommended": (kg.Gibbs.recommended(SPARSITY), None),
        "Gibbs CurvatureEnergy()": (by_curvature(), None),
        "Magnitude": (kg.Magnitude(SPARSITY), None),
        "GumbelSoftmax": (kg.GumbelSoftmax(), 3.0),
    }
    return training("MLP step", networks.mlp, None, variants, 10, rounds)


def case_search(rounds):
    """A training step of ResNet-20 while EDropout searches with 8 states, and after."""
    import keras

    import keras_gibbs as kg

    keras.utils.set_random_seed(SEED)
    batches, _ = random_batches(networks.resnet(20).input_shape[1:])
    timers = {name: stopwatch(train_step(networks.resnet(20), batches), 1) for name in ("dense", "dense again")}
    variants = {
        "EDropout, searching": (kg.EDropout(), 0.0, 4.5),
        "EDropout, searching, energy_batch=32": (kg.EDropout(energy_batch=32), 0.0, 2.0),
        "EDropout, searching, population_chunk=8": (kg.EDropout(population_chunk=8), 0.0, None),
        "EDropout, energy_batch=32, population_chunk=8": (kg.EDropout(population_chunk=8, energy_batch=32), 0.0, None),
        "EDropout, search ended": (kg.EDropout(), 1.0, 1.08),
    }
    for name, (method, progress, _) in variants.items():
        model = kg.prune(networks.resnet(20), method, where=networks.prunable, seed=SEED)
        timers[name] = at_progress(model, progress, stopwatch(train_step(model, batches), 1))
    return rows_against(interleave(timers, rounds), "dense", "ResNet-20 step", {name: bound for name, (*_, bound) in variants.items()})


def case_callback(rounds):
    """One whole `fit` epoch with the callback that moves beta before every batch, against the dense `fit`: for information."""
    import keras

    import keras_gibbs as kg

    rows = []
    for case, build, where, steps in (
        ("ResNet-20 fit", lambda: networks.resnet(20), networks.prunable, 8),
        ("MLP fit", networks.mlp, None, 24),
    ):
        keras.utils.set_random_seed(SEED)
        _, (x, y) = random_batches(build().input_shape[1:], number=steps)
        timers = {}
        for name in ("dense", "Gibbs, callback every batch"):
            model = build() if name == "dense" else kg.prune(build(), kg.Gibbs(SPARSITY), where=where, seed=SEED)
            model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
            callback = [] if name == "dense" else [kg.GibbsPruningCallback("batch", restart=True)]
            timers[name] = lambda model=model, callback=callback, steps=steps: _fit(model, x, y, callback) / steps  # noqa: B023
        note = f"epochs of {steps} steps, with what fit and the figures of an epoch's end cost"
        rows += rows_against(interleave(timers, max(2, rounds // 2)), "dense", case, {}, {"Gibbs, callback every batch": note})
    return rows


def _fit(model, x, y, callbacks):
    start = time.perf_counter()
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, callbacks=callbacks)
    return 1e3 * (time.perf_counter() - start)


def case_evaluate(rounds):
    """`evaluate` of 10,000 samples by the wrapped MLP, against its stripped model."""
    import keras

    import keras_gibbs as kg

    keras.utils.set_random_seed(SEED)
    pruned = kg.prune(networks.mlp(), kg.Gibbs(SPARSITY), seed=SEED)
    batches, _ = random_batches(pruned.input_shape[1:])
    step = train_step(pruned, batches)
    for layer in kg.pruned_layers(pruned):
        layer.anneal(1.0)
    for _ in range(3):
        step()
    stripped = kg.strip_pruning(pruned)
    stripped.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    _, (x, y) = random_batches(pruned.input_shape[1:], number=79)
    x, y = x[:10_000], y[:10_000]
    timers = {
        "stripped": stopwatch(lambda: _evaluate(stripped, x, y), 1),
        "wrapped, after a training step": stopwatch(lambda: _evaluate(pruned, x, y), 1, before=step),
        "wrapped, again": stopwatch(lambda: _evaluate(pruned, x, y), 1),
    }
    notes = {
        "wrapped, after a training step": "one training step before each, so that the first batch finds the exact cut of every layer anew",
        "wrapped, again": "the cut is there already",
    }
    # In every rotation an evaluate of the wrapped model lies between the training step and "again".
    bounds = {"wrapped, after a training step": 1.3}
    return rows_against(interleave(timers, rounds), "stripped", "MLP evaluate 10,000", bounds, notes)


def _evaluate(model, x, y):
    model.evaluate(x, y, batch_size=BATCH, verbose=0)
    return []


def enumerations():
    """Three ways to draw from the 2^N states of a coupled kernel by enumeration, as functions of (field, beta, coupling, key, counter)."""
    import itertools

    import numpy as np
    import tensorflow as tf
    from keras import ops

    from keras_gibbs.numerics.compilation import compiled
    from keras_gibbs.numerics.noise import Uniform

    states = np.array(list(itertools.product((-1, 1), repeat=9)), "float32")  # (512, 9)
    pairs = (states.sum(axis=1, keepdims=True) ** 2 - 9).astype("float32")

    def logits(field, beta, coupling):
        return -0.5 * beta * (ops.matmul(states, field) - coupling * pairs)  # (512, G)

    def pick(index):
        return ops.transpose((ops.take(states, index, axis=0) + 1) / 2)  # (9, G)

    def by_distribution_function(field, beta, coupling, key, counter):
        weights = logits(field, beta, coupling)
        cumulative = ops.cumsum(ops.exp(weights - ops.max(weights, axis=0)), axis=0)
        level = Uniform(key, counter)((1, field.shape[1])) * cumulative[-1:]
        return pick(ops.minimum(ops.sum(ops.cast(cumulative <= level, "int32"), axis=0), 511))

    def by_gumbel(field, beta, coupling, key, counter):
        noise = Uniform(key, counter)((512, field.shape[1]))
        return pick(ops.argmax(logits(field, beta, coupling) - ops.log(-ops.log(noise + 2.0**-25)), axis=0))

    def as_the_authors(field, beta, coupling, key, counter):
        return pick(tf.random.categorical(tf.transpose(logits(field, beta, coupling)), 1)[:, 0])

    return {
        "enumeration, distribution function, XLA": compiled(by_distribution_function),
        "enumeration, distribution function, graph": tf.function(by_distribution_function),
        "enumeration, Gumbel, XLA": compiled(by_gumbel),
        "enumeration, tf.random.categorical, graph": tf.function(as_the_authors),
    }


def case_sampler(rounds):
    """The exact sampler of coupled kernels, against enumeration and between kernel sizes."""
    import numpy as np
    import tensorflow as tf

    from keras_gibbs.numerics.compilation import compiled
    from keras_gibbs.numerics.noise import Uniform
    from keras_gibbs.sampling.samplers import coupled_spins

    beta, coupling = tf.constant(100.0), 0.01
    key, counter = tf.constant([SEED, 0], tf.uint32), tf.constant(5, tf.uint32)

    def field(spins):
        squares = np.random.default_rng(SEED).normal(0, np.sqrt(2 / (spins * 64)), (spins, 64 * 64)).astype("float32") ** 2
        return tf.constant(np.quantile(squares, SPARSITY) - squares)

    exact = compiled(lambda field, key, counter: coupled_spins(field, beta, coupling, Uniform(key, counter)))
    fields = {3: field(9), 5: field(25)}
    timers = {f"exact {size}x{size}x64x64": stopwatch(lambda size=size: exact(fields[size], key, counter), 10) for size in fields}
    for name, draw in enumerations().items():
        timers[name] = stopwatch(lambda draw=draw: draw(fields[3], beta, coupling, key, counter), 3)
    times = interleave(timers, rounds)
    base = times.pop("exact 3x3x64x64")
    large = times.pop("exact 5x5x64x64")
    fastest = min(times, key=lambda name: statistics.median(times[name]))
    rows = [Row("kernel sampler", "5x5x64x64", "exact 3x3x64x64", list(zip(base, large, strict=True)), 8.0)]
    for name, own in times.items():
        bound = 1.0 if name == fastest else None
        note = "the fastest enumeration" if name == fastest else ""
        rows.append(Row("kernel sampler", name, "exact 3x3x64x64", list(zip(base, own, strict=True)), bound, at_most=False, note=note))
    return rows


def case_tfmot(rounds):
    """TF-MOT on tf_keras, against its own dense model: in a subprocess, since importing it changes which Keras TensorFlow has."""
    for name in ("tensorflow_model_optimization", "tf_keras"):
        if not version(name):
            print(f"Left out: TF-MOT, {name} is not installed (pip install -e '.[tfmot]').", flush=True)
            return []
    command = [sys.executable, __file__, "--tfmot-child", str(rounds)]
    done = subprocess.run(command, env={**os.environ, "TF_USE_LEGACY_KERAS": "1"}, capture_output=True, text=True)
    if done.returncode:
        print(f"Left out: TF-MOT, its process failed:\n{done.stderr[-2000:]}", flush=True)
        return []
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def tfmot_child(rounds):
    """Print the rows of TF-MOT as one line of JSON."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    sparse = tfmot.sparsity.keras
    rows = []
    for case, build, where, steps in (
        ("ResNet-20 step", lambda: networks.resnet(20, api=tf_keras), networks.prunable, 2),
        ("MLP step", lambda: networks.mlp(api=tf_keras), lambda layer: hasattr(layer, "kernel"), 2),
    ):
        tf_keras.utils.set_random_seed(SEED)
        batches, _ = random_batches(build().input_shape[1:])
        timers = {"tf_keras dense": stopwatch(train_step(build(), batches, tf_keras), steps)}
        for name, frequency in (("every", 1), ("quiet", 10**9)):
            schedule = sparse.ConstantSparsity(SPARSITY, begin_step=0, frequency=frequency)

            def wrap(layer, where=where, schedule=schedule):
                return sparse.prune_low_magnitude(layer, schedule) if where(layer) else layer

            model = tf_keras.models.clone_model(build(), clone_function=wrap)
            step = train_step(model, batches, tf_keras)
            for layer in model.layers:
                if hasattr(layer, "pruning_step"):
                    layer.pruning_step.assign(0)  # what the callback UpdatePruningStep does when training begins
            step()  # step 0 updates at any frequency
            timers[name] = stopwatch(step, steps)
        times = interleave(timers, rounds)
        dense, every, quiet = times["tf_keras dense"], times["every"], times["quiet"]
        default = [(99 * one + other) / 100 for one, other in zip(quiet, every, strict=True)]
        for variant, own, note in (
            ("TF-MOT, frequency=1", every, "ConstantSparsity(0.9), masks updated at every step"),
            ("TF-MOT, frequency=100", default, "its default: 99 steps without and one with an update, each timed by itself"),
        ):
            rows.append(Row(case, variant, "tf_keras dense", list(zip(dense, own, strict=True)), note=note))
    print(json.dumps([dataclasses.asdict(row) for row in rows]))


CASES = {
    "resnet": (case_resnet, 12),
    "coupled": (case_coupled, 12),
    "shrunken": (case_shrunken, 12),
    "mlp": (case_mlp, 20),
    "search": (case_search, 12),
    "evaluate": (case_evaluate, 20),
    "sampler": (case_sampler, 20),
    "tfmot": (case_tfmot, 8),
    "callback": (case_callback, 8),
}  # name -> (function of the number of rounds, rounds)


def main():
    parser = argparse.ArgumentParser(description="Time a training step with and without pruning.")
    parser.add_argument("--only", choices=CASES, action="append", metavar="CASE", help=f"one or more of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="three rounds a case")
    parser.add_argument("--out", type=Path, default=RESULTS / "step_cost.jsonl", help="the file of results, which gets a line a case (%(default)s)")
    parser.add_argument("--tfmot-child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tfmot_child:
        tfmot_child(arguments.tfmot_child)
        return
    import keras

    if keras.backend.backend() != "tensorflow":
        parser.error("this benchmark times TensorFlow on the CPU: unset KERAS_BACKEND. For JAX and for GPUs there is gpu.py.")
    settings = {"batch": BATCH, "seed": SEED, "sparsity": SPARSITY}
    machine, rows = environment(), []
    for name in arguments.only or CASES:
        case, rounds = CASES[name]
        print(f"Timing {name} ...", flush=True)
        start = time.perf_counter()
        found = case(3 if arguments.quick else rounds)
        seconds = {name: round(time.perf_counter() - start, 1)}
        append(arguments.out, {"benchmark": "step_cost", "environment": machine, **settings, "seconds": seconds, "rows": [row.as_dict() for row in found]})
        rows += found
    show(rows, f"Step cost, batch {BATCH}, TensorFlow {machine['versions']['tensorflow']}, {machine['cores']} cores, {machine['cpu']}")
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    main()
