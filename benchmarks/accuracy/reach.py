"""What of the networks of keras.applications is pruned, and that it is right: prune, two steps of fit, exact counts, save, load, strip.

    python benchmarks/accuracy/reach.py                    # all families that are missing in the results, one process each
    python benchmarks/accuracy/reach.py Xception VGG16     # some of them, anew

The same for a few kinds of layers that TF-MOT prunes and for some that it does not is in tests/test_kinds.py.
Results: one JSON line a family in benchmarks/results/reach.jsonl, and a table.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_GIBBS_XLA", "0")  # results are the same; a network of many shapes compiles for minutes

from benchmarks.common.results import RESULTS, append, read

SIDES = {
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
}
SPARSITY, SEED = 0.9, 0


def measure(family):
    """The record of one family."""
    import keras
    import numpy as np

    import keras_gibbs as kg

    keras.utils.set_random_seed(SEED)
    model = getattr(keras.applications, family)(weights=None, input_shape=(SIDES[family],) * 2 + (3,), classes=10)
    x = np.random.default_rng(SEED).uniform(0, 1, (4, SIDES[family], SIDES[family], 3)).astype("float32")
    pruned = kg.prune(model, kg.Gibbs(SPARSITY), seed=SEED)
    pruned.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy")
    pruned.fit(x, np.arange(4), batch_size=2, epochs=1, verbose=0, callbacks=[kg.GibbsPruningCallback("batch")])
    kg.recalibrate(pruned, x)  # the first statistics of a deep network of random weights let its predictions overflow, dense as pruned
    rows = [row for row in kg.summary(pruned).rows if row["method"]]
    exact = all(row["kept"] == max(1, row["weights"] - math.floor(SPARSITY * row["weights"] + 0.5)) for row in rows)
    expected = pruned.predict(x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        pruned.save(Path(folder) / "pruned.keras")
        loaded = keras.models.load_model(Path(folder) / "pruned.keras").predict(x, verbose=0)
    stripped = kg.strip_pruning(pruned)
    trained = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return {
        "family": family,
        "side": SIDES[family],
        "layers": len(model.layers),
        "pruned_weights": len(rows),
        "share": sum(row["weights"] for row in rows) / trained,
        "exact": exact,
        "loaded_error": float(np.abs(loaded - expected).max()),
        "stripped_error": float(np.abs(stripped.predict(x, verbose=0) - expected).max()),
        "same_config": stripped.get_config() == model.get_config(),
        "seed": SEED,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
    }


def table(records):
    """The records as text."""
    from keras_gibbs.tables import render

    columns = [(name, "right") for name in ("family", "weights pruned", "share of all", "counts exact", "loaded differs", "stripped differs", "config equal")]
    cells = [
        [
            record["family"],
            str(record["pruned_weights"]),
            f"{record['share']:.1%}",
            str(record["exact"]),
            f"{record['loaded_error']:.0e}",
            f"{record['stripped_error']:.0e}",
            str(record["same_config"]),
        ]
        for record in records
    ]
    return render("keras.applications at 90 %, after two steps", columns, cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[*SIDES, []], help="by default those that are not in the results yet")
    parser.add_argument("--here", action="store_true", help="measure the one family in this process and print its record")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.families[0])))
        return
    path = RESULTS / "reach.jsonl"
    done = {record["family"] for record in read(path)}
    for family in args.families or [name for name in SIDES if name not in done]:  # a process each gives the memory back
        out = subprocess.run([sys.executable, __file__, "--here", family], check=True, stdout=subprocess.PIPE, text=True).stdout
        append(path, json.loads(out.splitlines()[-1]))
    newest = {record["family"]: record for record in read(path)}
    print(table([newest[family] for family in SIDES if family in newest]))


if __name__ == "__main__":
    main()
