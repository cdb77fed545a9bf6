"""Take half of the channels out of a small residual network while it learns to read digits, and ship what is left: smaller and faster everywhere.

    python examples/smaller_and_faster.py

Trains the network dense, prunes its channels while training goes on, sets the BatchNormalization statistics anew, shrinks the model and exports both, in
float32 and int8, to build/smaller/. The digits come with scikit-learn; nothing is downloaded.
"""

import statistics
import time
from pathlib import Path

import keras
from ai_edge_litert.interpreter import Interpreter
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_gibbs as kg

FOLDER = Path(__file__).resolve().parent.parent / "build" / "smaller"
BATCH, DENSE_EPOCHS, PRUNING_EPOCHS = 64, 10, 15
ENCODINGS = {"float32": "dense", "int8": "int8"}


def digits():
    """1437 digits to train on and 360 to test on, 8x8 pixels in [0, 1]."""
    data = load_digits()
    images = (data.images[..., None] / 16).astype("float32")
    return train_test_split(images, data.target, test_size=360, random_state=0, stratify=data.target)


def residual_network():
    layers = keras.layers

    def convolution(x, filters, strides=1):
        return layers.BatchNormalization(momentum=0.9)(layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x))

    inputs = keras.Input((8, 8, 1))
    x = layers.ReLU()(convolution(inputs, 32))
    for filters, strides in ((32, 1), (64, 2)):
        y = convolution(layers.ReLU()(convolution(x, filters, strides)), filters)
        shortcut = x if strides == 1 else convolution(x, filters, strides)
        x = layers.ReLU()(layers.Add()([shortcut, y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def compiled(model, rate, epochs, samples):
    steps = epochs * -(-samples // BATCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)), loss, metrics=["accuracy"])
    return model


def microseconds(paths, image, rounds=30, calls=20):
    """The median time of one image through each file on one thread; the files take turns, so that what slows the machine slows all."""
    runners = []
    for path in paths:
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        runners.append(interpreter.invoke)
    times = [[] for _ in runners]
    for _ in range(rounds):
        for run, own in zip(runners, times):
            start = time.perf_counter()
            for _ in range(calls):
                run()
            own.append((time.perf_counter() - start) / calls * 1e6)
    return [statistics.median(own) for own in times]


def main():
    keras.utils.set_random_seed(1)
    x_train, x_test, y_train, y_test = digits()

    print("Training the dense network ...", flush=True)
    dense = compiled(residual_network(), 3e-3, DENSE_EPOCHS, len(x_train))
    dense.fit(x_train, y_train, batch_size=BATCH, epochs=DENSE_EPOCHS, verbose=0)

    print("Pruning half of its channels while it trains on ...", flush=True)
    method = kg.Magnitude(kg.Polynomial(0.0, 0.5, end=0.4), structure=kg.Filter(coupled=True))
    pruned = compiled(kg.prune(dense, method, seed=1), 1e-3, PRUNING_EPOCHS, len(x_train))
    pruned.fit(x_train, y_train, batch_size=BATCH, epochs=PRUNING_EPOCHS, verbose=0, callbacks=[kg.GibbsPruningCallback(update_freq="batch")])
    final = kg.recalibrate(kg.strip_pruning(pruned), x_train)
    work = kg.shrink(final, plan_only=True)
    print(work)
    small = kg.shrink(final)

    print("Exporting, and running the exported files on the test set ...", flush=True)
    models = {"dense": dense, "small": small}
    files = {(name, kind): FOLDER / f"{name}_{kind}.tflite" for name in models for kind in ENCODINGS}
    reports = {}
    for (name, kind), path in files.items():
        measured_on = {"representative_data": x_train[:200]} if kind == "int8" else {}
        reports[name, kind] = kg.export_tflite(models[name], path, encoding=ENCODINGS[kind], data=(x_test, y_test), verbose=0, **measured_on)
    latency = dict(zip(files, microseconds(files.values(), x_test[:1])))

    table = Table("handwritten digits, 360 test images", title="Before and after")
    for heading in ("dense", "small", "ratio"):
        table.add_column(heading, justify="right")

    def row(name, before, after, form="{:,.0f}"):
        table.add_row(name, form.format(before), form.format(after), f"{after / before:.2f}")

    row("parameters", dense.count_params(), small.count_params())
    row("multiply-adds", work.total("macs"), work.total("macs_after"))
    for kind in ENCODINGS:
        before, after = (reports[name, kind].chosen for name in models)
        row(f".tflite file, {kind}, bytes", before["raw_bytes"], after["raw_bytes"])
        row(f"accuracy of the {kind} file in LiteRT", before["accuracy"], after["accuracy"], "{:.2%}")
        row(f"microseconds an image, {kind}, one thread", latency["dense", kind], latency["small", kind], "{:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
