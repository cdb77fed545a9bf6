"""Prune a small network while it learns to read handwritten digits, and ship it.

    python examples/quickstart.py

Trains the same network twice, dense and with Gibbs pruning at 90 %, exports both to build/demo/ and runs the exported files on the test
set. The digits come with scikit-learn; nothing is downloaded.
"""

from pathlib import Path

import keras
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_gibbs as kg

FOLDER = Path(__file__).resolve().parent.parent / "build" / "demo"
EPOCHS, BATCH = 60, 64


def digits():
    """1437 digits to train on and 360 to test on, 8x8 pixels in [0, 1]."""
    data = load_digits()
    images = (data.images[..., None] / 16).astype("float32")
    return train_test_split(images, data.target, test_size=360, random_state=0, stratify=data.target)


def convnet():
    layers = [keras.Input((8, 8, 1))]
    for filters in (32, 64, 128):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{filters}"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10, name="scores")])


def train(model, x, y, callbacks=()):
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * -(-len(x) // BATCH))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, callbacks=list(callbacks), verbose=0)


def main():
    keras.utils.set_random_seed(1)
    x_train, x_test, y_train, y_test = digits()

    print("Training the dense network ...", flush=True)
    dense = convnet()
    train(dense, x_train, y_train)

    print("Training it with Gibbs pruning at 90 % ...", flush=True)
    pruned = kg.prune(convnet(), kg.Gibbs.recommended(sparsity=0.9), seed=1)
    train(pruned, x_train, y_train, callbacks=[kg.GibbsPruningCallback()])
    final = kg.strip_pruning(pruned)  # a plain Keras model, 90 % zeros

    print("Exporting, and running the exported files on the test set ...", flush=True)
    kg.export_saved_model(final, FOLDER / "gibbs_saved_model")
    reports = [
        kg.export_tflite(dense, FOLDER / "dense.tflite", encoding="dense", data=(x_test, y_test)),
        kg.export_tflite(final, FOLDER / "gibbs.tflite", data=(x_test, y_test)),
    ]
    Console().print(table(reports, [kg.summary(dense), kg.summary(final)]))
    print(reports[1].reason)
    print("Written:", *(f"  {FOLDER / name}" for name in ("dense.tflite", "gibbs.tflite", "gibbs_saved_model")), sep="\n")


def table(reports, summaries):
    table = Table("handwritten digits, 360 test images")
    table.add_column("dense", justify="right")
    table.add_column("Gibbs, 90 %", justify="right")
    files = [report.chosen for report in reports]
    table.add_row("accuracy in Keras", *(f"{report.accuracy:.2%}" for report in reports))
    in_litert = ("not run" if file["accuracy"] is None else f"{file['accuracy']:.2%}" for file in files)
    table.add_row("accuracy of the .tflite file in LiteRT", *in_litert, end_section=True)
    for rows in zip(*(summary.rows for summary in summaries)):
        if rows[0]["shape"]:  # a layer with a kernel
            table.add_row(f"zeros in {rows[0]['layer']}, of {rows[0]['weights']:,}", *(f"{row['sparsity']:.2%}" for row in rows))
    table.add_row("zeros in all kernels", *(f"{summary.sparsity:.2%}" for summary in summaries), end_section=True)
    table.add_row(".tflite file, bytes", *(f"{file['raw_bytes']:,}" for file in files))
    table.add_row(".tflite file gzipped, bytes", *(f"{file['gzip_bytes']:,}" for file in files))
    return table


if __name__ == "__main__":
    main()
