"""The memory that pruning takes: what a large weight needs beyond the model, and what is left behind by each trial of a search.

    python benchmarks/cost/memory.py                         # all cases on both backends, a few minutes; needs 6 GB
    python benchmarks/cost/memory.py --backends tensorflow --cases "first step"

Every figure comes from a process of its own, by Linux's count of resident memory, in multiples of the model (4 bytes a weight):

- `first step`: the peak while the first step of a `Dense` of 50 million weights is fitted (SGD, batch 32, with the callback), beyond what is held after
  `compile`;
- `prune`: the peak while a `Dense` of 100 million weights is pruned, beyond what is held before; the new model is 1 of it;
- `trials`: megabytes by which the process grows with each model that is pruned, trained for two epochs and dropped, from the third of eight on.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CASES = {"first step": ("dense", "Gibbs", "Magnitude"), "prune": ("Gibbs",), "trials": ("dense", "Gibbs")}
WIDTH, BATCH, TRIALS = 5_000, 32, 8


def resident():
    """Bytes that the process holds, and the most it has held since `forget_peak`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def wait_for(model):
    """JAX computes the weights of a model in the background."""
    import keras

    for weight in model.weights:
        float(keras.ops.max(weight))


def held(model):
    """Bytes that are held with `model`; the peak counts from here on."""
    model.get_config()  # for which Keras imports TensorFlow, on JAX too
    wait_for(model)
    time.sleep(1)  # in which JAX frees what it has used for them
    gc.collect()
    before = resident()[0]
    forget_peak()
    return before


def pruned(model, variant):
    import keras_gibbs as kg

    methods = {"Gibbs": kg.Gibbs(0.9), "Magnitude": kg.Magnitude(0.9)}
    return kg.prune(model, methods[variant], seed=0) if variant in methods else model


def callbacks(variant):
    import keras_gibbs as kg

    return [] if variant == "dense" else [kg.GibbsPruningCallback("batch")]


def wide(outputs):
    """A `Dense` of 5,000 inputs, and a batch for it."""
    import keras
    import numpy as np

    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(outputs, use_bias=False)])
    rng = np.random.default_rng(0)
    return model, rng.random((BATCH, WIDTH), "float32"), rng.random((BATCH, outputs), "float32")


def first_step(variant):
    import keras

    model, x, y = wide(10_000)
    model = pruned(model, variant)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    before = held(model)
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, callbacks=callbacks(variant))
    return (resident()[1] - before) / (4 * WIDTH * 10_000)


def prune(variant):
    model, *_ = wide(20_000)
    before = held(model)
    kept = pruned(model, variant)
    wait_for(kept)
    peak = resident()[1]
    return (peak - before) / (4 * WIDTH * 20_000)


def trials(variant):
    import keras
    import numpy as np

    import keras_gibbs as kg

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 30)).astype("float32")
    y, held = (x.sum(axis=1) > 0).astype("int32"), []
    for trial in range(TRIALS):
        layers = [keras.layers.Dense(24, activation="relu"), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((30,)), *layers])
        if variant != "dense":
            model = kg.prune(model, kg.Gibbs.recommended(0.5 + trial / 100), seed=1)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks(variant))
        del model, layers
        keras.backend.clear_session()
        gc.collect()
        held.append(resident()[0] / 1e6)
    return (held[-1] - held[2]) / (TRIALS - 3)


def measure(backend, case, variant):
    """The figure of one variant of a case, from a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"} | {"KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, __file__, "--child", case, variant], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{backend}, {case}, {variant}: its process failed.\n{done.stderr[-3000:]}")
    unit = "MB a trial" if case == "trials" else "times the model"
    return {"backend": backend, "case": case, "variant": variant, "unit": unit, "value": round(json.loads(done.stdout.splitlines()[-1]), 2)}


def main():
    from benchmarks.common.results import RESULTS, append

    parser = argparse.ArgumentParser(description="Measure the memory that pruning takes.")
    parser.add_argument("--backends", default="tensorflow,jax", help="backends, with commas between (%(default)s)")
    parser.add_argument("--cases", default=",".join(CASES), help="cases, with commas between (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.jsonl", help="the file of results, which gets a line a backend (%(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        case, variant = arguments.child
        print(json.dumps({"first step": first_step, "prune": prune, "trials": trials}[case](variant)))
        return
    from benchmarks.common.machine import environment

    for backend in arguments.backends.split(","):
        rows = [measure(backend, case, variant) for case in arguments.cases.split(",") for variant in CASES[case]]
        append(arguments.out, {"benchmark": "memory", "environment": environment(), "rows": rows})
        for row in rows:
            print(f"{row['backend']:12} {row['case']:12} {row['variant']:10} {row['value']:8.2f} {row['unit']}", flush=True)
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    main()
