"""Pruning on a GPU, on TensorFlow or JAX: where the mask is computed, and what a training step costs.

    python benchmarks/cost/gpu.py                        # TensorFlow
    KERAS_BACKEND=jax python benchmarks/cost/gpu.py
    python benchmarks/cost/gpu.py --cpu                  # a small run, to see that the script works where there is no GPU

Proof: the whole training step is compiled by XLA for the device; its program must hold the hash that makes the noise and the bit patterns
of the threshold search, and no call back to the host; a mask, and all that a step returns, must lie on the device.
Time: epochs of `fit` in turns, wrapped against dense, the median ratio of several rounds. Results: a line a run in benchmarks/results/gpu.jsonl.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras_gibbs as kg
from benchmarks.common import networks
from benchmarks.common.machine import environment, gpus
from benchmarks.common.results import BUILD, RESULTS, append
from benchmarks.cost.timing import BATCH, SEED, SPARSITY, interleave, rows_against, show

HASH = "2146121005"  # 0x7FEB352D, the first multiplier of keras_gibbs.numerics.noise


def noise(model, steps):
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(steps * BATCH, *model.input_shape[1:])).astype("float32")
    return x, rng.integers(0, 10, steps * BATCH).astype("int32")


def compiled_model(model):
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def train_program(model, batch):
    """The XLA program of a training step of a compiled model, as text, and the devices of what one step returns."""
    model.train_on_batch(*batch)  # makes the variables of optimizer and metrics
    if keras.backend.backend() == "jax":
        import jax

        variables = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables)
        state = tuple([variable.value for variable in group] for group in variables)
        program = jax.jit(model.train_step).lower(state, batch).compile()
        found = {str(device) for leaf in jax.tree.leaves(program(state, batch)) for device in leaf.devices()}
        return program.as_text(), sorted(found)
    import tensorflow as tf

    step = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=True)
    tensors = [tf.constant(part) for part in batch]
    program = step.experimental_get_compiler_ir(*tensors)(stage="optimized_hlo")
    return program, sorted({leaf.device for leaf in tf.nest.flatten(step(*tensors))})


def mask_device(layer):
    mask = layer.mask(training=True)
    return str(mask.device)


def placement(model, batch):
    """What the compiled training step is made of and where it ran."""
    program, devices = train_program(model, batch)
    return {
        "mask": sorted({mask_device(layer) for layer in kg.pruned_layers(model)}),
        "step": devices,
        "layers": len(kg.pruned_layers(model)),
        "hash_multiplications": program.count(f"constant({HASH})"),
        "bit_patterns": program.count("bitcast-convert"),
        "host_calls": sum(program.count(word) for word in ("callback", "PyFunc", "outfeed", "infeed")),
    }


def time_epochs(model, steps):
    """A timer for `interleave`: one epoch of `fit`, in milliseconds a step."""
    x, y = noise(model, steps)

    def timer():
        start = time.perf_counter()
        model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
        return 1e3 * (time.perf_counter() - start) / steps

    return timer


def measure(case, build, where, steps, rounds):
    """Rows and placement of one network under Gibbs pruning, hot (the beginning of the schedule)."""
    timers, proofs = {}, {}
    structures = {"dense": None, "Gibbs": kg.Unstructured()}
    if case.startswith("ResNet"):
        structures |= {"Gibbs Kernel()": kg.Kernel(), "Gibbs Filter()": kg.Filter()}
    for name, structure in structures.items():
        model = build() if structure is None else kg.prune(build(), kg.Gibbs(SPARSITY, structure=structure), where=where, seed=SEED)
        compiled_model(model)
        if structure is not None:
            proofs[f"{case}, {name}"] = placement(model, [part[:BATCH] for part in noise(model, 1)])
        timers[name] = time_epochs(model, steps)
    return rows_against(interleave(timers, rounds), "dense", case, {}), proofs


def main():
    parser = argparse.ArgumentParser(description="Where pruning runs on a GPU, and what it costs there.")
    parser.add_argument("--cpu", action="store_true", help="a small run without a GPU")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="the file of results, which gets a line (gpu.jsonl in benchmarks/results/, with --cpu in build/)")
    arguments = parser.parse_args()
    backend, devices = keras.backend.backend(), gpus()
    if not devices and not arguments.cpu:
        raise SystemExit(f"The {backend} backend sees no GPU here: nothing to measure. For a small run on the CPU: --cpu")
    keras.utils.set_random_seed(SEED)
    small = arguments.cpu
    cases = [
        ("ResNet-8 fit" if small else "ResNet-20 fit", lambda: networks.resnet(8 if small else 20), networks.prunable, 2 if small else 100),
        ("MLP fit", lambda: networks.mlp(hidden=(128, 128) if small else (2048, 2048)), None, 4 if small else 200),
    ]
    rows, proofs = [], {}
    for case, build, where, steps in cases:
        print(f"Measuring {case} ...", flush=True)
        own, found = measure(case, build, where, steps, 2 if small else arguments.rounds)
        rows, proofs = rows + own, proofs | found
    show(rows, f"Step cost, {backend}, batch {BATCH}, on {', '.join(devices) or 'the CPU'}")
    for name, proof in proofs.items():
        print(name, proof)
    out = arguments.out or (BUILD if small else RESULTS) / "gpu.jsonl"
    record = {"benchmark": "gpu", "environment": environment(), "devices": devices, "batch": BATCH, "seed": SEED, "sparsity": SPARSITY}
    append(out, record | {"placement": proofs, "rows": [row.as_dict() for row in rows]})
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
