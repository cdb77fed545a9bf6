"""Physical removal on the families of keras.applications: what can go, and whether predictions stay.

    python benchmarks/cost/shrink_families.py                      # all families, one process each
    python benchmarks/cost/shrink_families.py ResNet50 VGG16       # some of them

Every network gets random weights, biases, gammas (half of them negative) and betas, and BatchNorm statistics around those of random inputs.
Of every group of channels that can be removed a random 30 to 50 % get zero weights; then `shrink` removes them.
Results: one JSON line a family in benchmarks/results/shrink_families-<backend>.jsonl, and a table.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np

import keras_gibbs as kg
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
RESULTS = Path(__file__).resolve().parents[1] / "results"
SEED = 0


def randomize(model, inputs, rng):
    """Random weights, and random BatchNorm statistics that keep what runs through the network in its range."""
    variables = [variable for layer in model.layers if not isinstance(layer, keras.layers.Normalization) for variable in layer.weights]
    for variable in variables:
        shape, name = variable.shape, variable.name
        if "moving" in name:
            continue
        if "gamma" in name:
            value = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
        elif "kernel" in name:
            fan_in = np.prod(shape[:2]) if "depthwise" in name else np.prod(shape[:-1])
            value = rng.normal(size=shape) * np.sqrt(2.0 / fan_in)
        elif "float" in variable.dtype:
            value = rng.normal(size=shape) * 0.3
        else:
            continue
        variable.assign(np.asarray(value, "float32"))
    kg.recalibrate(model, inputs)
    for variable in variables:
        if "moving_variance" in variable.name:
            variable.assign(keras.ops.convert_to_numpy(variable) * rng.uniform(0.5, 2.0, variable.shape).astype("float32"))
        elif "moving_mean" in variable.name:
            variable.assign(keras.ops.convert_to_numpy(variable) + rng.normal(size=variable.shape).astype("float32") * 0.1)


def zero_some(model, rng):
    """Zero weights for 30 to 50 % of the channels of every group that can be removed."""
    for group in channel_groups(model):
        if group.reason is None:
            group.zero(rng.permutation(group.size)[: round(group.size * rng.uniform(0.3, 0.5))])


def measure(name):
    """The row of one family."""
    rng, side = np.random.default_rng(SEED), FAMILIES[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), classifier_activation=None)
    inputs = rng.normal(size=(8, side, side, 3)).astype("float32")
    randomize(model, inputs, rng)
    zero_some(model, rng)
    start = time.perf_counter()
    small = kg.shrink(model)
    seconds = time.perf_counter() - start
    report = kg.shrink(model, plan_only=True)
    before, after = (keras.ops.convert_to_numpy(network(inputs, training=False)) for network in (model, small))
    assert np.isfinite(before).all() and np.abs(before[0] - before[1]).max() > 1e-3 * np.abs(before).max()
    return {
        "family": name,
        "side": side,
        "layers": len(model.layers),
        "error": float(np.abs(before - after).max() / np.abs(before).max()),
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


def table(rows):
    columns = ["family", "layers", "prunable multiply-adds", "error", "parameters left", "multiply-adds left", "seconds"]
    cells = [
        [
            row["family"],
            str(row["layers"]),
            f"{row['prunable']:.1%}",
            f"{row['error']:.1e}",
            f"{row['parameters_after'] / row['parameters']:.3f}",
            f"{row['macs_after'] / row['macs']:.3f}",
            str(row["seconds"]),
        ]
        for row in rows
    ]
    return render("30 to 50 % of the removable channels removed", [(column, "right") for column in columns], cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--here", action="store_true", help="measure the one family in this process and print its row")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.families[0])))
        return
    path = RESULTS / f"shrink_families-{keras.backend.backend()}.jsonl"
    rows = {row["family"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    for name in args.families:  # a process each gives the memory back
        command = [sys.executable, __file__, "--here", name]
        rows[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        path.write_text("".join(json.dumps(rows[family]) + "\n" for family in FAMILIES if family in rows))
        print(rows[name], flush=True)
    print(table(rows.values()))


if __name__ == "__main__":
    main()
