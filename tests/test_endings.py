"""How `fit` ends, and goes on: stopped early, with weights restored, from a backup, in a loop of one's own."""

import warnings

import keras
import numpy as np
import pytest
from cases import JAX, xla

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
STEPS, LOSS = 5, keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(8 * STEPS, 6)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


def network(method=None, optimizer="sgd"):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(10, activation="relu"), keras.layers.Dense(2)])
    model = kg.prune(model, method or kg.Magnitude(kg.Linear(0.0, 0.8)), seed=1)
    model.compile(optimizer, LOSS)
    return model


def fit(model, *callbacks, **kwargs):
    x, y = data()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = model.fit(x, y, batch_size=8, verbose=0, shuffle=False, validation_data=(x, y), callbacks=list(callbacks), **kwargs).history
    return history, [str(warning.message) for warning in told if "progress" in str(warning.message)]


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training |= (self.epoch, batch) == self.at

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training |= (epoch, None) == self.at


def progress(model):
    (found,) = {layer.progress for layer in kg.pruned_layers(model)}
    return found


@pytest.mark.few(tensorflow=["epoch-0.25-True", "batch-0.35-False"], jax=[])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("frequency, last", [("epoch", 2 / 8), ("batch", 2.8 / 8)])
def test_a_stop_leaves_the_schedules_where_the_last_validation_saw_them(first, frequency, last):
    model, callbacks = network(), [StopAfter(2), kg.GibbsPruningCallback(frequency)]
    history, told = fit(model, *(callbacks if first else callbacks[::-1]), epochs=8)
    assert len(history["loss"]) == 3 and progress(model) == pytest.approx(last)
    assert kg.sparsity(model) == history["sparsity"][-1]
    assert model.evaluate(*data(), batch_size=8, verbose=0) == pytest.approx(history["val_loss"][-1], rel=1e-6)
    (message,) = told
    assert "stopped early" in message and "initial_epoch=3, epochs=8" in message and "`sparsity`" in message


@pytest.mark.slow
def test_what_is_stopped_goes_on_as_it_is_told_to():
    model, callback = network(), kg.GibbsPruningCallback("batch")
    fit(model, StopAfter(1), callback, epochs=4)
    history, told = fit(model, callback, epochs=4, initial_epoch=2)
    whole = network()
    expected, _ = fit(whole, kg.GibbsPruningCallback("batch"), epochs=4)
    assert not told and progress(model) == 1
    np.testing.assert_allclose(history["val_loss"], expected["val_loss"][2:], rtol=1e-6)
    assert history["sparsity"] == expected["sparsity"][2:]


def test_a_stop_within_the_last_epoch_is_one_too():
    model = network()
    _, told = fit(model, StopAfter(3, batch=1), kg.GibbsPruningCallback("batch"), epochs=4)
    assert progress(model) == pytest.approx(3.2 / 4) and len(told) == 1


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_a_stop_with_the_last_epoch_is_the_end(steps):
    model = network()
    model.compile("sgd", LOSS, steps_per_execution=steps)
    _, told = fit(model, StopAfter(3), kg.GibbsPruningCallback("epoch"), epochs=4)
    assert progress(model) == 1 and not told


@pytest.mark.slow
@pytest.mark.once
def test_a_stop_after_the_end_of_all_schedules_ends_the_horizon():
    model = network(kg.Magnitude(kg.Linear(0.0, 0.8, end=0.3), settle=0.4))
    _, told = fit(model, StopAfter(4), kg.GibbsPruningCallback("epoch"), epochs=8)
    assert progress(model) == 1 and not told
    fit(model, kg.GibbsPruningCallback("epoch"), epochs=1)
    assert kg.sparsity(model) == pytest.approx(0.8, abs=0.01)
    unsettled = network(kg.Magnitude(kg.Linear(0.0, 0.8, end=0.3), settle=0.9))
    fit(unsettled, StopAfter(4), kg.GibbsPruningCallback("epoch"), epochs=8)
    assert progress(unsettled) == 0.5


@pytest.mark.few(tensorflow=["True-True", "False-False"], jax=["True-True"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("stopped", [True, False])
def test_restored_weights_keep_the_progress_they_were_trained_at(first, stopped):
    model = network()
    best = keras.callbacks.EarlyStopping("val_loss", mode="max", patience=2 if stopped else 9, restore_best_weights=True)  # the worst: an early one
    callbacks = [best, kg.GibbsPruningCallback("batch")]
    history, told = fit(model, *(callbacks if first else callbacks[::-1]), epochs=6)
    at = int(np.argmax(history["val_loss"]))
    assert at < 5 and progress(model) == pytest.approx((at + 0.8) / 6)
    assert kg.sparsity(model) == history["sparsity"][at]
    assert model.evaluate(*data(), batch_size=8, verbose=0) == pytest.approx(history["val_loss"][at], rel=1e-6)
    with pytest.warns(UserWarning, match="have not come to their end"):
        kg.strip_pruning(model)
    if first:
        assert "restored weights" in told[0] and f"initial_epoch={at + 1}, epochs=6" in told[0]


@pytest.mark.slow
def test_a_fit_that_goes_back_is_told():
    model = network()
    fit(model, StopAfter(2), kg.GibbsPruningCallback("batch"), epochs=4)
    _, told = fit(model, kg.GibbsPruningCallback("batch"), epochs=4)
    assert "the schedules go back" in told[0] and progress(model) == 1
    model = network()
    fit(model, StopAfter(2), kg.GibbsPruningCallback("batch"), epochs=4)
    assert not fit(model, kg.GibbsPruningCallback("batch", restart=True), epochs=4)[1]


def test_a_backup_is_resumed_without_a_word_and_a_torn_one_is_told(tmp_path):
    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    def resumed(folder, change):
        with pytest.raises(KeyboardInterrupt):
            fit(network(), kg.GibbsPruningCallback("epoch"), keras.callbacks.BackupAndRestore(folder), Cut(), epochs=5)
        change(folder)
        return fit(network(), kg.GibbsPruningCallback("epoch"), keras.callbacks.BackupAndRestore(folder), epochs=5)[1]

    def tear(folder):
        metadata = folder / "training_metadata.json"
        metadata.write_text(metadata.read_text().replace("3", "2"))

    assert not resumed(tmp_path / "whole", lambda folder: None)
    (message,) = resumed(tmp_path / "torn", tear)
    assert "epoch 2 of 5" in message and "that epoch is trained twice" in message


@pytest.mark.parametrize("optimizer", ["sgd", None])
def test_a_loop_of_ones_own_moves_schedules_and_masks(optimizer):
    x, y = data()
    model = network(kg.Magnitude(kg.Linear(0.0, 0.8)))
    if optimizer is None:
        model = kg.prune(kg.strip_pruning(model), kg.Gibbs(kg.Linear(0.0, 0.8)), seed=1)  # never compiled
    own = keras.optimizers.SGD(0.05)
    own.build(model.trainable_variables)
    step = jax_step(model, own) if JAX else tensorflow_step(model, own)
    callback = kg.GibbsPruningCallback(epochs=3)
    callback.set_model(model)
    callback.set_params({"steps": STEPS})
    callback.on_train_begin()
    seen, losses = [], []
    for epoch in range(3):
        callback.on_epoch_begin(epoch)
        for batch in range(STEPS):
            callback.on_train_batch_begin(batch)
            seen.append(progress(model))
            losses.append(float(step(x[8 * batch : 8 * batch + 8], y[8 * batch : 8 * batch + 8])))
        logs = {}
        callback.on_epoch_end(epoch, logs)
        assert logs["sparsity"] == kg.sparsity(model)
    callback.on_train_end()
    np.testing.assert_allclose(seen, np.arange(3 * STEPS) / (3 * STEPS), rtol=1e-6)
    assert progress(model) == 1 and kg.sparsity(model) == pytest.approx(0.8, abs=0.01) and np.isfinite(losses).all()
    np.testing.assert_allclose(kg.strip_pruning(model).predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def tensorflow_step(model, optimizer):
    import tensorflow as tf

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, [variable.value for variable in model.trainable_variables]), model.trainable_variables)
        return loss

    return step


def jax_step(model, optimizer):
    import jax

    @jax.jit
    def compute(trainable, others, rest, x, y):
        def objective(trainable):
            outputs, now = model.stateless_call(trainable, others, x, training=True)
            return LOSS(y, outputs), now

        (loss, others), gradients = jax.value_and_grad(objective, has_aux=True)(trainable)
        return loss, others, *optimizer.stateless_apply(rest, gradients, trainable)

    def step(x, y):
        groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables
        trainable, others, rest = ([variable.value for variable in group] for group in groups)
        loss, others, trainable, rest = compute(trainable, others, rest, x, y)
        for variable, value in zip(sum(groups, []), [*trainable, *others, *rest], strict=True):
            variable.assign(value)
        return loss

    return step
