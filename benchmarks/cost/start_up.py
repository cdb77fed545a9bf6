"""What a user waits for before the first step of training, and the memory it takes: CPU seconds and peak memory, each variant in a process of its own.

    python benchmarks/cost/start_up.py                       # all networks and variants, about ten minutes on two quiet cores
    python benchmarks/cost/start_up.py --only MobileNetV2 --variants "dense;Gibbs"

A process builds a network for 96x96 images, prunes it, prints `summary`, fits two steps with the callback, and predicts one batch. Its CPU seconds are those
of all its threads, user and system; its peak memory is the largest resident set. `total` is summary, fit and predict together; importing and building are
left out, since they differ between Keras 3 and tf_keras. TF-MOT is `prune_low_magnitude` on tf_keras by `clone_model`, over the layers that it supports.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

NETWORKS = ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0")
VARIANTS = {
    "dense": {"KERAS_BACKEND": "tensorflow"},
    "Gibbs": {"KERAS_BACKEND": "tensorflow"},
    "Gibbs.recommended": {"KERAS_BACKEND": "tensorflow"},
    "TF-MOT": {"TF_USE_LEGACY_KERAS": "1"},
    "dense, JAX": {"KERAS_BACKEND": "jax"},
    "Gibbs, JAX": {"KERAS_BACKEND": "jax"},
}  # name -> environment of its process
SHAPE, CLASSES, BATCH, STEPS, SPARSITY = (96, 96, 3), 10, 32, 2, 0.9
PHASES = ("summary", "fit", "predict")


class Clock:
    """CPU and wall seconds of the parts of a process."""

    def __init__(self):
        self.cpu, self.wall, self._last = {}, {}, self._now()

    @staticmethod
    def _now():
        times = os.times()
        return times.user + times.system, time.perf_counter()

    def lap(self, name):
        """Give the time since the last lap a name."""
        now = self._now()
        self.cpu[name], self.wall[name] = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now


def network(name, api):
    """A network of Keras 3 or tf_keras, with fresh weights."""
    return getattr(api.applications, name)(weights=None, input_shape=SHAPE, classes=CLASSES, classifier_activation=None)


def child(name, variant):
    """Run one variant and print its figures as JSON."""
    import numpy as np

    clock = Clock()
    rng = np.random.default_rng(0)
    x, y = rng.random((BATCH * STEPS, *SHAPE), "float32"), rng.integers(0, CLASSES, BATCH * STEPS)
    api, model, callbacks, summarize = _tfmot(name, clock) if variant == "TF-MOT" else _keras(name, variant, clock)
    clock.lap("prune")
    if summarize is not None:
        str(summarize(model))
    clock.lap("summary")
    model.compile(api.optimizers.Adam(1e-3), api.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, callbacks=callbacks)
    clock.lap("fit")
    model.predict(x[:BATCH], verbose=0)
    clock.lap("predict")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_s": clock.cpu, "wall_s": clock.wall, "peak_mb": peak, "total_s": sum(clock.cpu[phase] for phase in PHASES)}))


def _keras(name, variant, clock):
    import keras

    import keras_gibbs as kg

    clock.lap("import")
    model = network(name, keras)
    clock.lap("build")
    if variant.startswith("dense"):
        return keras, model, [], None
    method = kg.Gibbs.recommended(SPARSITY) if "recommended" in variant else kg.Gibbs(SPARSITY)
    return keras, kg.prune(model, method, seed=0), [kg.GibbsPruningCallback()], kg.summary


def _tfmot(name, clock):
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry

    clock.lap("import")
    model = network(name, tf_keras)
    clock.lap("build")
    sparse = tfmot.sparsity.keras
    schedule = sparse.PolynomialDecay(0.0, SPARSITY, 0, STEPS, frequency=1)

    def wrap(layer):
        return sparse.prune_low_magnitude(layer, schedule) if PruneRegistry.supports(layer) and layer.weights else layer

    return tf_keras, tf_keras.models.clone_model(model, clone_function=wrap), [sparse.UpdatePruningStep()], None


def measure(name, variant):
    """The figures of one variant, from a process of its own."""
    command = [sys.executable, __file__, "--child", name, variant]
    environment = {key: value for key, value in os.environ.items() if key not in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS")}
    done = subprocess.run(command, env=environment | VARIANTS[variant], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}, {variant}: its process failed.\n{done.stderr[-3000:]}")
    return {"network": name, "variant": variant, **json.loads(done.stdout.splitlines()[-1])}


def show(rows):
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Start-up: CPU seconds, and peak memory in MB", title_justify="left")
    for heading in ("network", "variant", "prune", *PHASES, "total", "to dense", "wall", "peak MB"):
        table.add_column(heading, justify="left" if heading in ("network", "variant") else "right")
    totals = {(row["network"], row["variant"]): row["total_s"] for row in rows}
    for row in rows:
        dense = totals.get((row["network"], "dense, JAX" if row["variant"].endswith("JAX") else "dense"))
        seconds = [f"{row['cpu_s'][phase]:.1f}" for phase in ("prune", *PHASES)]
        wall = sum(row["wall_s"][phase] for phase in PHASES)
        against = f"{row['total_s'] / dense:.2f}" if dense else ""
        table.add_row(row["network"], row["variant"], *seconds, f"{row['total_s']:.1f}", against, f"{wall:.1f}", f"{row['peak_mb']:.0f}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main():
    from benchmarks.common.results import RESULTS, append

    parser = argparse.ArgumentParser(description="Measure the start-up of pruning.")
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas between (%(default)s)")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="variants, with semicolons between (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "start_up.jsonl", help="the file of results, which gets a line a network (%(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    from benchmarks.common.machine import environment

    machine, rows = environment(), []
    for name in arguments.only.split(","):
        found = [measure(name, variant) for variant in arguments.variants.split(";")]
        append(arguments.out, {"benchmark": "start_up", "environment": machine, "batch": BATCH, "steps": STEPS, "sparsity": SPARSITY, "rows": found})
        rows += found
    show(rows)
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    main()
