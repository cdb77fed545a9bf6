"""Weights at the ends of float32, and beyond."""

import keras
import numpy as np
import pytest
from cases import numpy, top, xla

import keras_gibbs as kg

both = pytest.fixture(scope="module", params=[False, True], autouse=True)(lambda request: (yield from xla(request.param)()))
SCALES = [1.0, 3e-19, 2e-23, 5e-31, 1e-37, 7e18, 4e20, 3e31, 1e36]


def wrapped(method, kernel, layer=None):
    layer = layer or keras.layers.Dense(kernel.shape[-1])
    layer.build((None, *[6] * (kernel.ndim - 2), kernel.shape[-2]))
    layer.kernel.assign(kernel)
    return kg.Pruned(layer, method, seed=1)


def used(pruned):
    """The masks of inference and of a training step, as a call computes them, of a layer with inputs of ones."""
    ones = np.eye(pruned.layer.kernel.shape[0], dtype="float32")
    return [numpy(pruned(ones, training=training)) != 0 for training in (False, True)]


@pytest.mark.once
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", [kg.Magnitude(0.6), kg.Magnitude(0.6, structure=kg.Kernel())])
def test_weights_of_any_scale_are_ranked_by_size(scale, method):
    kernel = np.random.default_rng(5).normal(size=(7, 6)).clip(-2, 2).astype("float32")
    expected = top(np.abs(kernel).ravel(), 0.6).reshape(kernel.shape)
    pruned = wrapped(method, (kernel * scale).astype("float32"))
    np.testing.assert_array_equal(numpy(pruned.mask()), expected)
    for mask in used(pruned):
        np.testing.assert_array_equal(mask, expected)


def test_weights_of_all_scales_at_once_are_ranked_by_size():
    kernel = np.geomspace(1e-36, 1e37, 64).reshape(8, 8).astype("float32") * np.resize([1, -1], (8, 8))
    pruned = wrapped(kg.Magnitude(0.5), kernel.astype("float32"))
    expected = np.arange(64).reshape(8, 8) >= 32
    np.testing.assert_array_equal(numpy(pruned.mask()), expected)
    for mask in used(pruned):
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", [kg.Magnitude(0.5, structure=kg.Filter()), kg.Gibbs(0.5, structure=kg.Kernel(), hamiltonian=kg.Independent())])
def test_groups_of_any_scale_are_ranked_by_their_mean_square(scale, method):
    kernel = np.random.default_rng(6).normal(size=(3, 3, 2, 8)).clip(-2, 2).astype("float32")
    squares = kernel.astype(float) ** 2
    within = (0, 1, 2) if isinstance(method.structure, kg.Filter) else (0, 1)
    mean = squares.mean(within, keepdims=True)
    expected = np.broadcast_to(top(mean.ravel(), 0.5).reshape(mean.shape), kernel.shape)
    pruned = wrapped(method, (kernel * scale).astype("float32"), keras.layers.Conv2D(8, 3))
    np.testing.assert_array_equal(numpy(pruned.mask()), expected)


def test_a_large_weight_tracks_its_threshold_at_any_scale():
    kernel = np.random.default_rng(7).normal(size=(120, 100)).astype("float32")
    pruned = wrapped(kg.Magnitude(0.7), (kernel * np.float32(1e-25)).astype("float32"))
    expected = top(np.abs(kernel).ravel(), 0.7).reshape(kernel.shape)
    for _ in range(2):
        inferred, trained = used(pruned)
        np.testing.assert_array_equal(inferred, expected)
        assert abs(trained.sum() - expected.sum()) <= 12


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("structure", [kg.Unstructured(), kg.Filter()])
def test_weights_that_are_lost_in_training_are_told_and_the_count_stays(value, structure):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2)])
    pruned = kg.prune(model, kg.Magnitude(0.75, structure=structure), seed=1, where="hidden")
    kernel = np.ones((6, 8), "float32")
    kernel[:, 3] = value
    kg.pruned_layers(pruned)[0].layer.kernel.assign(kernel)
    with pytest.warns(UserWarning, match=r"\['hidden/kernel'\] hold NaN"):
        stripped = numpy(kg.strip_pruning(pruned).get_layer("hidden").kernel)
    assert (stripped != 0).sum() == 12


@pytest.mark.parametrize("scale", SCALES)
def test_layers_of_any_scale_share_out_what_is_kept(scale):
    rng = np.random.default_rng(9)
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(9), keras.layers.Dense(5)])
    kernels = [rng.normal(size=(7, 9)).clip(-2, 2), 3 * rng.normal(size=(9, 5)).clip(-2, 2)]
    for layer, kernel in zip(model.layers, kernels, strict=True):
        layer.kernel.assign((kernel * scale).astype("float32"))
    expected = top(np.abs(np.concatenate([kernel.ravel() for kernel in kernels])).astype("float32"), 0.6)
    pruned = kg.prune(model, kg.Magnitude(0.6, scope="global"), seed=1)
    found = np.concatenate([numpy(layer.mask()).ravel() for layer in kg.pruned_layers(pruned)])
    np.testing.assert_array_equal(found, expected)
