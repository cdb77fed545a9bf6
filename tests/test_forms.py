"""Every form a model may have: subclassed, made of parts, with attributes and training steps of its own."""

import keras
import numpy as np
import pytest
from cases import numpy, xla
from keras import layers, ops

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(on=False))
MAGNITUDE = kg.Magnitude(0.5)


@keras.saving.register_keras_serializable(package="tests")
class Encoder(keras.Model):
    """A subclassed model with layers in lists and a model inside."""

    def __init__(self, width=10, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.hidden = [layers.Dense(width, activation="relu"), layers.Dense(width, activation="relu")]
        self.norm = layers.BatchNormalization()
        self.head = keras.Sequential([layers.Dense(6, activation="relu"), layers.Dense(2)])

    def call(self, x, training=None):
        for layer in self.hidden:
            x = layer(x)
        return self.head(self.norm(x, training=training))

    def get_config(self):
        return {**super().get_config(), "width": self.width}

    def describe(self):
        return f"{self.width} wide"


def encoder():
    keras.utils.set_random_seed(3)
    model = Encoder()
    model(np.zeros((1, 5), "float32"))
    return model


def data(samples=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(samples, 5)).astype("float32"), rng.normal(size=(samples, 2)).astype("float32")


def losses(model, epochs=3):
    model.compile("adam", "mse")
    return model.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]


PATHS = ["dense/kernel", "dense_1/kernel", "sequential/dense/kernel", "sequential/dense_1/kernel"]


def test_a_subclassed_model_is_pruned_in_one_call_and_its_class_comes_back(tmp_path):
    model = encoder()
    before = [numpy(weight).copy() for weight in model.weights]
    pruned = kg.prune(model, kg.Gibbs(0.5), seed=0)
    pruned.compile("adam", "mse")
    pruned.fit(*data(), epochs=3, verbose=0, callbacks=[kg.GibbsPruningCallback()])
    assert all(np.array_equal(numpy(weight), old) for weight, old in zip(model.weights, before, strict=True))
    rows = {row["path"]: row for row in kg.summary(pruned).rows}
    assert [path for path in rows if rows[path]["method"]] == [row["path"] for row in kg.summary(model).rows if row["shape"]] == PATHS
    x, _ = data()
    expected = pruned.predict(x, verbose=0)
    pruned.save(tmp_path / "held.keras")
    loaded = keras.models.load_model(tmp_path / "held.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)
    for source in (pruned, loaded):
        stripped = kg.strip_pruning(source)
        assert type(stripped) is Encoder and stripped.describe() == "10 wide" and not kg.pruned_layers(stripped)
        np.testing.assert_allclose(stripped.predict(x, verbose=0), expected, atol=1e-5)
        assert kg.sparsity(stripped) == kg.sparsity(pruned) == 0.5
        assert [row["path"] for row in kg.summary(stripped).rows if row["shape"]] == PATHS


@pytest.mark.once
def test_a_held_model_trains_like_the_dense_one_under_all_ones_masks():
    assert losses(kg.prune(encoder(), kg.Fixed(), seed=0)) == pytest.approx(losses(encoder()), rel=1e-6)


def test_parts_of_a_subclassed_model_are_chosen_by_path():
    pruned = kg.prune(encoder(), MAGNITUDE, where="^sequential/", seed=0)
    assert [row["path"] for row in kg.summary(pruned).rows if row["method"]] == PATHS[2:]
    filters = kg.prune(encoder(), kg.Magnitude(0.5, structure=kg.Filter()), where=["^dense/", "^dense_1/"], seed=0)
    assert [row["path"] for row in kg.summary(filters).rows if row["method"]] == PATHS[:2]
    with pytest.raises(ValueError, match="no graph.*where=None.*dense_1/kernel"):
        kg.prune(encoder(), kg.Magnitude(0.5, structure=kg.Filter()))


@keras.saving.register_keras_serializable(package="tests")
class Reader(keras.Model):
    """Takes a dict of integers and numbers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words = layers.Embedding(30, 8)
        self.mix = layers.Dense(4)

    def call(self, inputs):
        return self.mix(ops.concatenate([ops.mean(self.words(inputs["words"]), axis=1), inputs["numbers"]], axis=-1))


def test_dtypes_of_a_subclassed_models_inputs_come_from_data():
    x = {"words": np.arange(12).reshape(2, 6), "numbers": np.ones((2, 3), "float32")}
    model = Reader()
    expected = numpy(model(x))
    pruned = kg.prune(model, kg.Magnitude(0.0), data=x)
    assert [tensor.dtype for tensor in keras.tree.flatten(pruned.input)] == ["float32", "int64"]
    np.testing.assert_allclose(pruned.predict(x, verbose=0), expected, atol=1e-6)
    assert {row["path"] for row in kg.summary(kg.prune(model, MAGNITUDE, data=x)).rows} == {"embedding/embeddings", "dense/kernel"}


@keras.saving.register_keras_serializable(package="tests")
class Wrapped(keras.Model):
    """The constructor form, with a wrapper in a list and one inside a TimeDistributed."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.steps = layers.TimeDistributed(kg.Pruned(layers.Dense(8), MAGNITUDE))
        self.rest = [layers.Flatten(), kg.Pruned(layers.Dense(2), MAGNITUDE)]

    def call(self, x):
        x = self.steps(x)
        for layer in self.rest:
            x = layer(x)
        return x


@pytest.mark.once
def test_the_constructor_form_trains_and_strips_to_its_class():
    model = Wrapped()
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(x, np.ones((8, 2)), verbose=0, callbacks=[kg.GibbsPruningCallback()])
    expected = model.predict(x, verbose=0)
    stripped = kg.strip_pruning(model)
    assert type(stripped) is Wrapped and not kg.pruned_layers(stripped) and type(stripped.rest[1]) is layers.Dense
    np.testing.assert_allclose(stripped.predict(x, verbose=0), expected, atol=1e-6)
    assert kg.sparsity(stripped) == kg.sparsity(model) == 0.5
    assert kg.pruned_layers(Wrapped())  # outside of strip the constructor wraps as before


@keras.saving.register_keras_serializable(package="tests")
class Graph(keras.Model):
    """A functional subclass: with the functional constructor and a training step."""

    bonus = 0.0

    def train_step(self, *args):
        self.seen.append(type(self).__name__)
        return super().train_step(*args)


def functional(cls):
    inputs = keras.Input((5,))
    return cls(inputs, layers.Dense(2)(layers.Dense(8)(inputs)))


def test_a_functional_subclass_keeps_its_class_its_step_and_its_attributes():
    model = functional(Graph)
    model.bonus, model.seen, model.teacher = 0.5, [], keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    pruned = kg.prune(model, MAGNITUDE)
    assert type(pruned) is Graph and pruned.bonus == 0.5
    assert pruned.teacher is not model.teacher and np.array_equal(numpy(pruned.teacher.layers[0].kernel), numpy(model.teacher.layers[0].kernel))
    losses(pruned, 1)
    assert "Graph" in pruned.seen
    assert type(kg.strip_pruning(pruned)) is Graph and kg.strip_pruning(pruned).bonus == 0.5


class Own(keras.Model):
    def __init__(self, units=8):
        inputs = keras.Input((5,))
        super().__init__(inputs, layers.Dense(2)(layers.Dense(units)(inputs)))

    def get_config(self):
        return {"units": 8}

    def train_step(self, *args):
        return super().train_step(*args)


class Chain(keras.Sequential):
    def train_step(self, *args):
        self.ran = True
        return super().train_step(*args)


def test_a_constructor_of_its_own_loses_the_class_and_says_so():
    with pytest.warns(UserWarning, match="'Own' has a constructor of its own.*train_step are lost"):
        assert type(kg.prune(Own(), MAGNITUDE)) is not Own
    pruned = kg.prune(Chain([keras.Input((5,)), layers.Dense(2)]), MAGNITUDE)
    losses(pruned, 1)
    assert type(pruned) is Chain and pruned.ran


class Stepping(Encoder):
    def train_step(self, *args):
        return super().train_step(*args)


class Unknown(keras.Model):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def call(self, x):
        return self.part(x)

    def get_config(self):
        raise NotImplementedError


def test_what_cannot_be_held_is_refused_with_the_way_out():
    model = Stepping()
    model(np.zeros((1, 5), "float32"))
    with pytest.raises(ValueError, match=r"'train_step' of its own[\s\S]*keras_gibbs.Pruned[\s\S]*parts"):
        kg.prune(model, MAGNITUDE)
    model = Unknown(layers.Dense(2))
    model(np.zeros((1, 5), "float32"))
    with pytest.raises(ValueError, match="'Unknown' cannot be copied from its configuration.*get_config"):
        kg.prune(model, MAGNITUDE)
    with pytest.raises(ValueError, match="not built.*call on a batch"):
        kg.prune(Encoder(), MAGNITUDE)


def test_layers_that_learned_by_adapt_keep_it():
    words = np.array([["a b"], ["c"], ["a c"]])
    lookup = layers.TextVectorization(output_mode="multi_hot")
    lookup.adapt(words)
    edges = layers.Discretization(num_bins=4, output_mode="multi_hot")
    edges.adapt(np.arange(20.0)[:, None])
    text, number = keras.Input((1,), dtype="string"), keras.Input((1,))
    model = keras.Model([text, number], layers.Dense(2)(layers.Concatenate()([layers.Flatten()(lookup(text)), layers.Flatten()(edges(number))])))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        x = [tf.constant(words), tf.constant([[1.0], [8.0], [19.0]])]
        assert np.array_equal(numpy(kg.prune(model, kg.Magnitude(0.0))(x)), numpy(model(x)))


def test_most_of_a_model_left_dense_is_told_with_the_share():
    class Table(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(40, 40))

        def call(self, x):
            return x + ops.sum(self.table)

    model = keras.Sequential([keras.Input((5,)), Table(), layers.Dense(4)])
    with pytest.warns(UserWarning, match="Only 1% of the 1,624 weights"):
        kg.prune(model, MAGNITUDE)


@pytest.mark.slow
def test_a_student_is_distilled_and_a_gan_is_pruned_by_its_parts():
    teacher, student = (keras.Sequential([keras.Input((5,)), layers.Dense(units), layers.Dense(2)]) for units in (12, 6))
    pruned = kg.prune(student, kg.Gibbs(0.5), seed=0)
    distiller = keras.distillation.Distiller(teacher, pruned, keras.distillation.LogitsDistillation())
    distiller.compile("adam", "mse")
    distiller.fit(*data(), epochs=2, verbose=0, callbacks=[kg.GibbsPruningCallback()])
    assert kg.sparsity(kg.strip_pruning(pruned)) == 0.5


@keras.saving.register_keras_serializable(package="tests")
class Residual(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(8)

    def call(self, x):
        return x + self.dense(x)  # in float16 only where the layer has cast its input


def test_a_block_of_ones_own_is_pruned_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((8,))
        model = keras.Model(inputs, layers.Dense(2, dtype="float32")(Residual(name="block")(inputs)))
        assert kg.sparsity(kg.prune(model, kg.Magnitude(0.5), seed=1)) == 0.5
    finally:
        keras.config.set_dtype_policy("float32")
