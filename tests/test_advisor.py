"""The advisor: its verdicts are those that LiteRT 2.3.0 for ARM64 gave on such networks under an emulator.

There, a sparse file whose layers run sparse predicts what the dense one does up to rounding; one that runs nothing sparse predicts the same bit for bit;
and one that mixes up the order of its data stops with an error or predicts something else.
"""

import keras
import numpy as np
import pytest
from cases import JAX, xla

import keras_gibbs as kg
from keras_gibbs.export import advisor, export_tflite, tflite_file

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
layers = keras.layers
without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
SIZE, CHANNELS = 12, 16


def stem(x, padding=1):
    x = layers.ZeroPadding2D(padding)(x) if padding else x
    return layers.Conv2D(CHANNELS, 3, strides=2, padding="valid" if padding else "same", activation="relu", name="stem")(x)


def body(x, blocks=2, activation="relu"):
    for _ in range(blocks):
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
        x = layers.Conv2D(CHANNELS, 1, activation=activation)(x)
    return x


def strided(x, explicit):
    x = layers.ZeroPadding2D(1)(x) if explicit else x
    return layers.DepthwiseConv2D(3, strides=2, padding="valid" if explicit else "same", name="strided")(x)


def squeeze(x, keepdims=True):
    pooled = layers.GlobalAveragePooling2D(keepdims=keepdims)(x)
    pooled = pooled if keepdims else layers.Reshape((1, 1, CHANNELS))(pooled)
    gate = layers.Conv2D(CHANNELS, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="relu")(pooled))
    return layers.multiply([x, gate])


def head(x, keepdims=False):
    x = layers.GlobalAveragePooling2D(keepdims=keepdims)(x)
    return layers.Dense(5, name="head")(layers.Flatten()(x) if keepdims else x)


def build(make, channels=3, sparsity=0.9):
    inputs = keras.Input((SIZE, SIZE, channels))
    model = keras.Model(inputs, make(inputs))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer) is layers.Conv2D and layer.kernel_size == (1, 1):
            layer.kernel.assign(rng.standard_normal(layer.kernel.shape) * (rng.random(layer.kernel.shape) >= sparsity))
    return model


def residual(x):
    x = body(stem(x), 1)
    return head(layers.add([x, body(x)]))


RUNS_SPARSE = {
    "mobilenet": lambda x: head(body(stem(x))),
    "flattened-keepdims": lambda x: head(body(stem(x)), keepdims=True),
    "swish": lambda x: head(body(stem(x), activation="swish")),
    "residual": residual,
    "squeeze-excite": lambda x: head(body(squeeze(body(stem(x))))),
    "strided": lambda x: head(body(strided(body(stem(x)), explicit=True))),
}

# Network -> part of why its last 1x1 convolution runs dense, and of what would help.
RUNS_DENSE = {
    "stem-same": (lambda x: head(body(stem(x, 0), 1)), "what comes before it, stem, is a 3x3 stem whose padding is not 1", "pad stem by"),
    "no-stem": (lambda x: head(layers.Conv2D(CHANNELS, 1)(x)), "no 3x3 stem before it", ""),
    "no-average": (lambda x: body(stem(x)), "no average over height and width", "end in `GlobalAveragePooling2D()`"),
    "flatten": (
        lambda x: layers.Dense(5)(layers.Flatten()(body(stem(x)))),
        "what comes after it, RESHAPE, does not average",
        "end in `GlobalAveragePooling2D()`",
    ),
    "max-pooling": (
        lambda x: head(body(layers.MaxPooling2D(2, name="pool")(stem(x)))),
        "what comes before it, MAX_POOL_2D, has no channels-first form",
        "in place of",
    ),
    "two-readers": (
        lambda x: (lambda y: [head(y), layers.Flatten()(y)])(body(stem(x))),
        "what it reads also goes to RESHAPE, which does not average",
        "",
    ),
    "reshaped-squeeze": (lambda x: head(body(squeeze(body(stem(x)), keepdims=False))), "without keepdims", "keepdims=True"),
}

GOES_WRONG = {
    "keepdims-1x1": (lambda x: layers.Conv2D(5, 1)(layers.GlobalAveragePooling2D(keepdims=True)(body(stem(x)))), "without `keepdims`, and go on with `Dense`"),
    "keepdims-output": (lambda x: layers.GlobalAveragePooling2D(keepdims=True)(body(stem(x))), "without `keepdims`"),
    "pool-between": (lambda x: head(body(layers.MaxPooling2D(2)(body(stem(x))))), "put a depthwise 3x3 convolution with stride 2 in place of"),
    "strided-same": (lambda x: head(body(strided(body(stem(x)), explicit=False))), "pad strided by `ZeroPadding2D`"),
    "full-convolution": (lambda x: head(body(layers.Conv2D(CHANNELS, 3, padding="same", name="full")(body(stem(x))))), "separate full into"),
    "strided-1x1": (lambda x: head(body(layers.Conv2D(CHANNELS, 1, strides=2, name="down")(body(stem(x))))), "take stride and padding out of down"),
    "normalized-sum": (lambda x: head(body(layers.BatchNormalization()(residual_maps(x)))), "do without"),
}


def residual_maps(x):
    x = body(stem(x), 1)
    return layers.add([x, body(x, 1)])


@pytest.mark.few(tensorflow=["mobilenet", "squeeze-excite", "strided"])
@pytest.mark.parametrize("name", RUNS_SPARSE)
def test_networks_that_run_sparse(name):
    model = build(RUNS_SPARSE[name])
    advice = kg.advise(model)
    wanted = {layer.name for layer in model.layers if type(layer) is layers.Conv2D and layer.kernel_size == (1, 1)}
    assert {row["layer"] for row in advice.rows if row["sparse"]} == wanted
    assert not advice.fails and advice.share == pytest.approx(sum(row["share"] for row in advice.rows if row["sparse"])) and advice.speed > 1
    why = {row["layer"]: row["why"] for row in advice.rows}
    assert why["stem"] == "is the stem, which runs dense" and "no sparse kernel" in why["head"]


@pytest.mark.few(tensorflow=["stem-same", "no-average", "reshaped-squeeze"])
@pytest.mark.parametrize("name", RUNS_DENSE)
def test_networks_that_run_dense_and_by_which_rule(name):
    make, why, change = RUNS_DENSE[name]
    advice = advisor.advise_as_it_is(build(make))
    assert advice.share == 0 and not advice.fails and not any(row["sparse"] for row in advice.rows)
    last = [row for row in advice.rows if row["kind"] == "convolution 1x1"][-1]
    assert why in last["why"] and change in advice.change
    assert advice.promised > 0.05 if change else not advice.change or advice.promised > 0.05


@pytest.mark.few(tensorflow=["keepdims-1x1", "pool-between", "normalized-sum"])
@pytest.mark.parametrize("name", GOES_WRONG)
def test_networks_that_go_wrong_once_a_weight_is_sparse(name):
    make, change = GOES_WRONG[name]
    advice = advisor.advise_as_it_is(build(make))
    assert "LiteRT (2.3.0) stops with an error or predicts something else" in advice.fails and advice.share == 0 and advice.speed == 1
    assert change in advice.change and advice.promised > 0.2
    assert "Do not ship the sparse form of the network as it is" in str(advice)


def test_the_advice_says_what_the_exporter_does_by_itself_and_what_is_left():
    advice = kg.advise(build(lambda x: head(body(strided(body(stem(x, 0)), explicit=False)))))
    assert advice.share == 0 and advice.ready.share > 0.4 and advice.change == "" and not advice.ready.fails
    text = str(advice)
    assert f"The exporter rewrites it by itself (encoding='sparse_ready', or 'auto' where that pays): {advice.rewrites}" in text
    assert "kernel turned by 180 degrees" in advice.rewrites and "Left to you" not in text
    tables = [line for line in text.splitlines() if line.startswith(("┏", "│", "└"))]
    assert max(map(len, tables)) <= 100 and sum(line.startswith("┏") for line in tables) == 2
    advice = kg.advise(build(lambda x: head(body(strided(body(stem(x, 0)), explicit=False))), sparsity=0.5))
    assert advice.ready is None and "more than two thirds" in advice.change


def test_auto_writes_no_sparse_form_of_a_network_that_goes_wrong(tmp_path):
    model = build(GOES_WRONG["keepdims-1x1"][0])
    report = export_tflite(model, tmp_path / "model.tflite")
    sizes = {row["encoding"]: row["raw_bytes"] for row in report.rows}
    assert report.chosen["encoding"] in ("float16", "dynamic_int8") and report.chosen["raw_bytes"] == min(
        sizes["dense"], sizes["float16"], sizes["dynamic_int8"]
    )
    assert any(note.startswith("Not chosen: sparse, because on ARM64, LiteRT") for note in report.notes) and "Do not ship the sparse form" in str(report)


def test_more_than_two_thirds_of_the_weights_must_be_zero():
    def advice(zeros):
        model = build(lambda x: head(body(stem(x), 1)), sparsity=0)
        kernel = np.ones((1, 1, CHANNELS, CHANNELS))
        kernel.ravel()[:zeros] = 0
        model.layers[-3].kernel.assign(kernel)
        return kg.advise(model)

    below, above = advice(170), advice(171)  # of 256
    assert below.share == 0 and above.share > 0.3
    [row] = [row for row in below.rows if row["kind"] == "convolution 1x1"]
    assert row["why"] == "66.4% of the weights of its part are zero, and more than two thirds must be" and row["sparsity"] == 170 / 256
    assert "prune the 1x1 convolutions" in below.change and below.promised == above.share


def test_multiply_adds_are_counted_by_hand():
    rows = {row["layer"]: row for row in kg.advise(build(lambda x: head(body(stem(x), 1)))).rows}
    assert rows["stem"]["multiply_adds"] == 6 * 6 * 3 * 3 * 3 * CHANNELS
    assert [row["multiply_adds"] for row in rows.values()][1:] == [6 * 6 * 9 * CHANNELS, 6 * 6 * CHANNELS**2, 5 * CHANNELS]
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:The schedules of")
def test_pruned_stripped_and_nested_models_get_the_same_advice():
    parts = [layers.DepthwiseConv2D(3, padding="same"), layers.Conv2D(CHANNELS, 1), layers.ReLU()]
    inner = keras.Sequential([keras.Input((6, 6, CHANNELS)), *parts], name="inner")
    front = [keras.Input((SIZE, SIZE, 3)), layers.ZeroPadding2D(1), layers.Conv2D(CHANNELS, 3, strides=2), layers.BatchNormalization(), layers.ReLU()]
    pruned = kg.prune(keras.Sequential([*front, inner, layers.GlobalAveragePooling2D(), layers.Dense(5)]), kg.Magnitude(0.9), where="conv2d")
    advice = kg.advise(pruned)
    assert advice == kg.advise(kg.strip_pruning(pruned)) and advice.share > 0.3
    assert [row["layer"].split("/")[-1].rstrip("_0123456789") for row in advice.rows] == ["conv2d", "depthwise_conv2d", "conv2d", "dense"]
    assert advice.rows[2]["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_open_sizes_are_taken_as_fixed_ones():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, head(body(stem(inputs), 1)))
    rows = kg.advise(model).rows
    assert rows[0]["multiply_adds"] == (advisor.OPEN_SIZE // 2) ** 2 * 27 * CHANNELS


def test_int8_files_run_nothing_sparse(tmp_path):
    model = build(RUNS_SPARSE["mobilenet"])
    x = np.random.default_rng(0).standard_normal((8, SIZE, SIZE, 3)).astype("float32")
    advice = export_tflite(model, tmp_path / "model.tflite", encoding="int8", representative_data=x).advice
    assert advice.share == 0 and {row["why"] for row in advice.rows} == {"computes in int8, not in float32"}


@pytest.mark.parametrize("sparsity", [0.5, 0.95])  # the converter stores a Dense kernel in blocks of 1x4 above 0.9
def test_sparse_constants_are_unpacked_as_they_were(sparsity, tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 8)), layers.Conv2D(12, 3), layers.Flatten(), layers.Dense(16)])
    rng = np.random.default_rng(0)
    for layer in (model.layers[0], model.layers[2]):
        keep = rng.random((*layer.kernel.shape[:-2], layer.kernel.shape[-2] // 4, layer.kernel.shape[-1])) >= sparsity
        layer.kernel.assign(rng.standard_normal(layer.kernel.shape) * np.repeat(keep, 4, axis=-2))
    export_tflite(model, tmp_path / "model.tflite", encoding="sparse")
    found = {tensor.shape: tensor for tensor in tflite_file.weights(tflite_file.read((tmp_path / "model.tflite").read_bytes()))}
    convolution, dense = (np.moveaxis(keras.ops.convert_to_numpy(model.layers[i].kernel), -1, 0) for i in (0, 2))
    assert found[convolution.shape].sparse and found[dense.shape].sparse
    np.testing.assert_array_equal(found[convolution.shape].values, convolution)
    np.testing.assert_array_equal(found[dense.shape].values, dense)


def test_what_cannot_be_advised_on_is_named():
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        kg.advise([1])
    with pytest.raises(ValueError, match="must be built"):
        kg.advise(keras.Sequential([layers.Dense(1)]))
