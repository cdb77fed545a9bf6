"""New BatchNorm statistics in one pass."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from small_networks import NETWORKS, outputs_of, randomize

import keras_gibbs as kg

DATA = np.random.default_rng(0).normal(2.0, 3.0, size=(50, 6, 6, 3)).astype("float32")


def network():
    parts = [
        layers.Conv2D(4, 3, name="one"),
        layers.BatchNormalization(name="first"),
        layers.ReLU(),
        layers.Dropout(0.9),
        layers.Conv2D(4, 3, name="two"),
        layers.BatchNormalization(trainable=False, name="second"),
        layers.Flatten(),
        layers.Dense(2),
    ]
    return randomize(keras.Sequential([keras.Input((6, 6, 3)), *parts]))


def statistics(model, name):
    layer = model.get_layer(name)
    return [ops.convert_to_numpy(layer.moving_mean), ops.convert_to_numpy(layer.moving_variance)]


def moments(values):
    return [values.mean((0, 1, 2), dtype="float64"), values.var((0, 1, 2), dtype="float64")]


def read_by(model, name):
    """What a layer makes of DATA at inference."""
    return ops.convert_to_numpy(keras.Model(model.inputs[0], model.get_layer(name).output)(DATA, training=False))


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [50, 32, 7])
def test_the_statistics_are_those_of_all_data_whatever_the_batches(batch_size):
    model = network()
    assert kg.recalibrate(model, DATA, batch_size=batch_size) is model
    assert_close(statistics(model, "first"), moments(read_by(model, "one")))


def test_layers_behind_see_normalized_channels_without_dropout():
    model = network()
    kg.recalibrate(model, DATA, batch_size=len(DATA))  # in one batch the statistics of a frozen layer too are exact
    assert_close(statistics(model, "second"), moments(read_by(model, "two")))


def test_a_pruned_model_is_measured_under_its_final_mask():
    pruned = kg.prune(network(), kg.Magnitude(0.5))
    kg.recalibrate(pruned, DATA, batch_size=len(DATA))
    stripped = kg.strip_pruning(pruned)
    assert_close(statistics(pruned, "first"), moments(read_by(stripped, "one")))
    assert_close(statistics(kg.recalibrate(stripped, DATA, batch_size=len(DATA)), "second"), statistics(pruned, "second"))


def test_only_statistics_change():
    model = network()
    others = [variable for variable in model.variables if "moving" not in variable.name]
    before = [np.array(ops.convert_to_numpy(variable)) for variable in others]
    call = model.get_layer("first").call
    kg.recalibrate(model, DATA)
    for variable, value in zip(others, before):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    assert model.get_layer("first").call == call


@pytest.mark.parametrize(
    "data",
    [
        (DATA, np.zeros(50)),
        [(DATA[:20], np.zeros(20)), (DATA[20:], np.zeros(30))],
        lambda: ((DATA[start : start + 10], np.zeros(10)) for start in range(0, 50, 10)),
    ],
    ids=["arrays", "list", "generator"],
)
def test_labels_may_stand_behind_the_inputs(data):
    model = network()
    kg.recalibrate(model, data() if callable(data) else data)
    assert_close(statistics(model, "first"), moments(read_by(model, "one")))


def test_several_inputs_and_a_layer_that_is_called_twice():
    model = randomize(NETWORKS["shared"]())
    left, right = DATA, -DATA[::-1]
    kg.recalibrate(model, [left, right])
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    both = ops.convert_to_numpy(model.get_layer("shared")(np.concatenate([left, right])))
    assert_close(statistics(model, norm.name), moments(both))


def test_masked_steps_do_not_count():
    parts = [layers.Embedding(5, 3, mask_zero=True, name="embedding"), layers.BatchNormalization(name="norm"), layers.GlobalAveragePooling1D()]
    model = randomize(keras.Sequential([keras.Input((4,), dtype="int32"), *parts]))
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    kg.recalibrate(model, tokens)
    rows = model.get_layer("embedding").get_weights()[0][[1, 2, 3]]
    assert_close(statistics(model, "norm"), [rows.mean(0), rows.var(0)])


def test_failures_leave_the_model_as_it_was():
    model = network()
    before = outputs_of(model)
    for data, match in [(iter([]), "needs samples"), (np.zeros((0, 6, 6, 3), "float32"), "needs samples"), (DATA * np.nan, "NaN")]:
        with pytest.raises(ValueError, match=match):
            kg.recalibrate(model, data)
    with pytest.raises(Exception, match="shape"):
        kg.recalibrate(model, [(DATA[:10],), (DATA[:10, :, :, :1],)])
    np.testing.assert_array_equal(outputs_of(model), before)
    with pytest.raises(ValueError, match="needs a built model"):
        kg.recalibrate(keras.Sequential([layers.BatchNormalization()]), DATA)
    with pytest.raises(TypeError, match="Keras 3"):
        kg.recalibrate("model", DATA)
