"""GReg: the penalty acts on what is to go, and on nothing else."""

import keras
import numpy as np
import pytest
from cases import gradients, numpy, xla
from keras import layers

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))


def dense(name="one"):
    keras.utils.set_random_seed(1)
    layer = layers.Dense(6, name=name)
    layer.build((None, 10))
    return layer


X = np.random.default_rng(0).normal(size=(4, 10)).astype("float32")


@pytest.mark.parametrize("structure", [kg.Unstructured(), kg.Filter()], ids=["weights", "filters"])
@pytest.mark.parametrize("choose", [0.0, 0.4], ids=["greg-1", "greg-2"])
def test_the_penalty_is_in_the_gradient_of_what_is_to_go_alone(structure, choose):
    layer = kg.Pruned(dense(), kg.GReg(0.5, structure=structure, penalty_factor=kg.Linear(0.0, 2.0), choose=choose, remove=0.9))
    kernel = numpy(layer.layer.kernel)
    data = gradients(dense(), X)["one/kernel"]
    worth = np.abs(kernel) if structure == kg.Unstructured() else np.broadcast_to(np.abs(kernel).mean(axis=0), kernel.shape)
    doomed = worth < np.median(worth)
    assert doomed.mean() == 0.5
    for progress in (0.0, 0.25, 0.5):
        layer.anneal(progress)
        growing = doomed if progress >= choose else np.ones_like(doomed)
        np.testing.assert_allclose(gradients(layer, X)[layer.layer.kernel.path], data + 2 * progress * growing * kernel, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer(X), dense()(X), rtol=1e-5, atol=1e-5)  # nothing is removed yet
    layer.anneal(0.9)
    assert np.array_equal(numpy(layer.mask()), 1 - doomed)
    under = gradients(kg.Pruned(dense(), kg.Fixed((~doomed).astype("float32"))), X)["one/kernel"]
    np.testing.assert_allclose(gradients(layer, X)[layer.layer.kernel.path], under, rtol=1e-4, atol=1e-4)


@pytest.mark.once
def test_weights_that_are_to_go_shrink_and_then_go():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((10,)), layers.Dense(16, "tanh", name="one"), layers.Dense(3, name="two")])
    pruned = kg.prune(model, kg.GReg(0.75, penalty_factor=kg.Linear(0.0, 5.0, end=0.4), remove=0.7))
    pruned.compile(keras.optimizers.SGD(0.05), "mse")
    y = np.random.default_rng(1).normal(size=(64, 3))
    share = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            (masked, _) = (layer.masked_weights[0] for layer in kg.pruned_layers(self.model))
            share.append(
                float(
                    np.abs(numpy(masked.value()) * (1 - numpy(masked.masks.restore(masked.state["keeps"].value)))).sum() / np.abs(numpy(masked.value())).sum()
                )
            )

    history = pruned.fit(np.repeat(X, 16, axis=0), y, batch_size=8, epochs=10, verbose=0, callbacks=[kg.GibbsPruningCallback(update_freq="batch"), Watch()])
    assert share[6] < 0.05 * share[0]
    assert history.history["sparsity"][5] == 0.0
    assert [float(numpy(layer.mask()).sum()) for layer in kg.pruned_layers(pruned)] == [40, 12]
    assert kg.sparsity(kg.strip_pruning(pruned)) == 0.75


def test_a_model_that_was_never_trained_warns_and_loses_nothing():
    model = keras.Sequential([keras.Input((10,)), layers.Dense(6)])
    with pytest.warns(UserWarning, match="have not come to their end"):
        assert kg.sparsity(kg.strip_pruning(kg.prune(model, kg.GReg(0.5)))) == 0.0


def test_what_does_not_fit_is_refused():
    for options, message in (({"choose": 0.7}, "choose=0.7, remove=0.6"), ({"penalty_factor": -1.0}, "penalty_factor=-1.0")):
        with pytest.raises(ValueError, match=message):
            kg.GReg(0.5, **options)


def test_channels_are_pushed_to_zero_together_and_leave_the_network():
    def network():
        keras.utils.set_random_seed(2)
        inputs = keras.Input((6, 6, 2))
        x = layers.Conv2D(6, 3, padding="same", name="one")(inputs)
        y = layers.Conv2D(6, 3, padding="same", name="two")(layers.ReLU()(x))
        return keras.Model(inputs, layers.Dense(3, name="top")(layers.GlobalAveragePooling2D()(layers.Add()([x, y]))))

    def stepped(model):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        rng = np.random.default_rng(0)
        model.train_on_batch(rng.normal(size=(8, 6, 6, 2)).astype("float32"), rng.normal(size=(8, 3)).astype("float32"))
        return model

    before, dense = network(), stepped(network())
    pruned = kg.prune(before, kg.GReg(0.5, structure=kg.Filter(coupled=True), penalty_factor=kg.Linear(0.0, 2.0), remove=0.9))
    for layer in kg.pruned_layers(pruned):
        layer.anneal(0.5)  # lambda is 1
    stepped(pruned)
    kernels = [numpy(before.get_layer(name).kernel) for name in ("one", "two")]
    worth = np.mean([np.abs(kernel).mean(axis=(0, 1, 2)) for kernel in kernels], axis=0)
    doomed = worth < np.median(worth)
    for name, kernel in zip(("one", "two"), kernels, strict=True):
        pushed = numpy(dense.get_layer(name).kernel) - numpy(pruned.get_layer(name).layer.kernel)
        np.testing.assert_allclose(pushed, 0.1 * kernel * doomed, atol=1e-5)
    for layer in kg.pruned_layers(pruned):
        layer.anneal(1.0)
    assert [kg.shrink(pruned).get_layer(name).filters for name in ("one", "two")] == [3, 3]
