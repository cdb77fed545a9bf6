"""What Keras itself offers beside pruning: other callbacks in any order, gradient accumulation, averages of weights, int8 and LoRA after strip."""

import keras
import numpy as np
import pytest
from cases import JAX, numpy, xla

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(48, 7)).astype("float32")
    return x, (x[:, :2].sum(1) > 0).astype("int32")


def network(method=None, optimizer="adam", **kwargs):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(12, activation="relu"), keras.layers.Dense(2)])
    pruned = kg.prune(model, method or kg.Magnitude(kg.Linear(0.0, 0.75, end=0.5)), seed=1)
    pruned.compile(optimizer, LOSS, metrics=["accuracy"], **kwargs)
    return pruned


def fit(model, *callbacks, epochs=5):
    x, y = data()
    return model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, validation_data=(x, y), callbacks=list(callbacks)).history


@pytest.mark.few(tensorflow=["False"], jax=["True"])
@pytest.mark.filterwarnings("ignore:The schedule")
@pytest.mark.parametrize("first", [True, False])
def test_the_callbacks_of_keras_stand_before_or_after(first, tmp_path):
    def others():
        return [
            keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=0, mode="max"),  # at every epoch that is better
            keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
            keras.callbacks.EarlyStopping("val_loss", mode="max", patience=9),
        ]

    model, callback = network(), kg.GibbsPruningCallback("batch")
    history = fit(model, *([*others(), callback] if first else [callback, *others()]))
    assert history["learning_rate"][-1] < history["learning_rate"][0]
    assert kg.sparsity(model) == pytest.approx(0.75, abs=0.01)
    for epoch in (1, 3, 5):
        loaded = keras.models.load_model(tmp_path / f"{epoch}.keras")
        assert loaded.evaluate(*data(), batch_size=8, verbose=0)[0] == pytest.approx(history["val_loss"][epoch - 1], rel=1e-6)
        assert kg.sparsity(loaded) == history["sparsity"][epoch - 1]


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="Keras has `SwapEMAWeights` on TensorFlow only")
@pytest.mark.filterwarnings("ignore:The schedule")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("by_epoch", [True, False])
def test_averaged_weights_have_the_masks_of_their_own_sizes(first, by_epoch):
    model, callback = network(kg.Gibbs(0.6), keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9)), kg.GibbsPruningCallback("batch")
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=by_epoch)
    fit(model, *([swap, callback] if first else [callback, swap]))
    x, _ = data()
    np.testing.assert_allclose(model.predict(x, verbose=0), kg.strip_pruning(model).predict(x, verbose=0), atol=1e-6)
    assert kg.sparsity(model) == pytest.approx(0.6, abs=0.01)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:The schedule")
def test_accumulated_gradients_prune_as_a_larger_batch_does():
    x, y = data()
    accumulated = network(kg.Magnitude(kg.Linear(0.0, 0.75)), keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    accumulated.fit(x, y, batch_size=8, epochs=4, verbose=0, shuffle=False, callbacks=[kg.GibbsPruningCallback("epoch")])
    whole = network(kg.Magnitude(kg.Linear(0.0, 0.75)), keras.optimizers.SGD(0.1))
    whole.fit(x, y, batch_size=16, epochs=4, verbose=0, shuffle=False, callbacks=[kg.GibbsPruningCallback("epoch")])
    for one, other in zip(accumulated.trainable_variables, whole.trainable_variables, strict=True):
        np.testing.assert_allclose(numpy(one), numpy(other), rtol=1e-4, atol=1e-6)
    for one, other in zip(kg.pruned_layers(accumulated), kg.pruned_layers(whole), strict=True):
        np.testing.assert_array_equal(numpy(one.mask()), numpy(other.mask()))


@pytest.mark.few(tensorflow=["3"], jax=["3"])
@pytest.mark.filterwarnings("ignore:The schedule")
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_several_steps_an_execution_end_with_the_same_sparsity(steps):
    model = network(steps_per_execution=steps)
    history = fit(model, kg.GibbsPruningCallback("batch"))
    assert history["sparsity"][-1] == kg.sparsity(model) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD(0.1, use_ema=True), keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(use_ema=True))])
def test_averages_and_observed_gradients_are_refused_before_the_first_step(optimizer):
    model = network(kg.Magnitude(0.5, criterion=kg.CurvatureEnergy()), optimizer)
    before = model.get_weights()
    with pytest.raises(ValueError, match="use_ema=True"):
        fit(model, kg.GibbsPruningCallback())
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def stripped():
    model = network(kg.Magnitude(0.75))
    fit(model, kg.GibbsPruningCallback(), epochs=1)
    return kg.strip_pruning(model)


def test_int8_keeps_the_zeros_of_a_stripped_model():
    model = stripped()
    zeros = [numpy(layer.kernel) == 0 for layer in model.layers]
    model.quantize("int8")
    for layer, zero in zip(model.layers, zeros, strict=True):
        assert (numpy(layer.kernel)[zero] == 0).all() and (numpy(layer.kernel)[~zero] != 0).any() and zero.mean() >= 0.7


@pytest.mark.slow
@pytest.mark.once
def test_lora_keeps_the_zeros_of_the_base_kernel():
    model = stripped()
    layer = model.layers[0]
    before = numpy(layer.kernel)
    layer.enable_lora(2)
    x, y = data()
    model.compile("adam", LOSS)
    model.fit(x, y, epochs=2, verbose=0)
    (base,) = (weight for weight in layer.non_trainable_weights if weight.shape == layer.kernel.shape)
    np.testing.assert_array_equal(numpy(base), before)
    assert (numpy(layer.kernel)[before == 0] != 0).any()  # the merged kernel is dense
