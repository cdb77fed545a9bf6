"""A run that stops and goes on, against one that never stopped: the same weights, masks and optimizer, bit for bit.

The data come in an order that is a function of the epoch, and no Keras layer has a seed of its own: Keras saves its place in neither.
"""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

import keras_gibbs as kg

EPOCHS, STEPS = 5, 6
KILLED = 3  # the epoch in whose middle the process dies


class Batches(keras.utils.PyDataset):
    """Batches whose order and noise are a function of the epoch."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        rng = np.random.default_rng([self.epoch, index])
        x = rng.normal(size=(16, 10, 10, 1)).astype("float32")
        return x, (x[:, :5].mean((1, 2, 3)) > x[:, 5:].mean((1, 2, 3))).astype("int32")


class CountEpochs(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch


class Die(keras.callbacks.Callback):
    """End the process within an epoch, at once: no handler, no cleanup."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == KILLED and batch == STEPS // 2:
            os._exit(9)


def make(weights_seed):
    """Filters by the authors' chain, and a layer of 16,200 weights, whose threshold is tracked."""
    keras.utils.set_random_seed(weights_seed)
    model = keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            kg.Pruned(keras.layers.Conv2D(10, 2, activation="relu"), kg.Gibbs(0.5, structure=kg.Filter()), seed=1),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            kg.Pruned(keras.layers.Dense(20, activation="relu"), kg.Gibbs(kg.Polynomial(0.0, 0.9, end=0.8)), seed=2),
            keras.layers.Dense(2),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(model, *callbacks, epochs=EPOCHS, **kwargs):
    batches = Batches()
    pruning = kg.GibbsPruningCallback("batch", epochs=EPOCHS)
    return model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[CountEpochs(batches), pruning, *callbacks], **kwargs).history


def everything(model):
    """All that a model is: variables (state and noise of the wrappers included), optimizer, masks, and the next random masks."""
    layers = kg.pruned_layers(model)
    masks = [np.array(layer.mask()) for layer in layers] + [np.array(layer.mask(training=True)) for layer in layers]
    return [*model.get_weights(), *(np.array(variable.value) for variable in model.optimizer.variables), *masks]


def assert_same(values, others):
    assert len(values) == len(others)
    for value, other in zip(values, others, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.fixture(scope="module")
def uninterrupted():
    model = make(weights_seed=3)
    history = fit(model)
    assert kg.pruned_layers(model)[1].layer.kernel.shape == (810, 20) and "cut_key" in kg.pruned_layers(model)[1].masked_weights[0].state
    return everything(model), history


RUN = """
    import sys, keras, test_resume as t
    model = t.make(weights_seed=3)
    t.fit(model, keras.callbacks.BackupAndRestore(sys.argv[1], save_freq="epoch"), t.Die())
"""


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(uninterrupted, tmp_path):
    backup = str(tmp_path / "backup")
    path = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(kg.__file__))])
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend(), "PYTHONPATH": path}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(RUN), backup], env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == 9, killed.stderr[-3000:]

    model = make(weights_seed=4)  # everything it goes on with comes from the backup
    history = fit(model, keras.callbacks.BackupAndRestore(backup, save_freq="epoch"))
    expected, whole = uninterrupted
    assert_same(everything(model), expected)
    assert history["loss"] == whole["loss"][KILLED:]
    assert history["energy"] == whole["energy"][KILLED:]


def test_a_saved_and_loaded_model_goes_on_as_if_it_had_not_been_saved(uninterrupted, tmp_path):
    model = make(weights_seed=3)
    first = fit(model, epochs=2)
    model.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    second = fit(again, initial_epoch=2)
    expected, whole = uninterrupted
    assert_same(everything(again), expected)
    assert first["loss"] + second["loss"] == whole["loss"]


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")  # the new one has none yet
def test_weights_alone_carry_the_state_of_the_noise(tmp_path):
    model = make(weights_seed=3)
    fit(model, epochs=1)
    model.save_weights(tmp_path / "half.weights.h5")
    other = make(weights_seed=4)
    other.load_weights(tmp_path / "half.weights.h5")
    for layer, same in zip(kg.pruned_layers(model), kg.pruned_layers(other), strict=True):
        assert layer.progress == same.progress == pytest.approx(1 / EPOCHS)
        np.testing.assert_array_equal(np.array(layer.mask(training=True)), np.array(same.mask(training=True)))
