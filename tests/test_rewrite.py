"""sparse_ready: networks in the form that runs sparse, with equal predictions, or left alone."""


import keras
import numpy as np
import pytest
from cases import xla
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from keras_gibbs.export import rewrite

pytest.importorskip("tensorflow")
layers, ops = keras.layers, keras.ops
without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))


def randomized(model, seed=0, sparsity=0.5):
    """Weights with which every layer hands on a signal: zeros in 1x1 convolutions, biases, and statistics as they are on images."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.standard_normal(weight.shape)
        if len(weight.shape) == 4 and tuple(weight.shape[:2]) == (1, 1):
            value = value * (rng.random(weight.shape) >= sparsity)
        weight.assign(np.abs(value) if "gamma" in weight.path or "beta" in weight.path else value)
    model(rng.standard_normal((4, *model.input_shape[1:])).astype("float32"), training=True)
    return model


def pointwise(x, channels):
    return layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.0)(layers.Conv2D(channels, 1, use_bias=False)(x)))


def strided(x, kernel=3, explicit=True):
    """As keras.applications pads: one side more where the size is even."""
    if not explicit:
        return layers.ReLU()(layers.DepthwiseConv2D(kernel, strides=2, padding="same")(x))
    pads = [(kernel // 2 - 1 + size % 2, kernel // 2) for size in x.shape[1:3]]
    return layers.ReLU()(layers.DepthwiseConv2D(kernel, strides=2)(layers.ZeroPadding2D(pads)(x)))


def gate(x, how):
    channels = x.shape[-1]
    if how == "dense":
        y = layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D()(x))
        y = layers.Reshape((1, 1, channels))(layers.Dense(channels, activation="sigmoid")(y))
    else:
        y = layers.GlobalAveragePooling2D(keepdims=how != "reshaped")(x)
        y = y if how != "reshaped" else layers.Reshape((1, 1, channels))(y)
        y = layers.Conv2D(channels, 1)(layers.Conv2D(4, 1, activation="relu")(y))
        y = layers.Activation("hard_sigmoid" if how == "hard" else "sigmoid")(y) if how != "by-hand" else layers.ReLU(6.0)(y + 3.0) * (1 / 6)
    return layers.Multiply()([x, y])


GATES = ("dense", "reshaped", "hard", "by-hand", "keepdims")


def head(x, how):
    if how == "maps":
        return x
    if how == "flattened":
        return layers.Dense(3)(layers.Flatten()(x))
    x = layers.GlobalAveragePooling2D(keepdims=how == "convolution")(x)
    return layers.Flatten()(layers.Conv2D(3, 1)(layers.Dropout(0.2)(x))) if how == "convolution" else layers.Dense(3)(x)


def network(stem, blocks, end, size=16):
    """A small network of the kinds of blocks that mobile networks have."""
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(0.5, 0.1)(inputs)
    if stem == "same":
        x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    else:
        x = layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(((0, 1), (0, 1)) if stem == "one side" else 1)(x))
    for block in blocks:
        if block == "strided" and x.shape[1] > 2:
            x = strided(x)
        elif block == "strided-5" and x.shape[1] > 2:
            x = strided(x, 5)
        elif block == "strided-same" and x.shape[1] > 2:
            x = strided(x, explicit=False)
        elif block == "depthwise":
            x = layers.DepthwiseConv2D(5, padding="same", activation="relu")(x)
        elif block == "residual":
            x = layers.Add()([x, layers.Conv2D(x.shape[-1], 1)(layers.DepthwiseConv2D(3, padding="same", activation="silu")(x))])
        elif block == "joined":
            x = layers.Concatenate()([x, pointwise(x, 4)])
        elif block == "pool" and x.shape[1] > 2:
            x = layers.MaxPooling2D()(x)
        elif block in GATES:
            x = gate(x, block)
        x = pointwise(x, 8)
    return randomized(keras.Model(inputs, head(x, end)))


def off(model, ready, seed=0):
    x = np.random.default_rng(seed).standard_normal((2, *model.input_shape[1:])).astype("float32")
    wanted, got = (ops.convert_to_numpy(each(x, training=False)) for each in (model, ready))
    assert np.ptp(wanted, axis=0).max() > 1e-3 * np.abs(wanted).max()  # the images tell
    return np.abs(wanted - got).max() / np.abs(wanted).max()


BLOCKS = ("strided", "strided-5", "strided-same", "depthwise", "residual", "joined", "pool", *GATES)


def test_random_networks_are_equal_or_left_alone():
    rewritten = []

    @settings(max_examples=100, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(
        st.sampled_from(["same", "one side", "each side"]),
        st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2),
        st.sampled_from(["pooled", "convolution", "pooled", "maps", "flattened"]),
        st.sampled_from([16, 16, 18, 15]),
    )
    def check(stem, blocks, end, size):
        model = network(stem, blocks, end, size)
        ready, report = rewrite.rewrite(model)
        assert off(model, ready) < 1e-5
        rewritten.append(bool(report.rows))

    check()
    assert len(rewritten) == 100 and sum(rewritten) >= 70
