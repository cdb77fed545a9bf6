"""Take a TF-MOT script as it is, change one import, and choose another way to prune.

    pip install 'keras_gibbs[tfmot]' scikit-learn
    python examples/tfmot_interop.py

A tf_keras network learns to read handwritten digits, pruned at 90 % by TF-MOT's own dynamics and by Gibbs pruning, and with half of its filters, those
that EDropout finds. Everything around it is TF-MOT's: `strip_pruning`, the conversion to TFLite as its guides show it. The digits come with scikit-learn;
nothing is downloaded.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_gibbs as kg
from keras_gibbs.tfmot import GibbsPruningCallback, prune_low_magnitude  # was: from tensorflow_model_optimization.sparsity.keras import prune_low_magnitude

EPOCHS, BATCH = 30, 64


def digits():
    """1437 digits to train on and 360 to test on, 8x8 pixels in [0, 1]."""
    data = load_digits()
    images = (data.images[..., None] / 16).astype("float32")
    return train_test_split(images, data.target, test_size=360, random_state=0, stratify=data.target)


def convnet():
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Conv2D(32, 3, padding="same", activation="relu", input_shape=(8, 8, 1)),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def train(pruned, x, y, callback):
    pruned.compile(tf_keras.optimizers.Adam(1e-2), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruned.fit(x, y, batch_size=BATCH, epochs=EPOCHS, callbacks=[callback], verbose=0)
    return tfmot.sparsity.keras.strip_pruning(pruned)


def run(path, images):
    """What a .tflite file makes of `images`."""
    interpreter = tf.lite.Interpreter(model_path=str(path))
    entry, exit = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.resize_tensor_input(entry, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry, images)
    interpreter.invoke()
    return interpreter.get_tensor(exit)


def main():
    x_train, x_test, y_train, y_test = digits()
    steps = EPOCHS * -(-len(x_train) // BATCH)
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.9, begin_step=0, end_step=steps // 2, frequency=10)
    half = kg.MarginEnergy() + kg.KeepPenalty(0.5)
    ways = {
        "TF-MOT's own": (lambda model: prune_low_magnitude(model, schedule), tfmot.sparsity.keras.UpdatePruningStep()),
        "Gibbs": (lambda model: prune_low_magnitude(model, method=kg.Gibbs(0.9)), GibbsPruningCallback()),
        "EDropout": (lambda model: prune_low_magnitude(model, method=kg.EDropout(objective=half)), GibbsPruningCallback()),
    }
    for name, (wrap, callback) in ways.items():
        tf_keras.utils.set_random_seed(1)
        final = train(wrap(convnet()), x_train, y_train, callback)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(final).convert())
            scores = run(path, x_test)
        kernels = np.concatenate([weight.numpy().ravel() for weight in final.weights if "kernel" in weight.name])
        difference = np.abs(scores - final.predict(x_test, verbose=0)).max()
        accuracy = np.mean(scores.argmax(axis=1) == y_test)
        print(f"{name}: {np.mean(kernels == 0):.2%} zeros, accuracy of the .tflite file {accuracy:.2%}, its scores within {difference:.1g} of the model's")


if __name__ == "__main__":
    main()
