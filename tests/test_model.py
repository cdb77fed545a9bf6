"""`prune`, `strip_pruning`, `sparsity` and `summary` on whole models."""

import sys
import types
import warnings

import keras
import numpy as np
import pytest
from cases import every_method, numpy, randomize, same, saved_and_loaded, weights, xla
from keras import layers, ops

import keras_gibbs as kg

MAGNITUDE = kg.Magnitude(0.5)
FILTERS = kg.Magnitude(0.5, structure=kg.Filter())


without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))


# The models: small, random weights, and a batch of inputs for each.


def sequential():
    return keras.Sequential([keras.Input((6,), name="features"), layers.Dense(8, activation="relu", name="hidden"), layers.Dense(3, name="head")])


def late_sequential():
    model = keras.Sequential([layers.Dense(8, name="hidden"), layers.Dropout(0.5), layers.Dense(3)], name="late")
    model.build((None, 6))
    return model


def convolutional():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            layers.Conv2D(4, 1),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def residual():
    x = inputs = keras.Input((6,))
    x = layers.Dense(6, activation="relu")(x)
    x = x + inputs * 2.0
    x = ops.tanh(layers.Dense(6)(x)) - 1.0
    x = layers.Add()([x, inputs])
    x = ops.concatenate([x, x], axis=-1)
    return keras.Model(inputs, layers.Dense(3)(x), name="residual")


def many_to_many():
    first, second = keras.Input((6,), name="first"), keras.Input((4,), name="second")
    x = layers.Concatenate()([layers.Dense(5)(first), layers.Dense(5)(second)])
    return keras.Model([first, second], [layers.Dense(2, name="left")(x), layers.Dense(3, name="right")(x)])


def dictionaries():
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((6,), name="b", dtype="float32")}
    shared = layers.Dense(5, name="shared")
    return keras.Model(inputs, {"sum": shared(inputs["a"]) + shared(inputs["b"]), "one": layers.Dense(2, name="one")(inputs["a"])})


def shared():
    inputs = keras.Input((6,))
    block, dense = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="inner")], name="block"), layers.Dense(6, name="twice")
    return keras.Model(inputs, layers.Dense(2)(block(dense(block(dense(inputs))))))


def nested():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="dense"), layers.ReLU()], name="inner")
    inner.compile("sgd", "mse")
    tensor = keras.Input((5,), name="middle")
    middle = keras.Model(tensor, layers.Dense(4, name="dense")(tensor) * 0.5, name="functional")
    middle.compile("adam", "mae")
    return keras.Sequential([keras.Input((6,)), inner, middle, layers.Dense(2, name="head")], name="outer")


def with_lambda():
    inputs = keras.Input((6,))
    x = layers.Lambda(lambda x: x * 2.0, name="double")(layers.Dense(4)(inputs))
    return keras.Model(inputs, layers.Dense(2)(x))


def normalized():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(1).normal(3.0, 2.0, size=(50, 6)).astype("float32"))
    return keras.Sequential([keras.Input((6,)), normalization, layers.Dense(3)])


class Classifier(keras.Model):
    """A subclass whose constructor is the functional one."""

    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


keras.saving.register_keras_serializable(package="tests")(Classifier)


def classifier():
    inputs = keras.Input((6,))
    return Classifier(inputs, layers.Dense(3)(layers.Dense(4)(inputs)))


def recurrent():
    return keras.Sequential([keras.Input((4, 6)), layers.TimeDistributed(layers.Dense(3)), layers.Dense(4), layers.LSTM(3), layers.Dense(2)])


MODELS = [
    sequential,
    late_sequential,
    convolutional,
    residual,
    many_to_many,
    dictionaries,
    shared,
    nested,
    with_lambda,
    normalized,
    classifier,
    recurrent,
]
SAVED = [model for model in MODELS if model is not with_lambda]  # Keras does not load a Lambda without a question of safety
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
every_saved_model = pytest.mark.parametrize("make", SAVED, ids=lambda make: make.__name__)


def made(make):
    model = make()
    if make is not normalized:
        randomize(model)
    return model


def batch(model):
    rng = np.random.default_rng(0)
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(lambda x: rng.normal(size=(4, *x.shape[1:])).astype("float32"), inputs)


def outputs(model, x=None):
    return [numpy(y) for y in keras.tree.flatten(model(batch(model) if x is None else x, training=False))]


def close(first, second, tolerance=1e-6):
    return len(first) == len(second) and all(np.allclose(one, other, atol=tolerance, rtol=tolerance) for one, other in zip(first, second, strict=True))


def structure_of(model):
    """The configuration of a model, without how nested ones were compiled and the batch sizes layers were built with."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items() if name not in ("compile_config", "build_config")}
        return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value

    return plain(model.get_config())


def tree_of(model):
    return [(layer, layer.name, layer.trainable) for layer in model._flatten_layers()]


# Pruning copies.


@pytest.mark.once
@every_model
def test_pruning_leaves_the_model_untouched_bit_for_bit(make):
    model = made(make)
    model.compile("adam", "mse")
    before, config, tree, optimizer = weights(model), model.get_config(), tree_of(model), model.optimizer
    pruned = kg.prune(model, MAGNITUDE, seed=0)
    randomize(pruned, seed=5)
    kg.strip_pruning(pruned)
    assert same(weights(model), before)
    assert model.get_config() == config
    assert tree_of(model) == tree
    assert model.compiled and model.optimizer is optimizer
    mine = {id(weight) for weight in model.weights}
    assert not mine & {id(weight) for weight in pruned.weights}
    for layer in model.layers:  # a layer that was called once more would have no single output
        if make not in (shared, dictionaries):
            assert layer.output is not None


@pytest.mark.once
@every_model
def test_a_model_that_keeps_every_weight_predicts_exactly_as_before(make):
    model = made(make)
    pruned = kg.prune(model, kg.Fixed())
    assert not pruned.compiled
    assert type(pruned) is type(model) and pruned.name == model.name
    assert close(outputs(pruned, batch(model)), outputs(model), 1e-6)
    assert [layer.name for layer in pruned.layers] == [layer.name for layer in model.layers]
    assert {id(layer.layer) for layer in kg.pruned_layers(pruned)}.isdisjoint(id(layer) for layer in model._flatten_layers())


@pytest.mark.once
@every_model
def test_stripping_gives_the_model_back_with_the_pruned_predictions(make):
    model = made(make)
    model.compile("sgd", "mse")
    pruned = kg.prune(model, MAGNITUDE, seed=0)
    stripped = kg.strip_pruning(pruned)
    assert not stripped.compiled and not kg.pruned_layers(stripped)
    assert structure_of(stripped) == structure_of(model)
    assert [weight.shape for weight in stripped.weights] == [weight.shape for weight in model.weights]
    assert close(outputs(stripped, batch(model)), outputs(pruned, batch(model)))
    assert kg.sparsity(stripped) == kg.sparsity(pruned) > 0
    assert all(layer.compiled is False for layer in stripped._flatten_layers() if isinstance(layer, keras.Model))
    zeros = [kernel[kernel == 0] for kernel in map(numpy, stripped.weights)]
    assert not any(np.signbit(zero).any() for zero in zeros)  # a zero of minus sign would compress badly


@pytest.mark.few(jax=["recurrent"])
@every_saved_model
def test_a_saved_pruned_model_strips_to_the_same_predictions(make, tmp_path):
    model = made(make)
    pruned = kg.prune(model, MAGNITUDE, seed=0)
    loaded = saved_and_loaded(pruned, tmp_path)
    assert type(loaded) is type(pruned)
    assert same(weights(loaded), weights(pruned))
    assert close(outputs(loaded, batch(model)), outputs(pruned, batch(model)))
    stripped = kg.strip_pruning(loaded)
    assert structure_of(stripped) == structure_of(model)
    assert close(outputs(stripped, batch(model)), outputs(pruned, batch(model)))


@pytest.mark.few(
    tensorflow=["gibbs-filter", "magnitude-global", "gumbel-target", "edropout", "rigl", "greg"],
    jax=["gibbs", "gumbel"],
)
@every_method
def test_every_method_prunes_and_strips_a_network(method):
    model = randomize(convolutional())
    pruned = kg.prune(model, method.make(), where=None, seed=0)
    assert kg.pruned_layers(pruned)
    stripped = silently(kg.strip_pruning, pruned)
    assert structure_of(stripped) == structure_of(model)
    assert close(outputs(stripped, batch(model)), outputs(pruned, batch(model)))
    assert kg.sparsity(stripped) == kg.sparsity(pruned)
    pruned.compile("sgd", "mse")
    pruned.fit(batch(model), np.eye(3)[[0, 1, 2, 0]], verbose=0)
    assert close(outputs(silently(kg.strip_pruning, pruned), batch(model)), outputs(pruned, batch(model)))


def silently(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


def test_a_model_compiled_with_objects_that_cannot_be_saved_is_pruned():
    class Odd:
        def __call__(self, truth, prediction):
            return ops.mean(ops.square(truth - prediction))

    for make in (sequential, residual, nested, classifier):
        model = made(make)
        model.compile("adam", loss=lambda truth, prediction: ops.mean(truth - prediction), metrics=[Odd()])
        assert not kg.prune(model, MAGNITUDE).compiled
        assert model.compiled


def test_a_layer_that_is_shared_stays_shared():
    pruned = kg.prune(made(shared), MAGNITUDE)
    assert sorted(layer.name for layer in kg.pruned_layers(pruned))[-1] == "twice"
    assert len(kg.pruned_layers(pruned)) == 3
    assert len(pruned.weights) - sum(len(layer.weights) - len(layer.layer.weights) for layer in kg.pruned_layers(pruned)) == 6


def test_input_names_stay():
    for make in (sequential, many_to_many, dictionaries):
        model = make()
        for copy in (kg.prune(model, MAGNITUDE), kg.strip_pruning(kg.prune(model, MAGNITUDE))):
            assert [x.name for x in keras.tree.flatten(copy.inputs)] == [x.name for x in keras.tree.flatten(model.inputs)]


def test_the_figures_of_a_normalization_layer_are_copied():
    model = normalized()
    for copy in (kg.prune(model, kg.Fixed()), kg.strip_pruning(kg.prune(model, MAGNITUDE))):
        assert same(weights(copy.layers[0]), weights(model.layers[0]))
        assert np.array_equal(numpy(copy.layers[0](batch(model))), numpy(model.layers[0](batch(model))))


def flags(model):
    return [layer.trainable for layer in model._flatten_layers() if not isinstance(layer, kg.Pruned)]


def names_of_trained(model):
    return [weight.path.split("/")[-2:] for weight in model.trainable_weights]


@pytest.mark.parametrize("frozen", ["layer", "nested", "thawed", "model"])
def test_trainable_flags_are_kept(frozen):
    model = made(nested)
    inner = model.layers[0]
    if frozen == "layer":
        inner.layers[0].trainable = False
    elif frozen == "nested":
        inner.trainable = False
    elif frozen == "thawed":
        inner.trainable = False
        inner.layers[0].trainable = True
    else:
        model.trainable = False
    pruned = kg.prune(model, MAGNITUDE)
    stripped = kg.strip_pruning(pruned)
    assert flags(stripped) == flags(model)
    assert flags(pruned) == flags(model)
    assert len(stripped.trainable_weights) == len(model.trainable_weights)
    assert len(pruned.trainable_weights) == len(model.trainable_weights)


@pytest.fixture(scope="module")
def mobilenet():
    return keras.applications.MobileNetV3Small(weights=None, input_shape=(32, 32, 3), classes=4)


@pytest.mark.once
def test_a_network_of_keras_applications_is_pruned_and_stripped(mobilenet):
    model = mobilenet
    pruned = kg.prune(model, kg.Fixed())
    x = np.random.default_rng(0).uniform(0, 255, size=(1, 32, 32, 3)).astype("float32")
    assert len(kg.pruned_layers(pruned)) > 40
    expected = outputs(model, x)
    assert close(outputs(pruned, x), expected, 1e-5)
    stripped = kg.strip_pruning(pruned)
    assert close(outputs(stripped, x), expected, 1e-5)
    assert structure_of(stripped) == structure_of(model)


@pytest.mark.once
def test_a_network_of_keras_applications_keeps_its_head_under_filters(mobilenet):
    pruned = kg.pruned_layers(kg.prune(mobilenet, FILTERS))
    names = [layer.name for layer in pruned]
    assert "logits" not in names and "conv" in names and not any("depthwise" in name for name in names)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX compiles each of its 239 layers alone, which takes a minute")
def test_efficientnet_is_pruned_with_its_normalization():
    model = keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=4)
    normalization = next(layer for layer in model.layers if isinstance(layer, layers.Normalization))
    normalization.set_weights([np.arange(3.0), np.full(3, 4.0), np.zeros((), "int32")])
    normalization.finalize_state()
    x = np.random.default_rng(0).uniform(0, 255, size=(1, 32, 32, 3)).astype("float32")
    assert close(outputs(kg.prune(model, kg.Fixed(), where="stem|top"), x), outputs(model, x), 1e-5)


def test_a_single_layer_is_pruned_and_stripped():
    layer = randomize(sequential()).layers[0]
    pruned = kg.prune(layer, MAGNITUDE, seed=0)
    assert isinstance(pruned, kg.Pruned) and pruned.layer is not layer
    stripped = kg.strip_pruning(pruned)
    assert type(stripped) is layers.Dense and stripped.get_config() == layer.get_config()
    assert np.array_equal(numpy(stripped.kernel), numpy(layer.kernel) * numpy(pruned.mask()))
    assert kg.sparsity(pruned) == kg.sparsity(stripped) == 0.5


def test_a_single_layer_that_is_not_built_is_pruned_and_stripped():
    pruned = kg.prune(layers.Dense(4, name="fresh"), MAGNITUDE)
    assert type(kg.strip_pruning(pruned)) is layers.Dense and kg.strip_pruning(pruned).name == "fresh"


@every_model
def test_stripping_a_plain_model_copies_it(make):
    model = made(make)
    copy = kg.strip_pruning(model)
    assert copy is not model and structure_of(copy) == structure_of(model)
    assert same(weights(copy), weights(model))
    assert {id(weight) for weight in copy.weights}.isdisjoint(id(weight) for weight in model.weights)


def test_stripping_warns_when_the_schedules_never_moved():
    pruned = kg.prune(sequential(), kg.Gibbs(0.5))
    with pytest.warns(UserWarning, match="'hidden', 'head'.*GibbsPruningCallback"):
        kg.strip_pruning(pruned)
    for layer in kg.pruned_layers(pruned):
        layer.anneal(1.0)
    still = kg.prune(sequential(), kg.Gibbs(0.5, beta=100.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kg.strip_pruning(pruned)
        kg.strip_pruning(still)
        kg.strip_pruning(kg.prune(sequential(), MAGNITUDE))


def test_the_seed_decides_the_noise_and_layers_do_not_share_it():
    def masks(seed):
        return [numpy(layer.mask(training=True)) for layer in kg.pruned_layers(kg.prune(made(sequential), kg.Gibbs(0.5), seed=seed))]

    assert same(masks(1), masks(1)) and not same(masks(1), masks(2))
    model = sequential()
    assert len({layer.seed for layer in kg.pruned_layers(kg.prune(model, kg.Gibbs(0.5), seed=1))}) == 2


def test_the_noise_of_a_layer_does_not_depend_on_where():
    model = made(sequential)
    both, one = (kg.pruned_layers(kg.prune(model, kg.Gibbs(0.5), seed=1, where=where)) for where in (None, "head"))
    assert both[1].seed == one[0].seed


# Which layers.


def chosen(model, method=MAGNITUDE, **kwargs):
    return [layer.name for layer in kg.pruned_layers(kg.prune(model, method, **kwargs))]


def named():
    names = ("conv_a", "conv_b", "dense_a", "dense_b")
    return randomize(keras.Sequential([keras.Input((6,))] + [layers.Dense(6, name=name) for name in names]))


@pytest.mark.parametrize(
    "where, names",
    [
        (None, ["conv_a", "conv_b", "dense_a", "dense_b"]),
        ("conv", ["conv_a", "conv_b"]),
        ("_a$", ["conv_a", "dense_a"]),
        (["conv_b", "^dense_a"], ["conv_b", "dense_a"]),
        (lambda layer: layer.name.endswith("b"), ["conv_b", "dense_b"]),
    ],
    ids=["everything", "word", "regex", "list", "callable"],
)
def test_where_chooses(where, names):
    model = named()
    assert chosen(model, where=where) == names
    rows = {row["layer"]: row["note"] for row in kg.summary(kg.prune(model, MAGNITUDE, where=where)).rows}
    assert [name for name, note in rows.items() if note != "not selected"] == names


@pytest.mark.parametrize("where", ["nothing", [], ["no", "none"], lambda layer: False], ids=["regex", "empty", "list", "callable"])
def test_where_that_matches_nothing_is_an_error_that_lists_the_layers(where):
    with pytest.raises(ValueError, match="nothing to prune.*conv_a"):
        kg.prune(named(), MAGNITUDE, where=where)


def test_where_that_matches_only_what_cannot_be_pruned_says_why():
    with pytest.raises(ValueError, match="batch_norm.*no weights that can be pruned"):
        kg.prune(convolutional(), MAGNITUDE, where="batch_norm")


def test_where_reaches_into_nested_models():
    assert chosen(made(nested), where="dense") == ["dense", "dense"]
    assert chosen(made(nested), where=lambda layer: layer.name == "head") == ["head"]


def test_a_model_without_kernels_is_an_error():
    model = keras.Sequential([keras.Input((4,)), layers.ReLU(), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="nothing to prune"):
        kg.prune(model, MAGNITUDE)


# Global ranking.


def kept_by_layer(pruned):
    return [int(numpy(layer.mask()).sum()) for layer in kg.pruned_layers(pruned)]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9, 0.99])
def test_global_ranking_keeps_the_top_weights_of_all_layers(sparsity):
    model = named()
    model.layers[1].kernel.assign(0.1 * numpy(model.layers[1].kernel))
    kernels = [numpy(layer.kernel).reshape(-1) for layer in model.layers]
    together = np.concatenate(kernels) ** 2
    kept = max(1, together.size - int(np.floor(sparsity * together.size + 0.5)))
    expected = np.zeros(together.size)
    expected[np.argsort(-together, kind="stable")[:kept]] = 1
    pruned = kg.prune(model, kg.Magnitude(sparsity, scope="global"))
    assert np.array_equal(np.concatenate([numpy(layer.mask()).reshape(-1) for layer in kg.pruned_layers(pruned)]), expected)
    assert kept_by_layer(pruned) == [int(part.sum()) for part in np.split(expected, np.cumsum([kernel.size for kernel in kernels])[:-1])]
    assert kg.sparsity(pruned) == kg.sparsity(kg.strip_pruning(pruned)) == pytest.approx(1 - kept / together.size)


def test_global_ranking_breaks_ties_by_the_order_of_the_layers():
    model = named()
    for layer in model.layers:
        layer.kernel.assign(np.ones((6, 6)))
    assert kept_by_layer(kg.prune(model, kg.Magnitude(0.625, scope="global"))) == [36, 18, 0, 0]


def test_global_ranking_ranks_filters_by_their_mean_square():
    model = named()
    for scale, layer in zip((1.0, 3.0, 2.0, 9.0), model.layers, strict=True):
        layer.kernel.assign(scale * np.ones((6, 6)))
    method = kg.Magnitude(0.5, structure=kg.Filter(), scope="global")
    assert kept_by_layer(kg.prune(model, method)) == [0, 36, 18]


# Filters and the output of the model.


def skipped_for_output(model, method=FILTERS):
    summary = kg.summary(kg.prune(model, method))
    skipped = [row["layer"] for row in summary.rows if "output" in row["note"]]
    assert all(row["method"] is None for row in summary.rows if row["layer"] in skipped)
    text = str(summary)
    assert all(name in text for name in skipped)
    return skipped


def test_filters_leave_the_head_of_a_sequential_model_alone():
    assert skipped_for_output(made(sequential)) == ["head"]


def test_filters_leave_every_head_of_a_functional_model_alone():
    assert sorted(skipped_for_output(made(many_to_many))) == ["left", "right"]


def test_filters_look_through_activations_normalization_and_pooling():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="body")(inputs)
    x = layers.Conv2D(3, 3, name="last")(x)
    x = layers.DepthwiseConv2D(2, name="deep")(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Softmax()(layers.Dropout(0.5)(x * 2.0)))
    assert chosen(model, FILTERS) == ["body"]
    assert "last" in skipped_for_output(model)


def test_filters_look_through_flattening_and_additions():
    inputs = keras.Input((4, 4, 2))
    left, right = layers.Conv2D(3, 3, name="left")(layers.Conv2D(4, 1, name="body")(inputs)), layers.Conv2D(3, 3, name="right")(inputs)
    model = keras.Model(inputs, layers.Flatten()(layers.Add()([left, right]) + 1.0))
    assert chosen(model, FILTERS) == ["body"]


def test_filters_leave_the_head_inside_a_nested_model_alone():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="body"), layers.Dense(3, name="head")])
    inputs = keras.Input((6,))
    assert chosen(keras.Model(inputs, layers.Softmax()(inner(layers.Dense(6, name="stem")(inputs)))), FILTERS) == ["stem", "body"]


def test_filters_go_on_behind_a_nested_model_without_kernels():
    tail = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(), layers.Softmax()])
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="body"), layers.Dense(3, name="head"), tail])
    assert chosen(model, FILTERS) == ["body"]


def test_layers_of_one_name_in_two_nested_models_are_told_apart():
    def block(name):
        return keras.Sequential([keras.Input((6,)), layers.Dense(6, name="dense")], name=name)

    model = randomize(keras.Sequential([keras.Input((6,)), block("body"), block("head")]))
    pruned = kg.prune(model, FILTERS)
    assert [isinstance(part.layers[0], kg.Pruned) for part in pruned.layers] == [True, False]
    inputs = keras.Input((6,))
    head, body = block("head"), block("body")  # the other order in the list of layers
    both = keras.Model(inputs, [head(inputs), layers.Dense(2, name="end")(body(inputs))])
    pruned = kg.prune(both, FILTERS)
    assert [isinstance(pruned.get_layer(name).layers[0], kg.Pruned) for name in ("head", "body")] == [False, True]


def test_a_model_whose_only_kernels_feed_its_output_cannot_be_pruned_by_filters():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, name="only")])
    with pytest.raises(ValueError, match="only.*output of the model"):
        kg.prune(model, FILTERS)
    assert chosen(model) == ["only"]


def test_filters_skip_a_depthwise_kernel_and_say_why():
    model = randomize(convolutional())
    pruned = kg.prune(model, FILTERS)
    row = next(row for row in kg.summary(pruned).rows if "depthwise" in row["layer"])
    assert row["method"] is None and "Filter()" in row["note"] and row["sparsity"] == 0
    assert not any("depthwise" in layer.name for layer in kg.pruned_layers(pruned))


def test_filters_of_a_depthwise_kernel_are_an_error_where_asked_for():
    model = randomize(convolutional())
    for where in ("depthwise", "conv"):
        with pytest.raises(ValueError, match=r"depthwise.*Kernel\(\)"):
            kg.prune(model, FILTERS, where=where)
    alone = keras.Sequential([keras.Input((6, 6, 2)), layers.DepthwiseConv2D(3), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"depthwise.*Kernel\(\)"):
        kg.prune(alone, FILTERS)


# Counting.


def test_sparsity_counts_zeros_over_all_kernels_and_where_narrows_it():
    model = named()
    assert kg.sparsity(model) == 0.0
    pruned = kg.prune(model, MAGNITUDE, where="conv")
    assert kg.sparsity(pruned) == kg.sparsity(kg.strip_pruning(pruned)) == 0.25
    assert kg.sparsity(pruned, where="conv") == 0.5 == kg.sparsity(kg.strip_pruning(pruned), where="conv")
    assert kg.sparsity(pruned, where=["dense_a", "conv_a"]) == 0.25
    assert kg.sparsity(pruned, where=lambda layer: layer.name == "dense_b") == 0.0
    assert isinstance(kg.sparsity(pruned), float)
    with pytest.raises(ValueError, match="where='nothing'"):
        kg.sparsity(pruned, where="nothing")


def test_zeros_that_were_there_before_count_too():
    model = named()
    model.layers[0].kernel.assign(np.zeros((6, 6)))
    assert kg.sparsity(model) == 0.25
    assert kg.sparsity(kg.prune(model, kg.Fixed())) == 0.25


def test_a_summary_has_a_row_for_every_layer_with_weights():
    pruned = kg.prune(randomize(convolutional()), MAGNITUDE, where="^conv2d")
    summary = kg.summary(pruned)
    assert all(set(row) == {"layer", "weight", "path", "shape", "weights", "kept", "sparsity", "method", "note"} for row in summary.rows)
    rows = {type(layer).__name__: row for layer, row in zip([layer for layer in pruned.layers if layer.weights], summary.rows, strict=True)}
    first = summary.rows[0]
    assert (first["shape"], first["weights"], first["kept"], first["sparsity"], first["note"]) == ((3, 3, 2, 4), 72, 36, 0.5, "")
    assert "Magnitude" in first["method"] and "0.5" in first["method"]
    assert rows["BatchNormalization"]["shape"] is None and "no weights that can be pruned" in rows["BatchNormalization"]["note"]
    assert rows["DepthwiseConv2D"]["note"] == rows["Dense"]["note"] == "not selected"
    assert summary.sparsity == pytest.approx(kg.sparsity(pruned))
    assert summary.wrapped_sparsity == 0.5
    text = str(summary)
    assert all(row["layer"] in text and row["note"] in text.replace("\n", " ") for row in summary.rows)
    assert f"{summary.sparsity:.4f}" in text


def test_a_summary_of_a_plain_model_counts_and_names_no_method():
    summary = kg.summary(named())
    assert [row["method"] for row in summary.rows] == [None] * 4
    assert summary.wrapped_sparsity is None and summary.sparsity == 0.0
    assert "conv_a" in str(summary)
    assert kg.summary(kg.strip_pruning(kg.prune(named(), MAGNITUDE))).sparsity == 0.5


@pytest.mark.once
@pytest.mark.parametrize("layer", [layers.Dense(16, name="narrow"), layers.Dense(1, name="narrow")], ids=["sixteen", "one"])
def test_a_summary_marks_a_layer_whose_count_was_raised(layer):
    model = randomize(keras.Sequential([keras.Input((6,)), layers.Dense(200, name="wide"), layer, layers.Dense(2)]))
    rows = {row["layer"]: row for row in kg.summary(kg.prune(model, kg.Magnitude(0.98, structure=kg.Filter()))).rows}
    assert "keeps 1" in rows["narrow"]["note"]
    assert rows["wide"]["note"] == ""


def test_sixteen_filters_of_a_convolution_at_98_percent_leave_one():
    model = randomize(keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(16, 3, name="conv"), layers.Flatten(), layers.Dense(2)]))
    pruned = kg.prune(model, kg.Gibbs(0.98, structure=kg.Filter()))
    assert numpy(pruned.layers[0].mask()).sum() == 3 * 3 * 2
    assert "keeps 1 of 16" in kg.summary(pruned).rows[0]["note"]


def test_global_ranking_does_not_claim_a_raised_count():
    model = named()
    rows = kg.summary(kg.prune(model, kg.Magnitude(0.99, scope="global"))).rows
    assert all("keeps 1" not in row["note"] for row in rows)


def test_a_layer_with_odd_attributes_does_not_disturb_the_walk():
    @keras.saving.register_keras_serializable(package="tests")
    class Odd(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.table = {1: "one", "two": 2, (3,): None}
            self.sequence = [1, "a", None, (2, {"b": {3}})]

        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), Odd(), layers.Dense(2)])
    pruned = kg.prune(model, MAGNITUDE)
    assert len(kg.pruned_layers(pruned)) == 2
    assert kg.sparsity(pruned) == 0.5 and len(kg.summary(pruned).rows) == 2


def test_fixed_masks_found_by_one_pruning_serve_another():
    model = named()
    pruned = kg.prune(model, MAGNITUDE)
    masks = {layer.name: numpy(layer.mask()) for layer in kg.pruned_layers(pruned) if layer.name != "conv_b"}
    again = kg.prune(model, kg.Fixed(masks))
    for layer in kg.pruned_layers(again):
        assert np.array_equal(numpy(layer.mask()), masks.get(layer.name, np.ones((6, 6))))
    assert close(outputs(kg.strip_pruning(again)), outputs(again))


# Bad input.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_before_anything(value):
    model = named()
    kernel = numpy(model.layers[2].kernel).copy()
    kernel[1, 1] = value
    model.layers[2].kernel.assign(kernel)
    before = weights(model)
    with pytest.raises(ValueError, match="dense_a/kernel.*NaN or infinite"):
        kg.prune(model, MAGNITUDE)
    assert same(weights(model), before)
    with pytest.raises(ValueError, match="NaN or infinite"):
        kg.prune(model.layers[2], MAGNITUDE)


def test_a_model_that_is_not_built_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"not built.*keras\.Input"):
        kg.prune(keras.Sequential([layers.Dense(3)]), MAGNITUDE)


class Subclassed(keras.Model):
    def __init__(self, wrap=lambda layer: layer):
        super().__init__()
        self.hidden = wrap(layers.Dense(8, activation="relu", name="hidden"))
        self.head = wrap(layers.Dense(2, name="head"))

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def test_a_subclassed_model_that_cannot_be_copied_is_refused_with_the_constructor_form():
    model = Subclassed()
    with pytest.raises(ValueError, match="not built.*call on a batch"):
        kg.prune(model, MAGNITUDE)
    model = Subclassed(lambda layer: layer)  # a function, which is no configuration
    model(np.ones((1, 6), "float32"))
    with pytest.raises(ValueError, match=r"'Subclassed'[\s\S]*\n\n +self\.dense = keras_gibbs\.Pruned\(keras\.layers\.Dense\(128\), keras_gibbs\.Gibbs"):
        kg.prune(model, MAGNITUDE)


def test_a_subclassed_model_with_wrapped_layers_trains_counts_and_says_how_to_strip():
    model = Subclassed(lambda layer: kg.Pruned(layer, kg.Gibbs(0.5), seed=1))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    history = model.fit(rng.normal(size=(16, 6)), rng.normal(size=(16, 2)), epochs=2, verbose=0, callbacks=[kg.GibbsPruningCallback()]).history
    assert np.isfinite(history["loss"]).all() and history["sparsity"][-1] == 0.5
    assert kg.sparsity(model) == 0.5 and len(kg.pruned_layers(model)) == 2
    assert [row["layer"] for row in kg.summary(model).rows] == ["hidden", "head"]
    assert all(layer.progress == 1.0 for layer in kg.pruned_layers(model))
    with pytest.raises(ValueError, match=r"'Subclassed'[\s\S]*strip_pruning\(wrapped_layer\)"):
        kg.strip_pruning(model)
    assert type(kg.strip_pruning(model.hidden)) is layers.Dense


def test_a_model_of_keras_2_is_refused_and_shown_the_adapter():
    # A real tf_keras takes ten seconds to import; what counts is the module its classes say they come from.
    for module in ("tf_keras.src.engine.sequential", "tf_keras.src.layers.core.dense", "keras.src.engine.functional"):
        thing = type("Sequential", (), {"__module__": module})()
        for function in (lambda x: kg.prune(x, MAGNITUDE), kg.strip_pruning, lambda x: kg.Pruned(x, MAGNITUDE)):
            with pytest.raises(TypeError, match=r"Keras 2.*keras_gibbs\.tfmot"):
                function(thing)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf_keras needs TensorFlow")
def test_a_real_tf_keras_model_is_refused_and_shown_the_adapter():
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.layers.Dense(2)])
    with pytest.raises(TypeError, match=r"Keras 2.*keras_gibbs\.tfmot"):
        kg.prune(model, MAGNITUDE)
    with pytest.raises(TypeError, match=r"Keras 2.*keras_gibbs\.tfmot"):
        kg.sparsity(model)
    with pytest.raises(TypeError, match=r"Keras 2.*keras_gibbs\.tfmot"):
        kg.summary(model)


def test_a_pruned_model_or_a_wrapped_layer_is_refused():
    pruned = kg.prune(sequential(), MAGNITUDE)
    for thing in (pruned, keras.Sequential([keras.Input((6,)), pruned])):
        with pytest.raises(ValueError, match="already pruned.*strip_pruning"):
            kg.prune(thing, MAGNITUDE)
    with pytest.raises(ValueError, match="already wrapped.*strip_pruning"):
        kg.prune(pruned.layers[0], MAGNITUDE)


def test_something_else_than_a_model_or_a_method_is_refused():
    for thing in (None, "model", types.SimpleNamespace(), np.ones(3), sys):
        with pytest.raises(TypeError, match="Keras 3 model or layer"):
            kg.prune(thing, MAGNITUDE)
        with pytest.raises(TypeError, match="Keras 3 model or layer"):
            kg.strip_pruning(thing)
        with pytest.raises(TypeError, match="Keras 3 model or layer"):
            kg.sparsity(thing)
    for method in (0.9, "gibbs", kg.Gibbs, None):
        with pytest.raises(TypeError, match="method="):
            kg.prune(sequential(), method)


def test_a_layer_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match="Dropout has no weights that can be pruned"):
        kg.prune(layers.Dropout(0.5), MAGNITUDE)


def test_a_regular_expression_object_chooses_layers():
    import re

    assert [layer.name for layer in kg.pruned_layers(kg.prune(sequential(), MAGNITUDE, where=re.compile(".")))]


def test_layers_inside_other_layers_are_pruned_under_their_path():
    x = inputs = keras.Input((4, 6))
    x = layers.TimeDistributed(layers.Dense(3, name="inner"), name="steps")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    rows = {row["path"]: row for row in kg.summary(kg.prune(model, MAGNITUDE)).rows}
    assert rows["steps/inner/kernel"]["method"] and rows["head/kernel"]["method"]


def test_an_unknown_layer_after_the_head_does_not_expose_it_to_filters():
    class Scale(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=shape[1:], initializer="ones")

        def call(self, x):
            return x * self.scale

    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, Scale()(layers.Dense(3, name="head")(layers.Dense(6, name="body")(inputs))))
    assert [layer.name for layer in kg.pruned_layers(kg.prune(model, FILTERS))] == ["body"]


def test_what_is_not_a_structure_or_a_hamiltonian_is_refused_at_once():
    for make in (lambda: kg.Gibbs(0.5, structure=kg.Filter), lambda: kg.Magnitude(0.5, structure="filter")):
        with pytest.raises(TypeError, match="`structure` must be"):
            make()
    with pytest.raises(TypeError, match="`hamiltonian` must be an object"):
        kg.Gibbs(0.5, hamiltonian="kernel")


def test_a_kernel_too_large_to_couple_is_named_with_the_way_out():
    layer = layers.Conv2D(2, 12)
    layer.build((None, 16, 16, 1))
    with pytest.raises(ValueError, match=r"128 coupled spins.*Independent\(\).*144 positions"):
        kg.Pruned(layer, kg.Gibbs(0.5, structure=kg.Kernel()))


def test_stripping_weights_from_the_midst_of_a_sparsity_schedule_warns():
    pruned = kg.prune(sequential(), kg.Magnitude(kg.Polynomial(0.0, 0.8, end=0.5)))
    for layer in kg.pruned_layers(pruned):
        layer.anneal(0.3)
    with pytest.warns(UserWarning, match="not come to their end"):
        kg.strip_pruning(pruned)
    for layer in kg.pruned_layers(pruned):
        layer.anneal(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kg.strip_pruning(pruned)


def test_masks_for_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="mask={'nowhere'"):
        kg.prune(sequential(), kg.Fixed({"nowhere": np.ones((2, 2))}))


@keras.saving.register_keras_serializable(package="tests")
class Counted(keras.initializers.RandomNormal):
    calls = 0

    def __call__(self, shape, dtype=None):
        Counted.calls += 1
        return super().__call__(shape, dtype)


@keras.saving.register_keras_serializable(package="tests")
class OfTwo(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(5, kernel_initializer=Counted()), layers.Dense(2, kernel_initializer=Counted())

    def call(self, inputs):
        return self.second(self.first(inputs))


@pytest.mark.once
@pytest.mark.parametrize("subclassed", [False, True])
def test_copies_draw_no_random_weights_and_build_others_as_the_model_does(subclassed):
    """Random weights that the copied ones replace would take the memory of several models."""
    made = OfTwo() if subclassed else keras.Sequential([layers.Dense(5, kernel_initializer=Counted()), layers.LSTM(3, kernel_initializer=Counted())])
    made(np.zeros((2, 6) if subclassed else (2, 4, 6), "float32"))
    before = Counted.calls
    pruned = kg.prune(made, MAGNITUDE, seed=0)
    plain = kg.strip_pruning(pruned)
    assert Counted.calls == before > 0
    for copy in (pruned.layers[-1].layer, plain) if subclassed else (pruned.layers[0].layer, pruned.layers[1].layer.cell, plain.layers[0]):
        owner = copy.first if subclassed else copy
        assert isinstance(owner.kernel_initializer, Counted)


@pytest.mark.parametrize("make", [sequential, normalized], ids=lambda make: make.__name__)
def test_training_a_copy_leaves_the_model_as_it_is(make):
    model = make()
    before = [weight.copy() for weight in weights(model)]
    pruned = kg.prune(model, MAGNITUDE, seed=0)
    pruned.compile(keras.optimizers.SGD(1.0), "mse")
    pruned.fit(np.ones((4, 6), "float32"), np.ones((4, 3), "float32"), verbose=0)
    assert same(weights(model), before) and not same(weights(kg.strip_pruning(pruned)), before)
