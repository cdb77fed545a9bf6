"""sparse_ready: networks in the form that runs sparse, with equal predictions, or left alone."""

import keras
import numpy as np
import pytest
from cases import JAX, xla
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import keras_gibbs as kg
from keras_gibbs.export import export_tflite, rewrite

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
        weight.assign(np.abs(value) if weight.name in ("gamma", "beta", "moving_variance") else value)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics become those of the next batch
    model(rng.standard_normal((4, *model.input_shape[1:])).astype("float32"), training=True)
    return model


def pointwise(x, channels):
    return layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(channels, 1, use_bias=False)(x)))


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


def for_random_networks(count, check):
    """Draw small networks of such blocks, always the same ones."""

    @settings(max_examples=count, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(
        st.sampled_from(["same", "one side", "each side"]),
        st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2),
        st.sampled_from(["pooled", "convolution", "pooled", "maps", "flattened"]),
        st.sampled_from([16, 16, 18, 15]),
    )
    def draw(stem, blocks, end, size):
        check(network(stem, blocks, end, size))

    draw()


@pytest.mark.once
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_random_networks_are_equal_or_left_alone(count):
    rewritten = []

    def check(model):
        ready, report = rewrite.rewrite(model)
        assert off(model, ready) < 1e-5
        rewritten.append(bool(report.rows))

    for_random_networks(count, check)
    assert len(rewritten) == count and sum(rewritten) >= 0.7 * count


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_the_files_of_ten_random_networks_predict_the_same(tmp_path):
    names = []

    def check(model):
        x = np.random.default_rng(0).standard_normal((4, *model.input_shape[1:])).astype("float32")
        rewritable = bool(rewrite.rewrite(model)[1].rows)
        report = export_tflite(model, tmp_path / "model.tflite", encoding="sparse_ready" if rewritable else "sparse", data=(x, None), verbose=0)
        assert report.chosen["runs"] and report.chosen["relative_difference"] < 1e-4
        names.append(report.chosen["encoding"])

    for_random_networks(10, check)
    assert len(names) == 10 and names.count("sparse_ready") >= 7


@pytest.mark.few(tensorflow=["each side-blocks3-pooled"])
@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
@pytest.mark.parametrize(
    "stem, blocks, end",
    [
        ("same", ["strided", "residual"], "pooled"),
        ("one side", ["strided-5", "depthwise"], "convolution"),
        ("one side", ["strided-same"], "pooled"),
        ("each side", ["dense", "residual"], "pooled"),
        ("same", ["reshaped", "strided"], "convolution"),
        ("one side", ["by-hand"], "pooled"),
        ("same", ["hard"], "pooled"),
    ],
)
def test_the_file_of_a_rewritten_network_predicts_the_same_and_runs_sparse(stem, blocks, end, tmp_path):
    model = randomized(network(stem, blocks, end), sparsity=0.9)
    x = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype("float32")
    before = export_tflite(model, tmp_path / "model.tflite", encoding="sparse", data=(x, None), verbose=0)
    after = export_tflite(model, tmp_path / "model.tflite", encoding="sparse_ready", data=(x, None), verbose=0)
    assert after.chosen["relative_difference"] < 1e-4 and after.chosen["zeros"] == before.chosen["zeros"]
    assert before.advice.share == 0 and after.advice.share > 0.05 and not after.advice.fails
    assert any(note.startswith("Rewritten in the sparse_ready file: ") for note in after.notes)


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_arm64_takes_the_rewritten_network_where_that_pays(tmp_path):
    x = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype("float32")
    model = randomized(network("one side", ["residual", "residual"], "pooled"), sparsity=0.95)
    report = export_tflite(model, tmp_path / "model.tflite", prefer="arm64", data=(x, None), verbose=0)
    assert report.chosen["encoding"] == "sparse_ready" and report.advice.share > 0.4 and "sparse_ready" in report.reason
    model = randomized(network("each side", ["residual", "residual"], "pooled"), sparsity=0.95)  # has that form already
    report = export_tflite(model, tmp_path / "model.tflite", prefer="arm64", data=(x, None), verbose=0)
    assert report.chosen["encoding"] == "sparse" and any("Nothing in the network can be rewritten" in note for note in report.notes)


@pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
def test_the_smallest_file_is_that_of_the_rewritten_network_where_that_is_as_small_and_faster(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.Conv2D(32, 3, strides=2, padding="same")(inputs))
    for _ in range(4):
        x = pointwise(x, 256)
    model = randomized(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))), sparsity=0.95)
    images = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype("float32")
    report = export_tflite(model, tmp_path / "model.tflite", data=(images, None), verbose=0)
    sizes = {row["encoding"]: row["raw_bytes"] for row in report.rows}
    assert report.chosen["encoding"] == "sparse_ready_float16" and sizes["sparse_ready_float16"] < 1.02 * sizes["sparse_float16"]
    assert report.advice.share > 0.5 and "run sparse on an ARM64 CPU" in report.reason
    assert any(note.startswith("Rewritten in the sparse_ready_float16 file: ") for note in report.notes)
    assert not any("Left out: sparse_ready" in note for note in report.notes)


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the advice is on a converted file")
@pytest.mark.parametrize("make", [lambda **kw: keras.applications.MobileNet(alpha=0.5, **kw), lambda **kw: keras.applications.MobileNetV3Small(**kw)])
def test_networks_as_keras_has_them_run_sparse(make):
    model = randomized(make(input_shape=(64, 64, 3), weights=None, classes=10, classifier_activation=None), sparsity=0.9)
    ready = kg.sparse_ready(model)
    assert kg.advise(model).share == 0 and kg.advise(ready).share > 0.5
    assert {layer.name for layer in model.layers if isinstance(layer, layers.DepthwiseConv2D)} <= {layer.name for layer in ready.layers}


@pytest.mark.once
def test_a_rewritten_network_is_saved_pruned_and_trained(tmp_path):
    inner = keras.Sequential([keras.Input((8, 8, 8)), layers.ZeroPadding2D(((0, 1), (0, 1))), layers.DepthwiseConv2D(3, strides=2)])
    inputs = keras.Input((16, 16, 3))
    x = inner(layers.Conv2D(8, 3, strides=2, padding="same", trainable=False)(inputs))
    model = randomized(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1, name="point")(x)))))
    weights = [ops.convert_to_numpy(weight) for weight in model.weights]
    ready = kg.sparse_ready(kg.prune(model, kg.Magnitude(0.5), where="point"))
    assert kg.sparsity(ready, where="point") == 0.5 and not kg.pruned_layers(ready)
    assert [layer.trainable for layer in ready.layers if type(layer) is layers.Conv2D] == [False, True]
    ready.save(tmp_path / "ready.keras")
    assert off(ready, keras.saving.load_model(tmp_path / "ready.keras")) == 0
    pruned = kg.prune(ready, kg.Magnitude(0.75), where="point")
    pruned.compile("sgd", "mse")
    pruned.fit(np.ones((4, 16, 16, 3)), np.ones((4, 2)), verbose=0)
    assert all(np.array_equal(ops.convert_to_numpy(weight), value) for weight, value in zip(model.weights, weights))


def test_what_cannot_be_turned_is_left_and_named():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    x = layers.Conv2D(8, 1, strides=2, name="skipping")(x)
    model = randomized(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    report = kg.sparse_ready(model, plan_only=True)
    assert report.left == [{"layer": "skipping", "why": "turned, it would have to leave lines of its input out"}]
    assert "Left as it is: skipping, turned" in str(report) and max(map(len, str(report).splitlines())) <= 100
    assert off(model, kg.sparse_ready(model)) < 1e-5


def test_bad_models_are_named():
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        kg.sparse_ready([1])
    with pytest.raises(ValueError, match="must be a built Sequential or Functional"):
        kg.sparse_ready(keras.Sequential([layers.Dense(1)]))
