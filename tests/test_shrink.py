"""Smaller models with the same predictions."""

import keras
import numpy as np
import pytest
from cases import JAX
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, ops
from small_networks import NETWORKS, inputs_of, outputs_of, randomize, zero_channels, zero_kernels

import keras_gibbs as kg


def assert_equal(small, model):
    inputs = inputs_of(model)
    before, after = outputs_of(model, inputs), outputs_of(small, inputs)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("name", ["nested"] if JAX else NETWORKS)
def test_channels_with_zero_weights_leave_and_predictions_stay(name):
    model = zero_channels(randomize(NETWORKS[name]()))
    small = kg.shrink(model)
    assert_equal(small, model)
    assert small.count_params() < model.count_params()
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]


@pytest.mark.once
@pytest.mark.parametrize("name", ["constants"] if JAX else NETWORKS)
@pytest.mark.parametrize("share", [0.5] if JAX else [0.5, 1.0])
def test_filters_that_are_zero_alone_leave_where_that_is_exact(name, share):
    """Biases, BatchNorm scales and offsets as they were: what is left of a filter is a constant, which a bias can take or not."""
    model = zero_kernels(randomize(NETWORKS[name](), seed=1), share)
    small = kg.shrink(model)
    assert_equal(small, model)
    assert small.count_params() < model.count_params() or name == "spatial_gate"  # there a gate that varies multiplies the constants
    assert kg.shrink(model, plan_only=True).total("parameters_after") == small.count_params()


def test_a_model_without_zeros_is_copied_as_it_is():
    model = randomize(NETWORKS["nested"]())
    small = kg.shrink(model)
    for one, other in zip(small.weights, model.weights):
        assert one is not other
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))


def test_known_sizes_of_a_small_network():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, "relu"), layers.Dense(3, "relu"), layers.Dense(2)])
    kernel, bias, second, *_ = model.weights
    kernel.assign([[1.0, 0.0, 0.0, 1.0]] * 5)
    bias.assign([0.5, -0.5, 0.5, -0.5])  # unit 1 is always 0, unit 2 always 0.5
    second.assign(np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.0]))
    small = kg.shrink(model)
    assert [tuple(weight.shape) for weight in small.weights] == [(5, 2), (2,), (2, 2), (2,), (2, 2), (2,)]
    np.testing.assert_allclose(ops.convert_to_numpy(small.weights[2]), [[1.0, 1.0], [4.0, 4.0]])
    np.testing.assert_allclose(ops.convert_to_numpy(small.weights[3]), [1.5, 1.5])  # 0.5 times 3


def test_channels_that_only_removed_channels_read_leave_too():
    model = randomize(keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(3), layers.Dense(2)]))
    model.weights[4].assign(np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))  # nothing reads units 1 and 2 of the second layer
    second = np.ones((4, 3))
    second[:2, 0] = 0.0  # and so only unit 0 counts, which does not read units 0 and 1 of the first
    model.weights[2].assign(second)
    small = kg.shrink(model)
    assert_equal(small, model)
    assert [layer.units for layer in small.layers] == [2, 1, 2]


@pytest.mark.skipif(JAX, reason="symbolic: the backend takes no part")
def test_what_keras_reshapes_before_a_nested_model_is_left_as_it_is():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(9, "relu"), layers.Dense(2)], name="inner")
    x = keras.Input((8, 2))
    model = randomize(keras.Model(x, inner(layers.Dense(1, name="squeezed")(layers.Dense(6, "relu", name="first")(x)))))
    assert kg.pruned_layers(kg.prune(model, kg.Random(0.5, structure=kg.Filter())))[0].layer.name == "first"
    small = kg.shrink(zero_channels(model))
    assert_equal(small, model)
    assert small.get_layer("first").units == 3 and small.get_layer("inner").layers[0].units == 5
    notes = {row["layer"]: row["note"] for row in kg.shrink(model, plan_only=True).rows}
    assert "inner/reshaped" in notes["squeezed"]
    assert_equal(kg.sparse_ready(model), model)


def test_a_layer_keeps_its_last_channel():
    model = randomize(NETWORKS["flattened"]())
    for layer in model.layers:
        if layer.weights and layer is not model.layers[-1]:
            layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    small = kg.shrink(model)
    assert_equal(small, model)
    assert [layer.filters for layer in small.layers if isinstance(layer, layers.Conv2D)] == [1]
    assert [layer.units for layer in small.layers if isinstance(layer, layers.Dense)] == [1, 2]


@pytest.mark.parametrize("round_to, filters", [(1, 13), (4, 16), (8, 16), (16, 16), (32, 20)])
def test_filters_are_kept_to_round_up(round_to, filters):
    model = randomize(keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(20, 3), layers.ReLU(), layers.Flatten(), layers.Dense(2)]))
    kernel, bias = model.layers[0].get_weights()
    kernel[..., 2:5] *= 5.0
    model.layers[0].set_weights([kernel, bias])
    read = np.ones((16, 20, 2))
    read[:, :7] = 0.0  # nothing reads the first seven, whatever their weights
    model.layers[-1].kernel.assign(read.reshape(-1, 2))
    small = kg.shrink(model, round_to=round_to)
    assert_equal(small, model)
    assert small.layers[0].filters == filters
    if filters == 16:  # the three of the largest weights
        np.testing.assert_array_equal(small.layers[0].get_weights()[0], kernel[..., [2, 3, 4, *range(7, 20)]])


@pytest.mark.once
def test_a_pruned_model_is_stripped_first():
    parts = [layers.Conv2D(8, 3, activation="relu"), layers.Conv2D(6, 3), layers.Flatten(), layers.Dense(3)]
    model = randomize(keras.Sequential([keras.Input((8, 8, 1)), *parts]))
    pruned = kg.prune(model, kg.Magnitude(0.5, structure=kg.Filter()))
    small = kg.shrink(pruned)
    assert_equal(small, kg.strip_pruning(pruned))
    assert [layer.filters for layer in small.layers[:2]] == [4, 3]


def test_a_smaller_model_trains_saves_and_loads(tmp_path):
    model = zero_channels(randomize(NETWORKS["two_inputs"]()))
    small = kg.shrink(model)
    small.save(tmp_path / "small.keras")
    assert_equal(keras.models.load_model(tmp_path / "small.keras"), small)
    small.compile("sgd", "mse")
    small.fit(inputs_of(small), {"a": np.zeros((3, 3)), "b": np.zeros((3, 1))}, verbose=0)


def test_a_layer_that_starts_from_an_array_gets_a_smaller_one(tmp_path):
    """As pretrained embeddings are given to Keras."""
    table = np.random.default_rng(0).normal(size=(7, 6)).astype("float32")
    table[:, :4] = 0.0
    start = keras.initializers.Constant(table)
    model = keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(7, 6, embeddings_initializer=start), layers.Flatten(), layers.Dense(2)])
    small = kg.shrink(model)
    assert small.layers[0].output_dim == 2
    small.save(tmp_path / "small.keras")
    assert_equal(keras.models.load_model(tmp_path / "small.keras"), model)


def test_flags_and_names_stay():
    model = zero_channels(randomize(NETWORKS["residual"]()))
    model.get_layer("first").trainable = False
    small = kg.shrink(model)
    assert small.name == model.name and not small.compiled
    assert [layer.trainable for layer in small.layers] == [layer.trainable for layer in model.layers]


def test_the_report_counts_parameters_and_multiply_adds():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(4, 3, name="conv")(x)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    model = keras.Model(x, layers.Dense(5, name="head")(layers.Flatten()(y)))
    kernel, bias = model.get_layer("conv").get_weights()
    kernel[..., :2], bias[:2] = 0.0, 0.0
    model.get_layer("conv").set_weights([kernel, bias])
    model.get_layer("depthwise").bias.assign(np.zeros(4))
    report = kg.shrink(model, plan_only=True)
    conv, depthwise, head = report.rows
    assert (conv["layer"], conv["channels"], conv["channels_after"]) == ("conv", 4, 2)
    assert (conv["parameters"], conv["parameters_after"]) == (4 * 28, 2 * 28)
    assert (conv["macs"], conv["macs_after"]) == (16 * 27 * 4, 16 * 27 * 2)
    assert (depthwise["macs"], depthwise["macs_after"]) == (4 * 9 * 4, 4 * 9 * 2)
    assert (head["macs"], head["macs_after"], head["channels_after"]) == (16 * 5, 8 * 5, 5)
    assert "output of the model" in head["note"] and head["prunable"] == 1.0
    assert report.total("macs") == 16 * 27 * 4 + 144 + 80
    text = str(report)
    assert "4 -> 2" in text and "total" in text


def test_the_report_says_why_zero_filters_stay():
    model = zero_kernels(randomize(NETWORKS["constants"](), seed=1))
    assert any("zero filters that stay" in row["note"] and "into a bias" in row["note"] for row in kg.shrink(model, plan_only=True).rows)


class Branching(keras.Model):
    def call(self, x):
        return x


def test_errors_come_before_anything_is_built():
    model = NETWORKS["mlp"]()
    with pytest.raises(ValueError, match="Received: round_to=0"):
        kg.shrink(model, round_to=0)
    with pytest.raises(TypeError, match="Keras 3"):
        kg.shrink("model")
    with pytest.raises(ValueError, match="from its graph"):
        kg.shrink(Branching())
    with pytest.raises(ValueError, match="not built"):
        kg.shrink(keras.Sequential([layers.Dense(3)]))

    class Own(type(model), keras.Model):
        def call(self, inputs):
            return super().call(inputs) * 2.0

    with pytest.raises(ValueError, match="own `call`"):
        kg.shrink(Own([keras.Input((3,)), layers.Dense(2)]))


# Random graphs.

LINEAR = {
    "conv": lambda size: layers.Conv2D(size, 3, padding="same"),
    "valid": lambda size: layers.Conv2D(size, 2, activation="relu"),
    "point": lambda size: layers.Conv2D(size, 1, use_bias=False),
    "transposed": lambda size: layers.Conv2DTranspose(size, 2, padding="same", activation="tanh"),
    "separable": lambda size: layers.SeparableConv2D(size, 3, padding="same"),
    "dense": lambda size: layers.Dense(size, "sigmoid"),
}
APART = {
    "norm": layers.BatchNormalization,
    "unscaled": lambda: layers.BatchNormalization(scale=False),
    "relu": layers.ReLU,
    "sigmoid": lambda: layers.Activation("sigmoid"),
    "pool": lambda: layers.AveragePooling2D(2, strides=1, padding="same"),
    "pad": lambda: layers.ZeroPadding2D(1),
    "crop": lambda: layers.Cropping2D(((0, 1), (1, 0))),
    "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
    "layer_norm": layers.LayerNormalization,
    "shift": lambda: lambda x: x * 2.0 + 1.0,
}
PAIRS = {"add": layers.Add, "multiply": layers.Multiply, "maximum": layers.Maximum, "concatenate": layers.Concatenate, "gate": None}
steps = st.tuples(st.sampled_from([*LINEAR, *APART, *PAIRS]), st.integers(1, 5), st.integers(0, 7), st.integers(0, 7))


def build(plan):
    """A network from a plan: each step works on one or two of the tensors there are; what nothing fits is made to by a convolution."""
    inputs = keras.Input((5, 5, 2))
    tensors = [layers.Conv2D(4, 3, padding="same")(inputs)]
    for kind, size, one, other in plan:
        x, y = tensors[one % len(tensors)], tensors[other % len(tensors)]
        if kind in LINEAR:
            tensors.append(LINEAR[kind](size)(x))
        elif kind in APART:
            tensors.append(APART[kind]()(x))
        elif kind == "gate":
            weights = layers.Dense(x.shape[-1], "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))
            tensors.append(layers.Multiply()([x, weights]))
        else:
            y = layers.Resizing(*x.shape[1:3])(y)
            if kind != "concatenate" and y.shape[-1] != x.shape[-1]:
                y = layers.Conv2D(x.shape[-1], 1)(y)
            tensors.append(PAIRS[kind]()([x, y]))
        if min(tensors[-1].shape[1:3]) < 3 or max(tensors[-1].shape[1:]) > 12:
            tensors.pop()
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(tensors[-1])))


def check_random_graph(plan, seed, zero):
    model = zero(randomize(build(plan), seed), seed=seed)
    small = kg.shrink(model)
    before = outputs_of(model)
    if np.abs(before).max() < 1e12:
        assert_equal(small, model)
    report = kg.shrink(model, plan_only=True)
    assert report.total("parameters_after") == small.count_params()
    assert small.count_params() < model.count_params() or any(row["note"] for row in report.rows)
    return small.count_params() < model.count_params()


many = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
few = settings(many, max_examples=3 if JAX else 25)
random_graph = given(st.lists(steps, min_size=1, max_size=8), st.integers(0, 99), st.sampled_from([zero_channels, zero_kernels]))


@pytest.mark.once
@few
@random_graph
def test_random_graphs_predict_the_same_when_shrunken(plan, seed, zero):
    check_random_graph(plan, seed, zero)


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the graphs are the same")
def test_two_hundred_random_graphs_and_most_get_smaller():
    smaller = []

    @many
    @random_graph
    def check(plan, seed, zero):
        gets_smaller = check_random_graph(plan, seed, zero)
        if zero is zero_channels:
            smaller.append(gets_smaller)

    check()
    assert len(smaller) > 100 and np.mean(smaller) >= 0.8
