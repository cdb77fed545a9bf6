"""Every kind of layer: what of it is pruned, and that pruning it is right. One row a kind."""

import keras
import numpy as np
import pytest
from cases import gradients, numpy, randomize, xla
from keras import layers, ops

import keras_gibbs as kg
from keras_gibbs.model import selector
from keras_gibbs.structure.prunable import prunable_weights

without_xla = pytest.fixture(scope="module", autouse=True)(xla(on=False))


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """A transformer block as users write it: parts without names, one of them a Sequential, and no `build`."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.attention = layers.MultiHeadAttention(2, 4)
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.feed = keras.Sequential([layers.Dense(12, activation="relu"), layers.Dense(width)])

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.feed(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable(package="tests")
class Scaled(layers.Dense):
    """A subclass of a layer that is known."""

    def call(self, x):
        return 2.0 * super().call(x)


SEQUENCE, IMAGE, VOLUME = (5, 6), (6, 6, 4), (4, 4, 4, 2)
# name: the layer, the shape of an input, and the local paths of its prunable weights.
KINDS = {
    "separable1d": (lambda: layers.SeparableConv1D(5, 3), SEQUENCE, {"depthwise_kernel", "pointwise_kernel"}),
    "separable2d": (lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2), IMAGE, {"depthwise_kernel", "pointwise_kernel"}),
    "simple-rnn": (lambda: layers.SimpleRNN(4), SEQUENCE, {"simple_rnn_cell/kernel", "simple_rnn_cell/recurrent_kernel"}),
    "gru": (lambda: layers.GRU(4), SEQUENCE, {"gru_cell/kernel", "gru_cell/recurrent_kernel"}),
    "lstm": (lambda: layers.LSTM(4, return_sequences=True), SEQUENCE, {"lstm_cell/kernel", "lstm_cell/recurrent_kernel"}),
    "conv-lstm": (lambda: layers.ConvLSTM2D(3, 2), (3, *IMAGE), {"conv_lstm_cell/kernel", "conv_lstm_cell/recurrent_kernel"}),
    "rnn-of-cells": (
        lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)]),
        SEQUENCE,
        {f"stacked_rnn_cells/{cell}/{name}" for cell in ("lstm_cell", "gru_cell") for name in ("kernel", "recurrent_kernel")},
    ),
    "bidirectional": (
        lambda: layers.Bidirectional(layers.GRU(3, name="gru")),
        SEQUENCE,
        {f"{way}_gru/gru_cell/{name}" for way in ("forward", "backward") for name in ("kernel", "recurrent_kernel")},
    ),
    "time-distributed": (lambda: layers.TimeDistributed(layers.Conv1D(3, 2)), (3, *SEQUENCE), {"conv1d/kernel"}),
    "spectral": (lambda: layers.SpectralNormalization(layers.Dense(5)), (6,), {"dense/kernel"}),
    "block": (
        Block,
        (5, 8),
        {f"multi_head_attention/{part}/kernel" for part in ("query", "key", "value", "attention_output")}
        | {"sequential/dense/kernel", "sequential/dense_1/kernel"},
    ),
    "subclass": (lambda: Scaled(5), (6,), {"kernel"}),
    "dense": (lambda: layers.Dense(5), (6,), {"kernel"}),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def network(name):
    make, shape, _ = KINDS[name]
    keras.utils.set_random_seed(1)
    inputs = keras.Input(shape)
    x = make()
    x.name = "part"
    x = x(inputs)
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


def attentive(kind):
    """Networks whose layer has several inputs, or integers."""
    keras.utils.set_random_seed(1)
    if kind == "embedding":
        inputs = keras.Input((5,), dtype="int32")
        x = layers.LSTM(3, name="lstm")(layers.Embedding(20, 6, mask_zero=True, name="part")(inputs))
        return keras.Model(inputs, layers.Dense(2, name="head")(x))
    inputs = [keras.Input((5, 8)), keras.Input((7, 8))]
    layer = layers.MultiHeadAttention(2, 4, name="part") if kind == "attention" else layers.GroupQueryAttention(4, 4, 2, name="part")
    x = layer(*inputs) if kind == "attention" else layer(query=inputs[0], value=inputs[1])
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


SEVERAL = ("embedding", "attention", "grouped-attention")


def any_network(name):
    return attentive(name) if name in SEVERAL else network(name)


def data(model, samples=12):
    rng = np.random.default_rng(0)
    x = [
        rng.integers(0, 20, (samples, *tensor.shape[1:])) if "int" in tensor.dtype else rng.normal(size=(samples, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]
    return x if len(x) > 1 else x[0], rng.normal(size=(samples, 2)).astype("float32")


def losses(model, epochs=3):
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model.fit(*data(model), batch_size=4, epochs=epochs, shuffle=False, verbose=0).history["loss"]


@pytest.mark.few(jax=["rnn-of-cells"])
@pytest.mark.filterwarnings("ignore:Only")
@every_kind
def test_the_weights_of_a_kind_are_found_under_their_paths(name):
    pruned = kg.prune(network(name), kg.Magnitude(0.5), where="^part/")
    assert {path.removeprefix("part/") for layer in kg.pruned_layers(pruned) for path in layer.masks()} == KINDS[name][2]


@pytest.mark.once
@pytest.mark.parametrize(
    "where, expected",
    [
        ("^lstm$", {"lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel"}),
        ("^lstm_cell$", {"lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel"}),
        ("^lstm/", {"lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel"}),
        ("recurrent_kernel$", {"lstm/lstm_cell/recurrent_kernel"}),
        ("^inner$", {"inner/dense/kernel"}),
        ("^dense$", {"inner/dense/kernel", "block/sequential/dense/kernel"}),
        (["^block$", "^head$"], {f"block/multi_head_attention/{part}/kernel" for part in ("query", "key", "value", "attention_output")}
         | {"block/sequential/dense/kernel", "block/sequential/dense_1/kernel", "head/kernel"}),
        ("^multi_head_attention$", {f"block/multi_head_attention/{part}/kernel" for part in ("query", "key", "value", "attention_output")}),
    ],
)  # fmt: skip
def test_where_takes_the_name_of_a_layer_and_of_those_it_stands_in(where, expected):
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="dense")], name="inner")
    model = keras.Sequential([keras.Input((5, 8)), Block(name="block"), layers.LSTM(8, name="lstm"), inner, layers.Dense(2, name="head")])
    weights = [weight for weight in prunable_weights(model) if selector(where)(weight.path, weight.owner)]
    assert {weight.path for weight in weights} == expected


@pytest.mark.few(tensorflow=["separable2d", "lstm", "attention", "embedding", "block", "time-distributed"], jax=["lstm", "attention", "embedding"])
@pytest.mark.filterwarnings("ignore:Only")
@pytest.mark.parametrize("name", [*KINDS, *SEVERAL])
def test_all_ones_masks_train_like_the_dense_model(name):
    dense = losses(any_network(name))
    assert losses(kg.prune(any_network(name), kg.Fixed(), seed=0)) == pytest.approx(dense, rel=1e-6 if name != "embedding" else 1e-5)


@pytest.mark.few(tensorflow=["separable2d", "lstm", "attention", "embedding", "block", "bidirectional"], jax=["lstm", "attention"])
@pytest.mark.filterwarnings("ignore:Only")
@pytest.mark.parametrize("name", [*KINDS, *SEVERAL])
def test_half_of_every_weight_goes_and_stays_away(name, tmp_path):
    pruned = kg.prune(any_network(name), kg.Magnitude(0.5), seed=0)
    for row in kg.summary(pruned).rows:
        if row["method"]:
            assert row["kept"] == row["weights"] - int(0.5 * row["weights"] + 0.5)
    losses(pruned, 1)
    x, _ = data(pruned)
    expected = pruned.predict(x, verbose=0)
    stripped = kg.strip_pruning(pruned)
    assert not kg.pruned_layers(stripped) and [layer.name for layer in stripped.layers] == [layer.name for layer in pruned.layers]
    np.testing.assert_allclose(stripped.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)
    assert kg.sparsity(stripped) == kg.sparsity(pruned) == pytest.approx(0.5, abs=0.01)
    pruned.save(tmp_path / "kind.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "kind.keras").predict(x, verbose=0), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.few(jax=["lstm", "separable2d"])
@every_kind
def test_removed_weights_get_no_gradient(name):
    make, shape, paths = KINDS[name]
    layer = make()
    layer(ops.ones((1, *shape)))
    if name != "spectral":
        randomize(layer)
    pruned = kg.Pruned(layer, kg.Magnitude(0.5))
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    found = gradients(pruned, x)
    masks = {masked.variable.path: numpy(masked.mask()) for masked in pruned.masked_weights}
    assert len(masks) == len(paths)
    for path, mask in masks.items():
        assert (found[path][mask == 0] == 0).all() and (found[path][mask == 1] != 0).any()


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Only")
def test_filters_leave_out_what_is_tied_and_name_it():
    inputs = keras.Input(SEQUENCE)
    x = layers.Conv1D(6, 2, name="conv")(inputs)
    x = layers.LSTM(4, name="lstm")(layers.SeparableConv1D(5, 2, name="separable")(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(8, name="hidden")(x)))
    rows = {row["path"]: row for row in kg.summary(kg.prune(model, kg.Magnitude(0.5, structure=kg.Filter()))).rows}
    assert {path for path, row in rows.items() if row["method"]} == {"conv/kernel", "separable/pointwise_kernel", "hidden/kernel"}
    for path in ("lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel", "separable/depthwise_kernel"):
        assert "tied" in rows[path]["note"]
    assert "output of the model" in rows["head/kernel"]["note"]


def test_one_mask_a_step_for_all_places_where_a_layer_is_called():
    inputs = [keras.Input((6,)), keras.Input((6,))]
    shared = layers.Dense(40, use_bias=False, name="shared")
    model = keras.Model(inputs, layers.Subtract()([shared(x) for x in inputs]))
    pruned = kg.prune(model, kg.Gibbs(0.5, beta=0.01), seed=0)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    layer = kg.pruned_layers(pruned)[0]
    assert layer.sites == 2
    for _ in range(2):
        assert np.abs(numpy(pruned([x, x], training=True))).max() == 0  # two masks would differ
    first, second = (numpy(layer.mask(training=True)) for _ in range(2))
    assert (first != second).any()


def test_the_parts_of_a_bidirectional_have_the_same_paths_in_every_model_of_a_process():
    def paths():
        inputs = keras.Input(SEQUENCE)
        model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Bidirectional(layers.GRU(3), name="both")(inputs)))
        return [path for layer in kg.pruned_layers(kg.prune(model, kg.Magnitude(0.5), seed=0)) for path in layer.masks()]

    assert paths() == paths()
