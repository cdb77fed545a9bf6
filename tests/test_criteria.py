"""What a weight is worth, shares over a whole network, and masks that settle."""

import keras
import numpy as np
import pytest
from cases import xla
from keras import layers, ops
from scipy.special import expit

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype("float32")
Y = RNG.integers(0, 3, 64)


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3)])


def compiled(model, optimizer=None, **kwargs):
    model.compile(optimizer or keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), **kwargs)
    return model


def fit(model, epochs=1, batch_size=64, callbacks=(), **kwargs):
    return model.fit(X, Y, batch_size=batch_size, epochs=epochs, verbose=0, shuffle=False, callbacks=[kg.GibbsPruningCallback(), *callbacks], **kwargs)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def curvature(layer):
    return numpy(layer.masked_weights[0].values()["curvature"]).reshape(layer.layer.kernel.shape)


# The curvature follows the gradient at the masked kernel.


@pytest.mark.parametrize("decay", [0.0, 0.75])
@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD(0.5), keras.optimizers.Adam(0.1, clipnorm=1e-3, weight_decay=0.1, use_ema=True)])
def test_curvature_is_a_running_mean_of_squared_gradients_of_removed_weights_too(decay, optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    pruned = kg.prune(model, kg.Magnitude(0.5, criterion=kg.CurvatureEnergy(decay)), seed=0)
    pruned.compile(type(optimizer).from_config(optimizer.get_config()), "mse")
    layer, target = pruned.layers[0], RNG.normal(size=(64, 4)).astype("float32")
    expected = np.zeros((6, 4))
    for _ in range(3):
        before = [numpy(weight).astype("float64") for weight in layer.layer.weights]
        mask = numpy(layer.mask())
        pruned.train_on_batch(X, target)
        error = X @ (before[0] * mask) + before[1] - target
        gradient = X.T @ (2.0 * error / error.size)  # at the masked kernel: nothing in it knows of the mask
        expected = decay * expected + (1 - decay) * gradient**2
        assert 0 < mask.sum() < mask.size
        assert curvature(layer) == pytest.approx(expected, rel=1e-3)


@pytest.mark.once
def test_the_weights_get_the_gradient_of_the_masked_model():
    """A criterion that observes changes nothing but what it observes."""
    plain, observing = (compiled(kg.prune(network(), kg.Magnitude(0.5, criterion=criterion), seed=0)) for criterion in (kg.SquaredWeight(), Watching()))
    for _ in range(3):
        plain.train_on_batch(X, Y)
        observing.train_on_batch(X, Y)
    for one, other in zip(kg.pruned_layers(plain), kg.pruned_layers(observing), strict=True):
        assert np.array_equal(numpy(one.mask()), numpy(other.mask())) and 0 < numpy(one.mask()).mean() < 1
        assert numpy(one.layer.kernel) == pytest.approx(numpy(other.layer.kernel), abs=1e-6)
        assert curvature(other).min() > 0 or curvature(other).max() > 0


class Watching(kg.CurvatureEnergy):
    """Keeps a curvature, and ranks by squared weights."""

    def worth(self, weight, state):
        return weight * weight


def test_the_optimizer_keeps_nothing_for_the_curvature():
    dense, pruned = compiled(network(), "adam"), compiled(kg.prune(network(), kg.Magnitude(0.5, criterion=kg.CurvatureEnergy()), seed=0), "adam")
    dense.train_on_batch(X, Y)
    pruned.train_on_batch(X, Y)
    assert len(pruned.optimizer.variables) == len(dense.optimizer.variables)


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_curvature_under_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(kg.prune(network(), kg.Gibbs(0.5, criterion=kg.CurvatureEnergy(), scope="global", scale="log", settle=0.6), seed=0), "adam")
        history = fit(model, epochs=6, batch_size=16).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(history["loss"]).all() and all(np.isfinite(curvature(layer)).all() for layer in kg.pruned_layers(model))
    assert history["sparsity"][-1] == pytest.approx(0.5, abs=0.02)


@pytest.mark.once
def test_gradient_accumulation_keeps_a_curvature():
    model = compiled(kg.prune(network(), kg.Magnitude(0.5, criterion=kg.CurvatureEnergy()), seed=0), keras.optimizers.Adam(gradient_accumulation_steps=2))
    fit(model, batch_size=16)
    assert all(curvature(layer).max() > 0 and np.isfinite(curvature(layer)).all() for layer in kg.pruned_layers(model))


def test_before_any_gradient_weights_rank_by_their_squares():
    by_curvature, by_square = (kg.prune(network(), kg.Magnitude(0.5, criterion=criterion), seed=0) for criterion in (kg.CurvatureEnergy(), kg.SquaredWeight()))
    for one, other in zip(kg.pruned_layers(by_curvature), kg.pruned_layers(by_square), strict=True):
        assert np.array_equal(numpy(one.mask()), numpy(other.mask()))


# One threshold for the network.


@pytest.mark.once
@pytest.mark.parametrize("method", [kg.Magnitude, kg.Gibbs])
def test_the_network_keeps_the_weights_whose_removal_costs_most(method):
    model = compiled(kg.prune(network(), method(kg.Polynomial(0.0, 0.75, end=0.5), criterion=kg.CurvatureEnergy(0.9), scope="global"), seed=0))
    fit(model, epochs=4, batch_size=8)
    members = kg.pruned_layers(model)
    worth = np.concatenate([(numpy(layer.layer.kernel) ** 2 * (curvature(layer) + 1e-20)).ravel() for layer in members])
    masks = np.concatenate([numpy(layer.mask()).ravel() for layer in members])
    assert masks.sum() == 18  # of 72
    assert worth[masks == 1].min() > worth[masks == 0].max()


def test_a_shared_threshold_of_gibbs_separates_what_its_layer_keeps():
    model = compiled(kg.prune(network(), kg.Gibbs(0.75, scope="global", beta=1e6), seed=0))
    for layer in kg.pruned_layers(model):
        sample = numpy(layer.mask(training=True))
        assert abs(sample.sum() - numpy(layer.mask()).sum()) <= 1  # cold, a draw is the decision, but for the weight at the threshold


def test_with_a_floor_no_layer_falls_far_below_the_network():
    model = network()
    model.layers[0].kernel.assign(1e-3 * model.layers[0].kernel)  # by magnitude it would lose nearly all
    without, with_floor = (kg.pruned_layers(kg.prune(model, kg.Magnitude(0.75, scope="global", floor=floor), seed=0))[0] for floor in (0.0, 0.5))
    assert numpy(without.mask()).sum() == 0
    assert numpy(with_floor.mask()).sum() == 6  # half of a quarter of 48


def test_shares_by_shape_keep_small_kernels_denser():
    model = compiled(kg.prune(network(), kg.Gibbs(0.75, scope="shape"), seed=0))
    fit(model)
    assert [int(numpy(layer.mask()).sum()) for layer in kg.pruned_layers(model)] == [10, 8]  # of 48 and 24 weights, as 6 + 8 to 8 + 3


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_an_exact_count_holds_at_every_draw(scope):
    model = kg.prune(network(), kg.Gibbs(0.75, scale="log", beta=1.0, count="exact", scope=scope), seed=0)
    for _ in range(3):
        masks = [numpy(layer.mask(training=True)) for layer in kg.pruned_layers(model)]
        assert sum(mask.sum() for mask in masks) == 18
    assert any((mask != numpy(layer.mask())).any() for mask, layer in zip(masks, kg.pruned_layers(model), strict=True))


# Energies in the logarithm.


def test_in_the_log_scale_a_weight_is_kept_by_its_ratio_to_the_threshold():
    method, grid = kg.Gibbs(0.5, scale="log", beta=3.0), (np.arange(1000, dtype="float32") + 0.5) / 1000
    weights, threshold = np.array([0.2, 0.5, 1.0, 1.5, 4.0], "float32"), 0.9
    frequencies = []
    for factor in (1.0, 64.0):
        kernel = ops.convert_to_tensor(factor * np.repeat(weights, 1000)[None, None])
        state = {"threshold": factor**2 * threshold, "beta": 3.0, "sparsity": 0.5}
        state = {name: ops.convert_to_tensor(value, "float32") for name, value in state.items()}
        mask = method.sample(kernel, state, lambda shape, stream=0: ops.convert_to_tensor(np.tile(grid, 5)[None, None]))
        frequencies.append(numpy(mask).reshape(5, 1000).mean(axis=1))
    assert frequencies[0] == pytest.approx(expit(3.0 * np.log(weights**2 / threshold)), abs=2e-3)
    assert np.array_equal(*frequencies)


# Masks that settle.


class Masks(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.masks, self.kernels = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.masks.append([numpy(layer.mask()) for layer in kg.pruned_layers(self.model)])
        self.kernels.append([numpy(layer.layer.kernel) for layer in kg.pruned_layers(self.model)])


@pytest.mark.few(tensorflow=["method0", "method2"], jax=["method2"])
@pytest.mark.parametrize(
    "method",
    [
        kg.Magnitude(kg.Polynomial(0.0, 0.5, end=0.4), settle=0.5),
        kg.Gibbs(0.5, criterion=kg.CurvatureEnergy(0.5), scope="global", scale="log", settle=0.5),
        kg.Gibbs(0.5, structure=kg.Kernel(), settle=0.5),
    ],
)
def test_a_settled_mask_stays_while_its_weights_train_on(method):
    model, seen = compiled(kg.prune(network(), method, seed=0), keras.optimizers.SGD(1.0)), Masks()
    history = fit(model, epochs=8, batch_size=16, callbacks=[seen], validation_data=(X, Y)).history
    members = kg.pruned_layers(model)
    settled = seen.masks[-15:]
    assert all(layer.masked_weights[0].settled for layer in members)
    for index, layer in enumerate(members):
        assert all(np.array_equal(masks[index], settled[0][index]) for masks in settled)
        assert np.array_equal(numpy(layer.mask(training=True)), settled[0][index])
        assert np.abs(seen.kernels[-15][index] - seen.kernels[-1][index])[settled[0][index] == 1].max() > 0
    assert any(not np.array_equal(before, after) for masks, later in zip(seen.masks[:16], seen.masks[1:17], strict=True) for before, after in zip(masks, later))
    assert history["sparsity"][-1] == kg.sparsity(kg.strip_pruning(model)) == 0.5


def test_a_settled_mask_is_saved_and_a_restart_releases_it(tmp_path):
    model = compiled(kg.prune(network(), kg.Magnitude(0.5, settle=0.5), seed=0))
    fit(model, epochs=4, batch_size=16)
    first = kg.pruned_layers(model)[0]
    mask = numpy(first.mask())
    first.layer.kernel.assign(numpy(first.layer.kernel)[:, ::-1])
    model.save(tmp_path / "model.keras")
    loaded = kg.pruned_layers(keras.models.load_model(tmp_path / "model.keras"))[0]
    assert loaded.masked_weights[0].settled and np.array_equal(numpy(loaded.mask()), mask)
    model.fit(X, Y, verbose=0, epochs=1, callbacks=[kg.GibbsPruningCallback(restart=True, epochs=4)])
    assert not first.masked_weights[0].settled and not np.array_equal(numpy(first.mask()), mask)


def test_the_recommended_recipe_comes_to_its_sparsity_and_can_be_changed():
    model = compiled(kg.prune(network(), kg.Gibbs.recommended(0.75), seed=0))
    history = fit(model, epochs=4, batch_size=8).history
    assert history["sparsity"][-1] == kg.sparsity(kg.strip_pruning(model)) == 0.75
    assert all(layer.masked_weights[0].settled for layer in kg.pruned_layers(model))
    assert kg.Gibbs.recommended(0.9, settle=None).settle is None


# What cannot work.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kg.CurvatureEnergy(1.0), "decay=1.0"),
        (lambda: kg.Gibbs(0.5, settle=0.0), "settle=0.0"),
        (lambda: kg.Magnitude(0.5, settle=1.5), "fraction of training"),
        (lambda: kg.Gibbs(0.5, scope="network"), "scope='network'"),
        (lambda: kg.Gibbs(0.5, scale="linear"), "scale='linear'"),
        (lambda: kg.Gibbs(0.5, count="fixed"), "count='fixed'"),
        (lambda: kg.Gibbs(0.5, count="exact", structure=kg.Kernel()), "independent groups"),
        (lambda: kg.Magnitude(0.5, floor=0.2), "goes with `scope='global'`"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_criterion_is_an_object():
    with pytest.raises(TypeError, match="CurvatureEnergy"):
        kg.Magnitude(0.5, criterion="curvature")
