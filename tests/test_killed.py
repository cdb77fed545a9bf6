"""SIGKILL in the midst of `fit`: a run that is killed again and again ends with the bits of one that never was.

Recurrent layers, attention, a subclassed model, and coupled filters. Each is killed at moments that nobody chose: so long after so many batches, also while
Keras writes its backup: the file is then torn, and `double_checkpoint=True` goes back to the one before.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import keras_gibbs as kg

EPOCHS, STEPS = 6, 3
RUN = "import sys, test_killed as t; print('digest', t.digest(t.trained(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))"


@keras.saving.register_keras_serializable(package="tests")
class Reader(keras.Model):
    """A subclassed model with attention, a recurrent layer and statistics."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.norm = layers.BatchNormalization()
        self.recurrent = layers.GRU(6)
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.recurrent(self.norm(x + self.attention(x, x))))


def recurrent():
    rnn = layers.Bidirectional(layers.LSTM(5, return_sequences=True))
    return keras.Sequential([keras.Input((5, 8)), rnn, layers.SimpleRNN(6), layers.Dense(2)])


def attention():
    inputs = keras.Input((5, 8))
    x = layers.LayerNormalization()(inputs + layers.MultiHeadAttention(2, 4)(inputs, inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.SeparableConv1D(6, 2)(x))))


def subclassed():
    model = Reader()
    model(batch(0, 0)[0])
    return model


def coupled():
    """A residual connection with BatchNormalization behind it, and a concatenation."""
    inputs = keras.Input((5, 8))
    x = layers.Conv1D(6, 3, padding="same")(inputs)
    x = layers.BatchNormalization()(layers.Add()([x, layers.Conv1D(6, 3, padding="same")(layers.ReLU()(x))]))
    x = layers.Concatenate()([x, layers.Conv1D(4, 1, activation="relu")(x)])
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


MODELS = {
    "recurrent": (recurrent, kg.Gibbs(0.7, beta=kg.Geometric(1.0, 1e3))),
    "attention": (attention, kg.Gibbs.recommended(0.7)),
    "subclassed": (subclassed, kg.Gibbs(kg.Polynomial(0.0, 0.7), beta=kg.Geometric(1.0, 1e3))),
    "coupled": (coupled, kg.Gibbs(kg.Polynomial(0.0, 0.5), structure=kg.Filter(coupled=True), beta=kg.Geometric(1.0, 1e3))),
}


def batch(epoch, index):
    rng = np.random.default_rng([epoch, index])
    x = rng.normal(size=(8, 5, 8)).astype("float32")
    return x, (x.mean((1, 2)) > 0).astype("int32")


class Batches(keras.utils.PyDataset):
    """Batches that are a function of the epoch."""

    epoch = 0

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        return batch(self.epoch, index)


class Tell(keras.callbacks.Callback):
    """Tell the data the epoch, and end the process `delay` seconds after its `last` batch has begun."""

    def __init__(self, data, last, delay):
        super().__init__()
        self.data, self.left, self.delay = data, last, delay

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


def trained(name, backup=None, last=0, delay=0.0):
    """A model, trained to the end of its epochs from where `backup` stands."""
    make, method = MODELS[name]
    keras.utils.set_random_seed(1)
    model = kg.prune(make(), method, seed=1, data=batch(0, 0))
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = Batches()
    callbacks = [Tell(data, last, delay), kg.GibbsPruningCallback("batch")]
    callbacks += [keras.callbacks.BackupAndRestore(backup, double_checkpoint=True)] if backup else []
    model.fit(data, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def digest(model):
    """The bits of all weights, of the state of masks and noise, of the optimizer, and of the masks."""
    masks = [mask for layer in kg.pruned_layers(model) for mask in layer.masks().values()]
    arrays = [np.array(variable.value) for variable in [*model.variables, *model.optimizer.variables]] + [np.array(mask) for mask in masks]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def run(name, backup, last, delay=0.0):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(kg.__file__).parents[1])])
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend(), "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", RUN, name, backup, str(last), str(delay)], env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["subclassed", "coupled"])
def test_a_killed_run_goes_on_with_the_same_bits(name, tmp_path):
    """One moment, in the middle of an epoch, with all kinds in one model; the other tests kill 25 times."""
    killed = run(name, str(tmp_path), 2 * STEPS + 2)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    resumed = trained(name, str(tmp_path))
    assert digest(resumed) == digest(trained(name))
    masks = [np.array(mask) for layer in kg.pruned_layers(resumed) for mask in layer.masks().values()]
    assert any(0 < mask.mean() < 1 for mask in masks)


@pytest.mark.slow
@pytest.mark.parametrize("name, kills", [("recurrent", 7), ("attention", 7), ("subclassed", 6), ("coupled", 5)])
def test_a_run_that_is_killed_again_and_again_loses_nothing(name, kills, tmp_path):
    moments = random.Random(f"{name} {keras.backend.backend()}")
    whole = run(name, str(tmp_path / "whole"), 0)
    assert whole.returncode == 0, whole.stderr[-3000:]
    expected, backup, done = whole.stdout.split()[-1], tmp_path / "killed", 0
    backup.mkdir()
    while True:
        last, delay = (moments.randint(1, 2 * STEPS), moments.uniform(0, 0.2)) if done < kills else (0, 0.0)
        ended = run(name, str(backup), last, delay)
        if ended.returncode != -signal.SIGKILL:
            break
        done += 1
        backup.mkdir(exist_ok=True)  # Keras deletes it where training has ended, and the kill came after that
        print(f"{name}: killed {delay:.3f} s after the beginning of batch {last}; left {sorted(path.name for path in backup.iterdir())}", flush=True)
        if not (backup / "training_metadata.json").exists():  # Keras cannot read its first backup where that was cut off, of a dense model neither
            (backup / "latest.weights.h5").unlink(missing_ok=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "trained twice" not in ended.stderr and ended.stdout.split()[-1] == expected
    assert done >= kills // 2
    print(f"{name}: {done} kills, the bits of the run that was never killed", flush=True)
