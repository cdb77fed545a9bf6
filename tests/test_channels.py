"""Which channels of a model are one, and which cannot go."""

import keras
import numpy as np
import pytest
from cases import JAX
from keras import layers, ops
from small_networks import NETWORKS, outputs_of, randomize, zero_channels

from keras_gibbs.structure.channels import channel_groups
from keras_gibbs.structure.trace import trace

pytestmark = pytest.mark.skipif(JAX, reason="symbolic: the backend takes no part")


def members(group, role):
    return sorted(member.name for member in group.of_role(role))


def group_of(model, name):
    """The groups that a weight makes channels of."""
    return [group for group in channel_groups(model) for member in group.of_role("produces") if member.name == name]


def test_a_trace_enters_nested_models_at_every_call():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")], name="inner")
    x, y = keras.Input((4,)), keras.Input((4,))
    middle = keras.Model(x, layers.ReLU(name="relu")(inner(x)), name="middle")
    calls = trace(keras.Model([x, y], layers.Add(name="add")([middle(x), inner(y)])))
    assert sorted(call.path for call in calls.calls) == ["add", "inner", "inner/dense", "middle", "middle/inner", "middle/inner/dense", "middle/relu"]
    by_path = {call.path: call for call in calls.calls}
    assert by_path["middle/relu"].inputs == [by_path["middle/inner/dense"].outputs]  # across the border of the inner model
    assert by_path["add"].inputs == [by_path["middle/relu"].outputs, by_path["inner/dense"].outputs]
    assert calls.outputs == [by_path["add"].outputs]


def test_following_channels_adds_nothing_to_a_model():
    model = randomize(NETWORKS["residual"]())
    layer = model.get_layer("first")
    before, output = outputs_of(model), layer.output
    channel_groups(model)
    assert layer.output is output  # a layer with a second node has no `output`
    np.testing.assert_array_equal(outputs_of(model), before)


def test_a_residual_connection_ties_the_filters_at_both_ends():
    x = keras.Input((6, 6, 3))
    first = layers.Conv2D(4, 3, padding="same", name="first")(x)
    norm = layers.BatchNormalization(name="norm")(first)
    second = layers.Conv2D(4, 3, padding="same", name="second")(norm)
    y = layers.Dense(2, name="head")(layers.Flatten()(layers.Add()([norm, second])))
    first_inputs, tied, outputs = channel_groups(keras.Model(x, y))
    assert members(tied, "produces") == ["first/kernel", "second/kernel"]
    assert members(tied, "follows") == ["first/bias", "norm/beta", "norm/gamma", "second/bias"]
    assert members(tied, "carries") == ["norm/moving_mean", "norm/moving_variance"]
    assert members(tied, "consumes") == ["head/kernel", "second/kernel"]
    assert (tied.size, tied.reason) == (4, None)
    head = next(member for member in tied.members if member.name == "head/kernel")
    np.testing.assert_array_equal(head.indices[1], np.arange(1, 144, 4))  # channel 1 at each of 36 positions
    assert first_inputs.reason == "it is an input of the model"
    assert (members(outputs, "produces"), outputs.reason) == (["head/kernel"], "it is an output of the model")


def test_concatenation_shifts_the_channels_that_come_second():
    x = keras.Input((5,))
    y = layers.Concatenate()([layers.Dense(3, name="left")(x), layers.Dense(4, name="right")(x)])
    (right,) = group_of(keras.Model(x, layers.Dense(2, name="head")(y)), "right/kernel")
    assert [(member.name, member.indices[:, 0].tolist()) for member in right.members] == [
        ("right/kernel", [0, 1, 2, 3]),
        ("right/bias", [0, 1, 2, 3]),
        ("head/kernel", [3, 4, 5, 6]),
    ]


def test_a_grouped_convolution_loses_the_same_of_every_group():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 1, groups=2, name="grouped")(layers.Conv2D(4, 1, name="first")(x))
    model = keras.Model(x, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1)(y)))
    (first,), (grouped,) = group_of(model, "first/kernel"), group_of(model, "grouped/kernel")
    assert [row.tolist() for row in first.of_role("produces")[0].indices] == [[0, 2], [1, 3]]
    assert [row.tolist() for row in grouped.of_role("produces")[0].indices] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_shared_layer_has_one_set_of_channels():
    model = NETWORKS["shared"]()
    (group,) = group_of(model, "shared/kernel")
    assert group.size == 6 and members(group, "produces") == ["shared/kernel"]


def one(layer, shape=(6, 6, 3)):
    """A convolution, a layer behind it, and what the layer's output goes into."""
    x = keras.Input(shape)
    y = layer(layers.Conv2D(4, 3, padding="same", name="conv")(x))
    return keras.Model(x, layers.Conv2D(2, 3, padding="same", name="next")(y))


@pytest.mark.parametrize(
    "layer, reason",
    [
        (layers.ReLU(), None),
        (layers.Resizing(7, 5), None),
        (layers.Resizing(7, 5, pad_to_aspect_ratio=True, fill_value=1.0), "still not zero at 'next'"),
        (layers.LayerNormalization(name="norm"), "LayerNormalization 'norm' reads it"),
        (layers.GroupNormalization(2), "GroupNormalization"),
        (layers.RMSNormalization(), "RMSNormalization"),
        (layers.UnitNormalization(), "UnitNormalization"),
        (layers.Softmax(), "Softmax"),
        (layers.Activation("softmax"), "'softmax'"),
        (layers.Activation(lambda x: x - ops.mean(x, axis=-1, keepdims=True)), "not known to keep channels apart"),
        (layers.Activation("sigmoid"), "with zero weights it is still not zero at 'next'"),
        (layers.BatchNormalization(axis=1), "another axis"),
        (layers.Lambda(lambda x: x), "Lambda"),
        (layers.Reshape((6, 12, 2)), "over several axes"),
        (layers.ZeroPadding2D(1, data_format="channels_first"), "along the axis of its channels"),
        (layers.Rescaling([1.0, 2.0, 3.0, 4.0]), "in its config"),
        (lambda x: layers.GaussianNoise(1.0)(x, training=True), "as in training"),
        (lambda x: ops.max(x, axis=-1, keepdims=True), "reads all channels"),
        (layers.TimeDistributed(keras.Sequential([layers.Dense(4)])), "Sequential"),
    ],
)
def test_layers_that_read_all_channels_hold_them(layer, reason):
    groups = group_of(one(layer), "conv/kernel")
    assert sum(group.size for group in groups) == 4
    for group in groups:
        assert group.reason is None if reason is None else reason in group.reason


def test_a_constant_can_move_into_a_bias_where_nothing_is_padded():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(4, 3, activation="sigmoid", name="conv")(x)
    padded, valid = layers.Conv2D(2, 3, padding="same"), layers.Conv2D(2, 3)
    assert group_of(keras.Model(x, valid(y)), "conv/kernel")[0].reason is None
    assert group_of(keras.Model(x, [valid(y), padded(y)]), "conv/kernel")[0].reason
    assert group_of(keras.Model(x, layers.Conv2D(2, 3, use_bias=False)(y)), "conv/kernel")[0].reason


def test_what_multiplies_a_channel_of_zeros_may_be_anything():
    (gate,) = [group for group in channel_groups(NETWORKS["squeeze_excite"]()) if "first/kernel" in members(group, "produces")]
    assert gate.reason is None and len(gate.of_role("produces")) == 2


def test_a_layer_that_is_called_on_an_input_of_the_model_keeps_what_it_reads():
    groups = channel_groups(NETWORKS["shared_once_with_fixed"]())
    assert [group.size for group in groups if group.reason is None] == [4]


LEAVE_CONSTANTS = ("sigmoid_mlp", "constants")  # which shrinking moves into biases


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LEAVE_CONSTANTS])
def test_zeroing_a_group_makes_its_channels_zero_in_effect(name):
    """The claim of `reason is None`, seen in the outputs: what reads such channels may hold anything."""
    model = zero_channels(randomize(NETWORKS[name]()))
    groups = [group for group in channel_groups(model) if group.reason is None]
    assert groups
    before, rng = outputs_of(model), np.random.default_rng(0)
    for group in groups:
        dead = [place for place in range(group.size) if all(not _slice(member, place).any() for member in group.of_role("produces"))]
        for member in group.of_role("consumes") if dead else ():
            value = np.array(ops.convert_to_numpy(member.variable))
            np.moveaxis(value, member.axis, 0)[member.indices[dead].reshape(-1)] *= rng.uniform(2.0, 3.0)
            member.variable.assign(value)
    np.testing.assert_allclose(outputs_of(model), before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


def _slice(member, place):
    return np.moveaxis(ops.convert_to_numpy(member.variable), member.axis, 0)[member.indices[place]]


def test_groups_that_stay_cannot_be_zeroed():
    group = next(group for group in channel_groups(NETWORKS["mlp"]()) if group.reason)
    with pytest.raises(ValueError, match="cannot be removed"):
        group.zero([0])
