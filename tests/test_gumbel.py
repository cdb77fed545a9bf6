"""Learned masks: the laws of Gumbel-softmax extraction, and of the two methods it is compared with."""

import contextlib
import math
import warnings

import keras
import numpy as np
import pytest
from cases import JAX, xla
from keras import layers, ops

import keras_gibbs as kg
from keras_gibbs.numerics.noise import Uniform

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
numpy = keras.ops.convert_to_numpy
LEARNED = {"gumbel": kg.GumbelSoftmax, "supermask": kg.Supermask, "edge-popup": lambda **kwargs: kg.EdgePopup(0.5, **kwargs)}
every_learned = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in LEARNED.items()])


def gradient(function, x):
    """Value and gradient of a scalar function at an array."""
    if JAX:
        import jax

        value, slope = jax.value_and_grad(function)(x)
        return float(value), np.asarray(slope)
    import tensorflow as tf

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return float(value), tape.gradient(value, x).numpy()


def wrapped(method, logits, seed=0):
    """A pruned Dense layer of the logits' shape, with these logits."""
    layer = layers.Dense(logits.shape[1])
    layer.build((None, logits.shape[0]))
    pruned = kg.Pruned(layer, method, seed=seed)
    set_logits(pruned, logits)
    return pruned


def set_logits(pruned, logits):
    variable = next(variable for variable in pruned.weights if variable.name == "logits")
    variable.assign(np.reshape(logits, variable.shape) / pruned.method.logit_rate)


def convnet(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(),
            layers.Dense(10, name="unwrapped"),
            layers.Dense(10, name="scores"),
        ]
    )


def data(count=64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 8, 8, 1)).astype("float32"), rng.integers(0, 10, count)


def compiled(model, rate=1e-2):
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_hard_samples_keep_with_probability_sigmoid_of_the_logit_at_any_temperature(temperature):
    method = kg.GumbelSoftmax(temperature=temperature)
    for logit in (-2.0, 0.0, 1.0):
        pruned = wrapped(method, np.full((100, 100), logit))
        kept = sum(float(numpy(pruned.mask(training=True)).sum()) for _ in range(4))
        expected, n = 1 / (1 + np.exp(-logit)), 40_000
        assert abs(kept - n * expected) < 5 * np.sqrt(n * expected * (1 - expected))  # 5 sigma


def test_soft_samples_at_logit_zero_and_temperature_one_are_uniform():
    y = soft(np.zeros(40_000), np.random.default_rng(0).uniform(size=40_000), 1.0)
    assert abs(y.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 40_000) and abs((y * (1 - y)).mean() - 1 / 6) < 5 * np.sqrt(1 / 180 / 40_000)


def soft(logits, uniform, temperature):
    """The soft mask in NumPy."""
    return 1 / (1 + np.exp(-(logits + np.log(uniform) - np.log1p(-uniform)) / temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_straight_through_gradient_is_that_of_the_soft_mask_with_the_same_noise(temperature):
    method = kg.GumbelSoftmax(temperature=temperature, logit_rate=1.0)
    rng = np.random.default_rng(0)
    logits, above = rng.normal(size=(2, 1, 1, 50)).astype("float32")
    uniform = Uniform(3, 5)
    weight = ops.ones((1, 1, 50, 1))
    _, slope = gradient(lambda u: ops.sum(above[..., None] * method.sample(weight, {"logits": u}, uniform)), logits)
    y = soft(logits, numpy(uniform((1, 1, 50))), temperature)
    assert np.allclose(slope, above * y * (1 - y) / temperature, rtol=1e-4, atol=1e-7)
    assert set(np.unique(numpy(method.sample(weight, {"logits": logits}, uniform)))) == {0.0, 1.0}


def test_the_gradient_of_a_supermask_is_that_of_its_probability():
    logits = np.random.default_rng(0).normal(size=(1, 1, 50)).astype("float32")
    method = kg.Supermask(logit_rate=1.0)
    _, slope = gradient(lambda u: ops.sum(method.sample(ops.ones((1, 1, 50, 1)), {"logits": u}, Uniform(3, 5))), logits)
    p = 1 / (1 + np.exp(-logits))
    assert np.allclose(slope, p * (1 - p), rtol=1e-5)


def test_two_gumbels_and_any_common_shift_give_the_mask_of_one_logistic():
    rng = np.random.default_rng(0)
    logits, shift = rng.normal(size=(2, 1, 1, 200))
    first, second = rng.gumbel(size=(2, 1, 1, 200))
    keep = logits + shift + first > shift + second  # the paper's two classes, logits (m + a, a)
    uniform = 1 / (1 + np.exp(-(first - second)))  # the difference of two Gumbels is logistic
    method = kg.GumbelSoftmax(logit_rate=1.0)
    mask = method.sample(ops.ones((1, 1, 200, 1)), {"logits": logits.astype("float32")}, lambda shape: uniform.astype("float32")[..., None])
    assert np.array_equal(numpy(mask)[..., 0], keep)


@pytest.mark.few(tensorflow=["gumbel-smart", "gumbel-dynamic", "supermask-None", "edge-popup-smart"], jax=["gumbel-smart", "supermask-None", "edge-popup-None"])
@pytest.mark.parametrize("rescale", ["smart", "dynamic", None])
@every_learned
def test_only_logits_scales_and_statistics_move(make, rescale):
    pruned = compiled(kg.prune(convnet(), make(rescale=rescale), where="conv|scores", seed=0))
    still = {w.path: numpy(w) for w in pruned.weights if w.name in ("kernel", "bias", "gamma", "beta")}
    moving = {w.path: numpy(w) for w in pruned.weights if w.name in ("logits", "moving_mean") or (w.name == "scale" and rescale == "smart")}
    assert len(still) == 8 and len(moving) == (5 if rescale == "smart" else 3)
    names = sorted(w.name for w in pruned.trainable_weights)
    assert names == ["logits"] * 2 + (["scale"] * 2 if rescale == "smart" else [])
    pruned.fit(*data(), epochs=2, verbose=0)
    now = {w.path: numpy(w) for w in pruned.weights}
    assert all(np.array_equal(value, now[path]) for path, value in still.items())
    assert not any(np.array_equal(value, now[path]) for path, value in moving.items())


def test_stripping_gives_every_layer_its_trainable_flag_back():
    model = convnet()
    model.get_layer("unwrapped").trainable = False
    stripped = kg.strip_pruning(kg.prune(model, kg.GumbelSoftmax(), where="conv|scores"))
    assert [layer.trainable for layer in stripped.layers] == [layer.trainable for layer in model.layers]
    assert len(stripped.trainable_weights) == len(model.trainable_weights)
    assert stripped.get_config() == model.get_config()


@pytest.mark.once
@pytest.mark.parametrize("rescale", ["smart", "dynamic", None])
def test_the_scale_is_folded_into_the_stripped_kernel(rescale):
    pruned = compiled(kg.prune(convnet(), kg.GumbelSoftmax(rescale=rescale, scale_rate=3.0), seed=0), 0.05)
    pruned.fit(*data(), epochs=2, verbose=0)
    x, _ = data()
    assert np.allclose(kg.strip_pruning(pruned).predict(x, verbose=0), pruned.predict(x, verbose=0), atol=1e-6)
    values = np.abs(numpy(kg.strip_pruning(pruned).get_layer("conv").kernel))
    size = np.unique(values[values > 0])
    constant = np.std(numpy(convnet().get_layer("conv").kernel))
    assert size.max() - size.min() < 1e-6 and (rescale is None) == np.isclose(size[0], constant, rtol=1e-5)


def test_signed_constants_keep_signs_and_the_standard_deviation():
    model = convnet()
    original = {name: numpy(model.get_layer(name).kernel) for name in ("conv", "scores")}
    for choice, changed in ((None, {"conv", "scores"}), (True, {"conv", "scores"}), ("conv", {"conv"}), (False, set())):
        pruned = kg.prune(model, kg.GumbelSoftmax(signed_constant=choice), where="conv|scores")
        for name, kernel in original.items():
            now = numpy(pruned.get_layer(name).layer.kernel)
            expected = np.where(kernel < 0, -1, 1) * kernel.std() if name in changed else kernel
            assert np.allclose(now, expected, rtol=1e-6)
    kept = kg.prune(model, kg.GumbelSoftmax(train_weights=True)).get_layer("conv").layer.kernel
    assert np.array_equal(numpy(kept), original["conv"])


@contextlib.contextmanager
def no_user_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_signed_constants_of_a_layer_that_the_first_step_builds():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = kg.Pruned(layers.Dense(20, activation="relu"), kg.GumbelSoftmax(), seed=0)
            self.scores = layers.Dense(2)

        def call(self, x):
            return self.scores(self.hidden(x))

    model = Own()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(np.ones((8, 6), "float32"), np.zeros(8, "int32"), verbose=0, epochs=2)
    sizes = np.abs(numpy(model.hidden.layer.kernel))
    assert sizes.shape == (6, 20) and sizes.min() == sizes.max() > 0


def test_a_trained_model_is_not_overwritten_in_silence():
    model = compiled(convnet())
    with no_user_warnings():
        kg.prune(model, kg.GumbelSoftmax())
    model.fit(*data(), epochs=1, verbose=0)
    with pytest.warns(UserWarning, match="looks trained.*signed_constant=False"):
        kg.prune(model, kg.GumbelSoftmax())
    with no_user_warnings():
        kg.prune(model, kg.GumbelSoftmax(train_weights=True))


@every_learned
def test_sample_and_extraction_agree_for_large_logits(make):
    signs = np.where(np.random.default_rng(0).uniform(size=(20, 30)) < 0.5, -1.0, 1.0)
    signs.flat[:300], signs.flat[300:] = 1.0, -1.0
    logits = 25.0 * signs if make is not LEARNED["edge-popup"] else np.where(signs > 0, 25.0, 0.1)
    pruned = wrapped(make(), logits)
    assert np.array_equal(numpy(pruned.mask()), signs > 0)
    assert np.array_equal(numpy(pruned.mask(training=True)), signs > 0)


def test_extraction_keeps_logits_that_never_moved():
    assert numpy(wrapped(kg.GumbelSoftmax(), np.zeros((3, 4))).mask()).all()
    assert not numpy(wrapped(kg.GumbelSoftmax(initial_logit=-1.0), np.full((3, 4), -1.0)).mask()).any()


@pytest.mark.parametrize("structure, groups", [(kg.Unstructured(), 72), (kg.Kernel(), 8), (kg.Filter(), 8)])
def test_there_is_one_logit_per_group(structure, groups):
    pruned = kg.prune(convnet(), kg.GumbelSoftmax(structure=structure), where="conv").get_layer("conv")
    logits = next(variable for variable in pruned.weights if variable.name == "logits")
    assert logits.shape == (1, 1, groups)
    mask = numpy(pruned.mask(training=True)).reshape(9, 8)
    assert isinstance(structure, kg.Unstructured) or np.array_equal(mask.min(axis=0), mask.max(axis=0))


def test_a_rate_multiplies_the_step_of_sgd_momentum_and_adam_alike():
    from keras_gibbs.methods.learned import multiplied

    for optimizer in (lambda rate: keras.optimizers.SGD(rate), lambda rate: keras.optimizers.SGD(rate, momentum=0.9), lambda rate: keras.optimizers.Adam(rate)):
        plain, scaled = keras.Variable(np.full(3, 0.5, "float32")), keras.Variable(np.full(3, 0.05, "float32"))
        big, small = optimizer(1e-3 * 10), optimizer(1e-3)
        slope = np.array([1.0, -2.0, 0.5], "float32")
        for _ in range(3):
            big.apply([ops.convert_to_tensor(slope)], [plain])
            small.apply([ops.convert_to_tensor(slope)], [scaled])
        value, through = gradient(lambda u, slope=slope: ops.sum(slope * multiplied(u, 10.0)), numpy(scaled))
        assert np.allclose(through, slope)  # the gradient of the variable itself
        assert np.allclose(numpy(multiplied(scaled.value, 10.0)), numpy(plain), rtol=1e-5)


@pytest.mark.once
def test_the_target_is_met_exactly_and_the_logits_go_there():
    pruned = compiled(kg.prune(convnet(), kg.GumbelSoftmax(train_weights=True, sparsity=0.9, penalty_weight=1.0), seed=0))
    history = pruned.fit(*data(), epochs=25, verbose=0, callbacks=[kg.GibbsPruningCallback()])
    for layer in kg.pruned_layers(pruned):
        groups = layer.masked_weights[0].groups
        assert numpy(layer.mask()).sum() == max(1, groups - int(0.9 * groups + 0.5))
    assert abs(history.history["kept"][-1] - 0.1) < 0.05
    assert kg.sparsity(kg.strip_pruning(pruned)) == kg.sparsity(pruned)


@every_learned
def test_saving_and_loading_goes_on_bit_for_bit(make, tmp_path):
    x, y = data()
    straight = compiled(kg.prune(convnet(), make(), where="conv|scores", seed=0))
    straight.fit(x, y, epochs=2, shuffle=False, verbose=0)
    straight.save(tmp_path / "model.keras")
    straight.fit(x, y, epochs=2, shuffle=False, verbose=0)
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert sorted(w.name for w in resumed.trainable_weights) == sorted(w.name for w in straight.trainable_weights)
    resumed.fit(x, y, epochs=2, shuffle=False, verbose=0)
    assert all(np.array_equal(numpy(a), numpy(b)) for a, b in zip(straight.weights, resumed.weights, strict=True))


def test_frozen_layers_stay_frozen_when_weights_train():
    model = convnet()
    model.get_layer("conv").trainable = False
    pruned = compiled(kg.prune(model, kg.GumbelSoftmax(train_weights=True), where="conv|scores", seed=0))
    before = numpy(pruned.get_layer("conv").layer.kernel)
    pruned.fit(*data(), epochs=1, verbose=0)
    assert np.array_equal(before, numpy(pruned.get_layer("conv").layer.kernel))
    assert np.any(numpy(next(w for w in pruned.get_layer("conv").weights if w.name == "logits")))
    assert [layer.trainable for layer in kg.strip_pruning(pruned).layers] == [layer.trainable for layer in model.layers]


def test_bad_input_is_refused_before_training():
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`temperature` must be (greater than 0|a finite number)"):
            kg.GumbelSoftmax(temperature=temperature)
    for make in (lambda: kg.GumbelSoftmax(sparsity=1.0), lambda: kg.GumbelSoftmax(sparsity=90), lambda: kg.EdgePopup(-0.1)):
        with pytest.raises(ValueError, match=r"`sparsity` must lie in \[0, 1\)"):
            make()
    with pytest.raises(ValueError, match="`rescale` must be"):
        kg.GumbelSoftmax(rescale="clever")
    model = convnet()
    for layer in model.layers:
        layer.trainable = False
    frozen = compiled(kg.prune(model, kg.GumbelSoftmax(train_weights=True)))
    with pytest.raises(ValueError, match="all of them are frozen"):
        frozen.fit(*data(), verbose=0, callbacks=[kg.GibbsPruningCallback()])
    pruned = kg.prune(convnet(), kg.GumbelSoftmax())
    pruned.compile(keras.optimizers.Lamb(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="Lamb measures its update"):
        pruned.fit(*data(), verbose=0, callbacks=[kg.GibbsPruningCallback()])


def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16).reshape(-1, 8, 8, 1).astype("float32"), labels[order]
    return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])


def digits_network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def accuracy(model, epochs):
    """Test accuracy of a model, stripped where it is pruned, after training on the digits. The rate decays to 0: at a constant one the last epoch is chance."""
    train, test = digits()
    rate = keras.optimizers.schedules.CosineDecay(1e-2, epochs * math.ceil(len(train[0]) / 64))
    compiled(model, rate).fit(*train, batch_size=64, epochs=epochs, verbose=0, callbacks=[kg.GibbsPruningCallback()] if kg.pruned_layers(model) else [])
    scores = kg.strip_pruning(model).predict(test[0], verbose=0)
    return float(np.mean(scores.argmax(-1) == test[1]))


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the same mathematics, and half a minute of it")
def test_masks_of_a_random_network_read_digits_and_beat_random_masks_with_trained_scales():
    learned = kg.prune(digits_network(), kg.GumbelSoftmax(), seed=0)
    reached = accuracy(learned, epochs=20)
    removed = kg.sparsity(learned)
    chance = kg.prune(digits_network(), kg.GumbelSoftmax(sparsity=removed, penalty_weight=1e-9, logit_rate=1e-9), seed=0)
    rng = np.random.default_rng(1)
    for layer in kg.pruned_layers(chance):
        next(w for w in layer.weights if w.name == "logits").assign(rng.normal(size=(1, 1, layer.masked_weights[0].groups)) * 1e9)
    by_chance = accuracy(chance, epochs=10)
    assert abs(kg.sparsity(chance) - removed) < 0.01
    assert reached >= 0.95 and reached - by_chance >= 0.30, (reached, by_chance)


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the same mathematics, and half a minute of it")
def test_joint_training_at_ninety_percent_loses_little_to_dense():
    dense = accuracy(digits_network(), epochs=15)
    pruned = kg.prune(digits_network(), kg.GumbelSoftmax(train_weights=True, sparsity=0.9), seed=0)
    joint = accuracy(pruned, epochs=30)
    assert abs(kg.sparsity(pruned) - 0.9) < 1e-4
    assert joint >= dense - 0.015, (joint, dense)
