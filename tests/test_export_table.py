"""All kinds of layers in all encodings: no file that is written is off, and what is left out is known."""

import re

import keras
import numpy as np
import pytest
import test_kinds
from cases import JAX, xla

from keras_gibbs.export import export_tflite
from keras_gibbs.export.encodings import ENCODINGS

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(JAX, reason="the conversion is TensorFlow's")
layers = keras.layers
without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))

# The largest difference, as a share of the largest output, that each precision may make.
BOUNDS = {"float32": 1e-5, "float16": 3e-3, "int8": 0.05}
RAW = r"\.cc|\.py|Traceback|Node number|loc\(|failed to|Error|/[a-z]+/"  # of the runtime's own messages


def branches(shape, *makes, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, [make(inputs) for make in makes])


def attention(x):
    x = layers.Dense(16)(x)
    return layers.add([layers.MultiHeadAttention(2, 8)(x, x), x])


# Kind -> model with one output per layer of that kind, wide enough (1,024 weights and more) that the converter quantizes.
KINDS = {
    "dense": lambda: branches(
        (24,),
        layers.Dense(64, activation="relu"),
        layers.EinsumDense("ab,bc->ac", 48, bias_axes="c"),
        lambda x: layers.Dense(9)(layers.Dropout(0.5)(layers.Dense(72, activation="gelu")(x))),
    ),
    "narrow": lambda: branches((7,), layers.Dense(160), lambda x: layers.Dense(3)(layers.Dense(200, activation="tanh")(x))),
    "convolutions": lambda: branches(
        (10, 10, 16),
        layers.Conv2D(16, 3, padding="same"),
        layers.Conv2D(64, 1, strides=2),
        layers.Conv2D(32, 3, groups=2),
        layers.Conv2D(16, 3, dilation_rate=2),
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.SeparableConv2D(72, 3),
    ),
    "transposed": lambda: branches((6, 6, 16), layers.Conv2DTranspose(16, 3), layers.Conv2DTranspose(16, 2, strides=2)),
    "in-line": lambda: branches(
        (12, 16), layers.Conv1D(32, 3), layers.SeparableConv1D(72, 3), layers.DepthwiseConv1D(3), layers.Conv1D(32, 3, padding="causal")
    ),
    "in-space": lambda: branches((4, 4, 4, 8), layers.Conv3D(16, 2)),
    "recurrent": lambda: keras.Model(
        inputs := keras.Input(batch_shape=(2, 5, 12)),
        [layers.LSTM(24)(inputs), layers.GRU(24)(inputs), layers.Bidirectional(layers.SimpleRNN(24))(inputs)],
    ),
    "attention": lambda: branches((6, 16), attention),
    "embedding": lambda: branches((6,), layers.Embedding(80, 16), lambda x: layers.Dense(70)(layers.Flatten()(layers.Embedding(80, 4)(x))), dtype="int32"),
    "network": lambda: branches(
        (12, 12, 16),
        lambda x: layers.Dense(40)(layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(64, 1)(x))))),
        lambda x: layers.MaxPooling2D()(layers.UpSampling2D(interpolation="bilinear")(layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(64, 1)(x)))),
        lambda x: layers.multiply([x, layers.Conv2D(16, 1, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))]),
    ),
    "normalized": lambda: branches(
        (8, 16),
        lambda x: layers.LayerNormalization()(layers.Dense(64)(x)),
        lambda x: layers.GroupNormalization(4)(layers.Dense(64)(x)),
        lambda x: layers.UnitNormalization()(layers.Dense(64)(x)),
    ),
}
INT8 = {"int8", "sparse_int8"}
# Kind -> encodings that must not be written, with TensorFlow 2.21 and LiteRT 2.3.0: blocks of 4 or 16 in kernels with another number of inputs, garbage from
# transposed convolutions, and ranges that cannot be measured.
LEFT_OUT = {
    "narrow": {name for name, form in ENCODINGS.items() if form.sparse and not form.rewritten},
    "transposed": {"sparse_float16"},
    "recurrent": INT8 | {"sparse_dynamic_int8"},
}


def cut(model):
    """Nine of ten weights of every kernel become zero."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) >= 2 and weight.name != "bias":
            weight.assign(keras.ops.convert_to_numpy(weight) * (rng.random(weight.shape) < 0.1))


def check(model, x, folder):
    """Write the model in all encodings; the names of those left out."""
    report = export_tflite(model, folder / "model.tflite", representative_data=x, data=(x, None), verbose=0)
    notes, written = " ".join(report.notes), {row["encoding"] for row in report.rows}
    assert not re.search(RAW, notes)
    for row in report.rows:
        if row["runs"] is None:  # TensorFlow's own operators, as of recurrent layers over open batches: told, and no more than float32 is ever chosen
            assert f"Not checked: predictions of the {row['encoding']} file (it holds operators that only TensorFlow's Flex delegate runs" in notes
        else:
            assert row["relative_difference"] <= BOUNDS[ENCODINGS[row["encoding"]].dtype], row["encoding"]
    assert report.chosen["runs"] or ENCODINGS[report.chosen["encoding"]].dtype == "float32"
    left_out = {name for name in ENCODINGS if f"Left out: {name}. " in notes}
    assert not left_out & written
    return left_out


@pytest.mark.few(tensorflow=["network", "recurrent", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_file_that_is_written_is_off(kind, tmp_path):
    keras.utils.set_random_seed(0)
    model, rng = KINDS[kind](), np.random.default_rng(0)
    cut(model)
    spec = model.inputs[0]
    shape = (16, *spec.shape[1:])
    x = rng.integers(0, 80, shape) if spec.dtype == "int32" else rng.standard_normal(shape).astype("float32")
    assert check(model, x, tmp_path) == LEFT_OUT.get(kind, set())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*test_kinds.KINDS, *test_kinds.SEVERAL])
def test_no_file_of_a_kind_that_is_pruned_is_off(kind, tmp_path):
    model = test_kinds.any_network(kind)
    cut(model)
    left_out = check(model, test_kinds.data(model, 16)[0], tmp_path)
    assert not left_out & {"dense", "float16"}, left_out
