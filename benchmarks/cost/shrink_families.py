"""Physical removal on the families of keras.applications: what can go, and whether predictions stay.

    python benchmarks/cost/shrink_families.py                      # all families, one process each
    python benchmarks/cost/shrink_families.py ResNet50 VGG16       # some of them
    python benchmarks/cost/shrink_families.py --coupled            # under the masks of `Filter(coupled=True)`

Every network gets random weights, biases, gammas (half of them negative) and betas, and BatchNorm statistics around those of random inputs.
Of every group of channels that can be removed a random 30 to 50 % get zero weights; then `shrink` removes them. With `--coupled` the network is pruned
instead, by random masks over half of its coupled filters, and the pruned model is compared with the shrunken one.
Results: one JSON line a family in benchmarks/results/shrink_families-<backend>.jsonl or shrink_families-coupled-<backend>.jsonl, and a table. The script fails
where predictions differ by more than 1e-5 of the largest one, or 1e-4 in a network of more than a hundred layers, which add up rounding. Random weights may
give a network that is chaotic: one in which a change of the input by 1e-7 of itself moves the predictions by more than that bound. There both networks are
compared in float64, by the first of these bounds.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras_gibbs as kg
from benchmarks.common.results import RESULTS, read, write_text
from keras_gibbs.structure.channels import channel_groups
from keras_gibbs.tables import render

FAMILIES = {  # and the side of their input
    "ResNet50": 64,
    "ResNet50V2": 64,
    "VGG16": 32,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "MobileNetV3Large": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "EfficientNetV2S": 64,
    "DenseNet121": 64,
    "InceptionV3": 96,
    "InceptionResNetV2": 96,
    "Xception": 96,
    "NASNetMobile": 64,
    "ConvNeXtTiny": 64,
}
SEED = 0


def randomize(model, rng):
    """Random weights."""
    for layer in model.layers:
        for variable in layer.weights if not isinstance(layer, keras.layers.Normalization) else ():
            shape, name = variable.shape, variable.name
            if "gamma" in name:
                value = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
            elif "kernel" in name:
                fan_in = np.prod(shape[:2]) if "depthwise" in name else np.prod(shape[:-1])
                value = rng.normal(size=shape) * np.sqrt(2.0 / fan_in)
            elif "moving" not in name and "float" in variable.dtype:
                value = rng.normal(size=shape) * 0.3
            else:
                continue
            variable.assign(np.asarray(value, "float32"))


def set_statistics(model, inputs, rng):
    """Random BatchNorm statistics that keep what runs through the network in its range: around those of `inputs`."""
    kg.recalibrate(model, inputs)
    for variable in model.variables:
        if "moving_variance" in variable.name:
            variable.assign(keras.ops.convert_to_numpy(variable) * rng.uniform(0.5, 2.0, variable.shape).astype("float32"))
        elif "moving_mean" in variable.name:
            variable.assign(keras.ops.convert_to_numpy(variable) + rng.normal(size=variable.shape).astype("float32") * 0.1)


def zero_some(model, rng):
    """Zero weights for 30 to 50 % of the channels of every group that can be removed."""
    for group in channel_groups(model):
        if group.reason is None:
            group.zero(rng.permutation(group.size)[: round(group.size * rng.uniform(0.3, 0.5))])


def prune_half(model):
    """The model under random masks that remove half of its coupled filters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which names what stays; the share of it is in the results
        return kg.prune(model, kg.Random(0.5, structure=kg.Filter(coupled=True)), seed=SEED)


def measure(name, coupled):
    """The row of one family."""
    rng, side = np.random.default_rng(SEED), FAMILIES[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), classifier_activation=None)
    inputs = rng.normal(size=(8, side, side, 3)).astype("float32")
    randomize(model, rng)
    if coupled:
        model = prune_half(model)
        set_statistics(model, inputs, rng)
    else:
        set_statistics(model, inputs, rng)
        zero_some(model, rng)
    start = time.perf_counter()
    small = kg.shrink(model)
    seconds = time.perf_counter() - start
    report = kg.shrink(model, plan_only=True)
    before, bound = outputs(model, inputs), 1e-4 if len(model.layers) > 100 else 1e-5
    spread = relative(np.ptp(before, axis=0), before)
    assert np.isfinite(before).all() and spread > 1e-3
    error, exact = relative(before - outputs(small, inputs), before), {}
    if error > bound:
        moved = outputs(model, (inputs * (1 + 1e-7 * rng.normal(size=inputs.shape))).astype("float32"))
        stripped, precise = in_float64(kg.strip_pruning(model)), inputs.astype("float64")
        reference = outputs(stripped, precise)
        exact = {"moved_by_1e-7": relative(before - moved, before), "error_float64": relative(reference - outputs(in_float64(small), precise), reference)}
    chaotic = exact.get("moved_by_1e-7", 0.0) > bound and exact["error_float64"] <= 1e-5
    return {
        "family": name,
        "side": side,
        "layers": len(model.layers),
        "error": error,
        "equal": error <= bound or chaotic,
        **exact,
        "spread": spread,
        "prunable": report.prunable,
        "parameters": report.total("parameters"),
        "parameters_after": small.count_params(),
        "macs": report.total("macs"),
        "macs_after": report.total("macs_after"),
        "seconds": round(seconds, 1),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "seed": SEED,
    }


def outputs(network, inputs):
    return keras.ops.convert_to_numpy(network(inputs, training=False))


def relative(difference, to):
    """The largest difference, in parts of the largest output."""
    return float(np.abs(difference).max() / np.abs(to).max())


def in_float64(network):
    """The same network, its weights included, with float64 in the place of float32."""

    def replaced(config):
        if isinstance(config, dict):
            return {name: replaced(value) for name, value in config.items()}
        if isinstance(config, (list, tuple)):
            return type(config)(replaced(value) for value in config)
        return "float64" if isinstance(config, str) and config == "float32" else config

    keras.config.set_floatx("float64")
    copy = type(network).from_config(replaced(network.get_config()))
    keras.config.set_floatx("float32")
    copy.set_weights([weight.astype("float64") if weight.dtype == np.float32 else weight for weight in network.get_weights()])
    return copy


def table(rows, title):
    columns = ["family", "layers", "prunable multiply-adds", "error", "parameters left", "multiply-adds left", "seconds"]
    cells = [
        [
            row["family"],
            str(row["layers"]),
            f"{row['prunable']:.1%}",
            f"{row['error']:.1e}" + (f" (float64: {row['error_float64']:.1e})" if "error_float64" in row else "") + ("" if row.get("equal", True) else " (!)"),
            f"{row['parameters_after'] / row['parameters']:.3f}",
            f"{row['macs_after'] / row['macs']:.3f}",
            str(row["seconds"]),
        ]
        for row in rows
    ]
    return render(title, [(column, "right") for column in columns], cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--coupled", action="store_true", help="random masks over half of the coupled filters")
    parser.add_argument("--here", action="store_true", help="measure the one family in this process and print its row")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.families[0], args.coupled)))
        return
    path = RESULTS / f"shrink_families{'-coupled' if args.coupled else ''}-{keras.backend.backend()}.jsonl"
    rows = {row["family"]: row for row in read(path)}
    for name in args.families:  # a process each gives the memory back
        command = [sys.executable, __file__, "--here", name, *(["--coupled"] if args.coupled else [])]
        rows[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        write_text(path, "".join(json.dumps(rows[family]) + "\n" for family in FAMILIES if family in rows))
        print(rows[name], flush=True)
    print(table(rows.values(), "Half of the coupled filters removed" if args.coupled else "30 to 50 % of the removable channels removed"))
    if not all(rows[name].get("equal", True) for name in args.families):
        sys.exit(1)


if __name__ == "__main__":
    main()
