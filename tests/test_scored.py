"""Masks that are found before training: every score against an oracle of its own in NumPy."""

import itertools

import keras
import numpy as np
import pytest
from cases import numpy, same, weights, xla
from keras import layers

import keras_gibbs as kg
from keras_gibbs.scores.batches import batches
from keras_gibbs.scores.losses import ModelLoss
from keras_gibbs.scores.on_data import connection_sensitivity, gradient_flow
from keras_gibbs.scores.synaptic_flow import SynapticFlow
from keras_gibbs.structure.prunable import prunable_weights

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(150, 4)).astype("float32"), rng.integers(0, 3, 150)  # two batches, of 128 and 22


def network(compiled=True, **options):
    keras.utils.set_random_seed(1)
    dense = [layers.Dense(5, "tanh", name="one", **options), layers.Dense(3, name="two", **options)]
    model = keras.Sequential([keras.Input((4,)), *dense])
    if compiled:
        model.compile("sgd", LOSS)
    return model


def images():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, name="stem")(inputs)
    y = layers.Conv2D(6, 3, padding="same", name="branch")(layers.ReLU()(layers.BatchNormalization(name="norm")(x)))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(3, name="top")(x))


IMAGES = rng.normal(size=(20, 8, 8, 2)).astype("float32"), rng.integers(0, 3, 20)


def masks_of(model):
    return {path: numpy(mask) for layer in kg.pruned_layers(model) for path, mask in layer.masks().items()}


def numpy_loss(one, two, temperature=1.0):
    """The loss of `network` without biases, in float64."""
    logits = np.tanh(X.astype("float64") @ one) @ two / temperature
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(Y)), Y])


def slopes(function, kernels, step=1e-5):
    """The derivatives of `function` with respect to a factor on every weight, by central differences."""
    found = [np.zeros_like(kernel) for kernel in kernels]
    for number, kernel in enumerate(kernels):
        for index in np.ndindex(kernel.shape):
            values = []
            for sign in (1, -1):
                changed = [other.copy() for other in kernels]
                changed[number][index] *= 1 + sign * step
                values.append(function(*changed))
            found[number][index] = (values[0] - values[1]) / (2 * step)
    return found


def problem(temperature=1.0):
    model = network()
    variables = [weight.variable for weight in prunable_weights(model)]
    loss = ModelLoss(model, variables, batches((X, Y)), None, temperature)
    return loss, [numpy(variable).astype("float64") for variable in variables], [np.ones(variable.shape, "float32") for variable in variables]


def test_snip_is_the_slope_of_the_loss_in_the_mask():
    loss, kernels, ones = problem()
    for score, slope in zip(connection_sensitivity(loss, loss.values(), ones), slopes(numpy_loss, kernels), strict=True):
        np.testing.assert_allclose(score, np.abs(slope), rtol=1e-3, atol=1e-6)


def test_grasp_is_what_half_the_squared_gradient_norm_gains_with_a_weight():
    loss, kernels, ones = problem(temperature=2.0)

    def half_squared_norm(*kernels):
        relative = slopes(lambda *changed: numpy_loss(*changed, temperature=2.0), kernels, 1e-4)
        return 0.5 * sum(np.sum((slope / kernel) ** 2) for slope, kernel in zip(relative, kernels, strict=True))

    for score, slope in zip(gradient_flow(loss, loss.values(), ones), slopes(half_squared_norm, kernels, 1e-4), strict=True):
        np.testing.assert_allclose(score, slope, rtol=1e-2, atol=1e-5)


def test_a_removed_weight_has_a_sensitivity_of_its_own_under_the_mask():
    loss, kernels, masks = problem()
    masks[0][:2] = 0

    def masked(one, two):
        return numpy_loss(one * masks[0], two)

    expected = slopes(lambda one, two: numpy_loss(one * masks[0] + (one - kernels[0]) * (1 - masks[0]), two), kernels)
    assert masked(*kernels) != numpy_loss(*kernels)
    np.testing.assert_allclose(connection_sensitivity(loss, loss.values(), masks)[0], np.abs(expected[0]), rtol=1e-3, atol=1e-6)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*removed all of")
def test_regularizers_and_several_outputs_count_as_the_compiled_loss_says():
    inputs = keras.Input((4,))
    hidden = layers.Dense(5, "tanh", kernel_regularizer="l2", name="one")(inputs)
    model = keras.Model(inputs, {"a": layers.Dense(3, name="a")(hidden), "b": layers.Dense(1, name="b")(hidden)})
    model.compile("sgd", {"a": LOSS, "b": "mse"}, loss_weights={"a": 1.0, "b": 0.0})
    pruned = kg.prune(model, kg.SNIP(0.5), data=(X, {"a": Y, "b": np.ones((150, 1), "float32")}))
    single = keras.Model(inputs, model.output["a"])
    alone = kg.prune(single, kg.SNIP(15 / 35), data=(X, Y), loss=LOSS)
    assert masks_of(pruned)["b/kernel"].sum() == 0  # no weight in the loss
    kept = masks_of(pruned)["a/kernel"].sum() + masks_of(pruned)["one/kernel"].sum()
    assert kept == sum(mask.sum() for mask in masks_of(alone).values()) == 20
    assert all(np.array_equal(mask, masks_of(pruned)[path]) for path, mask in masks_of(alone).items())


@pytest.mark.parametrize("bias", [False, True])
def test_synflow_is_conserved_from_layer_to_layer(bias):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu", use_bias=False, name="one"),
            layers.BatchNormalization(center=False, name="norm"),
            layers.Conv2D(5, 3, activation="relu", use_bias=bias, bias_initializer="ones", name="two"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, use_bias=False, name="three"),
        ]
    )
    found = prunable_weights(model)
    masks = [np.random.default_rng(1).integers(0, 2, weight.shape) for weight in found]
    for given in ([np.ones(weight.shape) for weight in found], masks):
        sums = [score.sum() for score in SynapticFlow(model, found).scores(given)]
        assert np.allclose(sums, sums[0], rtol=1e-4) != bias  # a bias is a source of its own
    assert all(score[mask == 0].sum() == 0 for score, mask in zip(SynapticFlow(model, found).scores(masks), masks, strict=True))


def test_synflow_reaches_beyond_the_range_of_float32_and_agrees_with_numpy():
    kernels = np.random.default_rng(2).normal(scale=1e3, size=(16, 6, 6))
    model = keras.Sequential([keras.Input((6,))] + [layers.Dense(6, use_bias=False, name=f"dense_{index}") for index in range(16)])
    for layer, kernel in zip(model.layers, kernels, strict=True):
        layer.kernel.assign(kernel)
    forward, backward = [np.ones(6)], [np.ones(6)]
    for kernel in np.abs(kernels.astype("float32").astype("float64")):
        forward.append(forward[-1] @ kernel)
    for kernel in np.abs(kernels.astype("float32").astype("float64"))[::-1]:
        backward.append(kernel @ backward[-1])
    assert forward[-1].sum() > 3.4e38
    expected = [np.abs(kernel) * np.outer(forward[index], backward[15 - index]) for index, kernel in enumerate(kernels)]
    found = SynapticFlow(model, prunable_weights(model)).scores([np.ones((6, 6))] * 16)
    largest = max(score.max() for score in expected)
    np.testing.assert_allclose(np.array(found), np.array(expected) / largest, rtol=1e-5)
    assert abs(kg.sparsity(kg.prune(model, kg.SynFlow(0.5, steps=3))) - 0.5) < 1e-9


@pytest.mark.once
def test_synflow_sees_through_softmax_and_relu6():
    def network(last, activation):
        keras.utils.set_random_seed(1)
        cap = layers.ReLU(6.0) if activation == "relu6" else layers.ReLU()
        return keras.Sequential(
            [keras.Input((6,)), layers.Dense(50, activation, name="one"), cap, layers.Dense(4, last, name="two"), layers.Dense(3, last, name="three")]
        )

    bounded, plain = network("softmax", "relu6"), network("linear", "relu")
    bounded.set_weights([10 * value for value in plain.get_weights()])
    plain.set_weights(bounded.get_weights())
    first, second = (masks_of(kg.prune(model, kg.SynFlow(0.5, steps=5))) for model in (bounded, plain))
    assert all(np.array_equal(mask, second[path]) for path, mask in first.items())


METHODS = {
    "snip": kg.SNIP,
    "grasp": kg.GraSP,
    "synflow": lambda *args, **kwargs: kg.SynFlow(*args, steps=5, **kwargs),
    "iterative-snip": lambda *args, **kwargs: kg.IterativeSNIP(*args, steps=3, **kwargs),
    "force": lambda *args, **kwargs: kg.FORCE(*args, steps=3, **kwargs),
}


@pytest.mark.few(jax=["grasp", "synflow"])
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_masks_are_exact_train_and_leave_the_model_as_it_was(make):
    model = images()
    before, total = weights(model), 108 + 324 + 18
    method = make(0.7, rescale=True)
    pruned = kg.prune(model, method, data=IMAGES, loss=LOSS)
    masks = masks_of(pruned)
    assert same(before, weights(model))
    assert sum(mask.sum() for mask in masks.values()) == total - int(0.7 * total + 0.5)
    assert {row["method"] for row in kg.summary(pruned).rows if row["kept"]} == {method.brief()}
    for masked in (masked for layer in kg.pruned_layers(pruned) for masked in layer.masked_weights):  # the variance is restored
        kernel = next(weight.variable for weight in prunable_weights(model) if weight.path == masked.path)
        assert np.square(numpy(masked.masked())).sum() == pytest.approx(np.square(numpy(kernel)).sum(), rel=1e-5)
    pruned.compile("adam", LOSS)
    pruned.fit(*IMAGES, verbose=0, callbacks=[kg.GibbsPruningCallback()])
    assert all(np.array_equal(mask, masks[path]) for path, mask in masks_of(pruned).items())
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(method)) == method


@pytest.mark.once
@pytest.mark.parametrize(
    "options, expected",
    [
        ({"scope": "layer"}, [54, 162, 9]),
        ({"structure": kg.Kernel()}, None),
        ({"structure": kg.NofM(2, 4), "scope": "layer"}, None),
    ],
)
def test_structures_and_scopes(options, expected):
    masks = list(masks_of(kg.prune(images(), kg.GraSP(0.5, **options), data=IMAGES, loss=LOSS)).values())
    if expected:
        assert [mask.sum() for mask in masks] == expected
    elif isinstance(options["structure"], kg.Kernel):
        assert all(set(np.unique(mask.sum(axis=(0, 1)))) <= {0, mask.shape[0] * mask.shape[1]} for mask in masks if mask.ndim == 4)
    else:
        assert [mask.sum(axis=-2).min() == mask.sum(axis=-2).max() == kept for mask, kept in zip(masks, (2, 4, 4), strict=True)] == [True] * 3  # of 2, 6, 6


@pytest.mark.parametrize("method, returns", [(kg.IterativeSNIP(0.9, steps=6), False), (kg.FORCE(0.9, steps=6), True)], ids=["iterative-snip", "force"])
def test_what_is_removed_comes_back_with_force_only(method, returns, monkeypatch):
    steps, cut = [], kg.SNIP.cut
    monkeypatch.setattr(kg.SNIP, "cut", lambda *args: steps.append(cut(*args)) or steps[-1])
    kg.prune(images(), method, data=IMAGES, loss=LOSS)
    grown = sum(np.sum((later == 1) & (earlier == 0)) for before, after in itertools.pairwise(steps) for earlier, later in zip(before, after, strict=True))
    assert len(steps) == 6 and (grown > 0) == returns
    kept = [sum(mask.sum() for mask in masks) for masks in steps]
    assert kept == [450 - int(450 * (1 - 0.1 ** (step / 6)) + 0.5) for step in range(1, 7)]


def test_a_lost_layer_is_named_and_a_floor_keeps_it():
    model = images()
    model.get_layer("branch").kernel.assign(model.get_layer("branch").kernel * 1e-6)
    with pytest.warns(UserWarning, match=r"removed all of \['branch/kernel'\].*floor"):
        kg.prune(model, kg.SNIP(0.9), data=IMAGES, loss=LOSS)
    masks = masks_of(kg.prune(model, kg.SNIP(0.9, floor=0.5), data=IMAGES, loss=LOSS))
    assert masks["branch/kernel"].sum() == int(0.05 * 324 + 1e-9) and sum(mask.sum() for mask in masks.values()) == 45


def test_a_data_set_is_taken_batch_by_batch():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return X[50 * index : 50 * index + 50], Y[50 * index : 50 * index + 50]

    whole, cut = (masks_of(kg.prune(network(), kg.SNIP(0.5), data=data)) for data in ((X, Y), Batches()))
    assert all(np.array_equal(mask, cut[path]) for path, mask in whole.items())


@pytest.mark.parametrize(
    "data, options, message",
    [
        (None, {}, "Received: data=None"),
        (X, {}, "must be a tuple of arrays"),
        ((X,), {}, r"A batch is `\(x, y\)`"),
        ((X, Y[:5]), {}, "arrays of one length"),
        ((X[:0], Y[:0]), {}, "at least 1"),
        ((np.where(X > 2, np.nan, X), Y), {}, "NaN"),
        ((X[:, :3], Y), {}, "does not fit model"),
        ((X, Y), {"compiled": False}, "not compiled"),
        ((np.full_like(X, 1e38), Y), {}, "finite"),
    ],
)
def test_bad_data_is_refused_before_anything_changes(data, options, message):
    model = network(**options)
    model.layers[0].kernel.assign(model.layers[0].kernel * 100)
    if "finite" in message:
        model.layers[0].activation = keras.activations.linear
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        kg.prune(model, kg.SNIP(0.5), data=data)
    assert same(before, weights(model))


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="must be a number"):
        kg.SNIP(kg.Linear(0.0, 0.9))
    for make, message in (
        (lambda: kg.SNIP(90), "Received: sparsity=90"),
        (lambda: kg.GraSP(0.5, temperature=0), "temperature=0"),
        (lambda: kg.GraSP(0.5, scope="lamp"), "lamp"),
        (lambda: kg.FORCE(0.5, steps=0), "steps=0"),
        (lambda: kg.SNIP(0.5, scope="layer", floor=0.5), "floor=0.5"),
        (lambda: kg.Pruned(network().layers[0], kg.SNIP(0.5)), "whole Keras 3 model"),
        (lambda: kg.prune(keras.Sequential([keras.Input((None, 2)), layers.Conv1D(3, 2)]), kg.SynFlow(0.5)), "must have a size"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
