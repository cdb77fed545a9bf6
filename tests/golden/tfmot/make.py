"""Write the golden files of the adapter for TF-MOT: tf_keras models as version 0.1.0 saves them, with what they predicted before and after folding.

The files here were written by version 0.1.0 at commit 86fc4b8; run this only with that version.

    KERAS_BACKEND=tensorflow KERAS_GIBBS_XLA=0 PYTHONPATH=.:tests python -m golden.tfmot.make

Each case gives a model in the midst of an epoch, whose masks are not folded into its weights, and `<name>.npz`: a batch, its labels, the predictions of the
loaded model, of the folded and of the stripped one, the zeros of every stripped kernel in order, and the loss of one more step.
"""

import warnings
from pathlib import Path

import numpy as np
import tf_keras
from golden.make import pack
from golden.tfmot.readings import read
from tf_keras import layers

import keras_gibbs as kg
from keras_gibbs import tfmot as kg_tfmot

FOLDER = Path(__file__).parent
BATCH = 8


def images():
    return tf_keras.Sequential(
        [
            layers.Conv2D(6, 3, activation="relu", bias_initializer="random_normal", input_shape=(6, 6, 2), name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(8, activation="relu", bias_initializer="random_normal", name="dense"),
            layers.Dense(3, name="scores"),
        ],
        name="images",
    )


def sequences():
    return tf_keras.Sequential([layers.LSTM(6, input_shape=(5, 4), name="lstm"), layers.Dense(3, name="scores")], name="sequences")


CASES = {
    "gibbs.h5": (images, lambda: kg.Gibbs(0.5)),
    "gibbs-filter.keras": (images, lambda: kg.Gibbs(0.5, structure=kg.Filter(), hamiltonian=kg.FilterCoupling(sweeps=2))),
    "gumbel.keras": (images, lambda: kg.GumbelSoftmax()),
    "magnitude-lstm.h5": (sequences, lambda: kg.Magnitude(kg.Polynomial(0.2, 0.6))),
    "edropout.keras": (images, lambda: kg.EDropout(4)),
}


def write(name, network, method):
    tf_keras.utils.set_random_seed(1)
    plain, rng = network(), np.random.default_rng(2)
    inputs, labels = rng.normal(size=(2 * BATCH, *plain.input_shape[1:])).astype("float32"), rng.integers(0, 3, 2 * BATCH)
    model = kg_tfmot.prune(plain, method(), seed=4)
    model.compile(tf_keras.optimizers.Adam(0.02), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    checkpoint = tf_keras.callbacks.ModelCheckpoint(str(FOLDER / name), save_freq=3)  # once, after the first step of the second epoch
    pruning = kg_tfmot.GibbsPruningCallback("batch", epochs=4)
    model.fit(inputs, labels, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[pruning, checkpoint])
    if name.endswith(".keras"):
        pack(FOLDER / name)
    readings = read(FOLDER / name, inputs[:BATCH], labels[:BATCH])
    np.savez_compressed(FOLDER / f"{name}.npz", inputs=inputs[:BATCH], labels=labels[:BATCH], **readings)
    print(f"{name:20} {(FOLDER / name).stat().st_size} bytes, zeros {readings['zeros']}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # schedules that jump, and have not come to their end
    for name, (network, method) in CASES.items():
        write(name, network, method)
