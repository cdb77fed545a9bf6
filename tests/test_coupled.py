"""Filters of one channel live and die together, with what follows them."""

import math

import keras
import numpy as np
import pytest
from cases import JAX, xla
from keras import layers, ops
from small_networks import NETWORKS, inputs_of, outputs_of, randomize

import keras_gibbs as kg
from keras_gibbs.coupling.costs import ChannelCosts
from keras_gibbs.coupling.model import coupled_layers, drawn_in
from keras_gibbs.coupling.weights import running_with

COUPLED = kg.Filter(coupled=True)
symbolic = pytest.mark.skipif(JAX, reason="the backend takes no part")
without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))


def everything():
    """A residual connection, BatchNormalization with a scale and without, a concatenation, Flatten into Dense."""
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(6, 3, padding="same", name="first")(inputs))
    x = layers.ReLU()(x)
    y = layers.Conv2D(6, 3, padding="same", name="second")(layers.Conv2D(4, 1, activation="relu", name="inner")(x))
    x = layers.Add()([x, layers.BatchNormalization(scale=False, name="plain_norm")(y)])
    x = layers.Concatenate(name="joined")([x, layers.Conv2D(4, 1, activation="relu", name="beside")(x)])
    x = layers.BatchNormalization(name="last_norm")(x)
    x = layers.Dense(8, "relu", name="dense")(layers.Flatten()(layers.MaxPooling2D(2)(x)))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def data(samples=12):
    rng = np.random.default_rng(0)
    return rng.normal(size=(samples, 6, 6, 3)).astype("float32"), rng.integers(0, 3, samples)


def compiled(model, optimizer="sgd", **options):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return model


def coupled_weights(pruned):
    return {masked.path: masked for layer in coupled_layers(pruned) for masked in layer.masked_weights}


def kept_channels(pruned):
    return {path: ops.convert_to_numpy(masked.final().mask) for path, masked in coupled_weights(pruned).items()}


def assert_close(after, before):
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


@pytest.mark.few(tensorflow=["residual", "u_net", "constants", "nested", "shared", "text", "transformer", "depthwise"], jax=["nested"])
@pytest.mark.parametrize("name", NETWORKS)
def test_removed_channels_leave_the_stripped_model_exactly(name):
    model = randomize(NETWORKS[name]())
    pruned = kg.prune(model, kg.Magnitude(0.5, structure=COUPLED), seed=0)
    for mask in kept_channels(pruned).values():
        assert mask.sum() == max(1, len(mask) - math.floor(0.5 * len(mask) + 0.5))
    inputs = inputs_of(model)
    before, plain = outputs_of(pruned, inputs), kg.strip_pruning(pruned)
    assert type(plain) is type(model)
    np.testing.assert_array_equal(outputs_of(plain, inputs), before)
    assert kg.sparsity(plain) == kg.sparsity(pruned)
    small = kg.shrink(pruned)
    assert_close(outputs_of(small, inputs), before)
    assert small.count_params() < model.count_params()
    cost = ChannelCosts(model)({path: int(mask.sum()) for path, mask in kept_channels(pruned).items()})
    assert small.count_params() <= cost.parameters < ChannelCosts(model)({}).parameters == model.count_params()
    assert kg.shrink(pruned, plan_only=True).total("macs_after") <= cost.macs
    skipped = {row["path"]: row["note"] for row in kg.summary(pruned).rows if row["weight"] and not row["method"]}
    assert skipped and all(skipped.values()) and "not selected" not in skipped.values()


OPTIMIZERS = {"momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01), "adam": lambda: keras.optimizers.Adam(0.01)}


@pytest.mark.few(tensorflow=["adam"], jax=["momentum"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_removed_channel_is_exactly_zero_through_training(name):
    x, y = data()
    pruned = compiled(kg.prune(randomize(everything()), kg.Magnitude(0.5, structure=COUPLED, settle=0.1), seed=0), OPTIMIZERS[name]())
    pruned.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[kg.GibbsPruningCallback()])
    masks = kept_channels(pruned)
    features = keras.Model(pruned.input, {name: pruned.get_layer(name).output for name in ("first", "norm", "second", "plain_norm", "last_norm", "dense")})
    beside = np.concatenate([masks["first/kernel"], masks["beside/kernel"]])
    expected = dict.fromkeys(("first", "norm", "second", "plain_norm"), masks["first/kernel"]) | {"last_norm": beside, "dense": masks["dense/kernel"]}
    for training in (True, False):
        with running_with(drawn_in(pruned, training)):
            found = features(x, training=training)
        for name, mask in expected.items():
            values = ops.convert_to_numpy(found[name]).reshape(-1, len(mask))
            assert not values[:, mask == 0].any(), (name, training)
            assert values[:, mask > 0].any(axis=0).all() or name == "dense"
    small = kg.shrink(pruned)
    assert_close(outputs_of(small, x), outputs_of(pruned, x))


def test_without_sparsity_it_trains_like_the_dense_model():
    x, y = data()
    model = randomize(everything())
    histories = [
        compiled(copy, keras.optimizers.SGD(0.05, momentum=0.9)).fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"]
        for copy in (kg.prune(model, kg.Gibbs(0.0, structure=COUPLED), seed=0), kg.strip_pruning(model))
    ]
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-4)


def test_the_worth_of_a_channel_is_the_mean_of_its_filters_means():
    model = randomize(everything())
    pruned = kg.prune(model, kg.Magnitude(0.5, structure=COUPLED))
    squares = [np.square(ops.convert_to_numpy(model.get_layer(name).kernel)).mean(axis=(0, 1, 2)) for name in ("first", "second")]
    weight = coupled_weights(pruned)["first/kernel"]
    np.testing.assert_allclose(weight.scores(), np.mean(squares, axis=0), rtol=1e-5)
    best = np.argsort(-np.mean(squares, axis=0))[:3]
    np.testing.assert_array_equal(np.flatnonzero(kept_channels(pruned)["first/kernel"]), np.sort(best))
    np.testing.assert_array_equal(ops.convert_to_numpy(pruned.get_layer("second").mask())[0, 0, 0], kept_channels(pruned)["first/kernel"])


METHODS = {
    "gibbs": lambda: kg.Gibbs(0.5, structure=COUPLED, beta=kg.Geometric(1.0, 100.0)),
    "global": lambda: kg.Magnitude(kg.Polynomial(0.0, 0.7), structure=COUPLED, scope="global"),
    "curvature": lambda: kg.Magnitude(0.5, structure=COUPLED, criterion=kg.CurvatureEnergy()),
    "gumbel": lambda: kg.GumbelSoftmax(structure=COUPLED, train_weights=True),
    "extraction": lambda: kg.GumbelSoftmax(structure=COUPLED, initial_logit=-2.0),
    "random": lambda: kg.Random(0.5, structure=COUPLED),
    "growing": lambda: kg.GReg(0.5, structure=COUPLED),
    "dynamic": lambda: kg.SET(0.5, structure=COUPLED, scope="layer", every=0.2),
    "search": lambda: kg.EDropout(4, structure=COUPLED),
}


@pytest.mark.few(tensorflow=["search"], jax=["gumbel"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumed_from_a_file_gives_the_same_bits_and_shrinks(name, tmp_path):
    x, y = data()

    def train(model, first, *others):
        callbacks = [kg.GibbsPruningCallback(), *others]
        model.fit(x, y, batch_size=4, epochs=2, initial_epoch=first, shuffle=False, verbose=0, callbacks=callbacks)
        return model

    fresh = compiled(kg.prune(randomize(everything()), METHODS[name](), seed=3), keras.optimizers.Adam(0.01))
    whole = train(fresh, 0, keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"))
    resumed = train(keras.models.load_model(tmp_path / "1.keras"), 1)
    for one, other in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other), err_msg=one.path)
    assert all(mask.sum() >= 1 for mask in kept_channels(resumed).values())
    assert_close(outputs_of(kg.shrink(resumed), x), outputs_of(resumed, x))


def test_what_keeps_its_channels_is_named_with_the_reason():
    model = randomize(NETWORKS["held"]())
    with pytest.warns(UserWarning, match="keep all their channels.*normalized/kernel.*GroupNormalization"):
        pruned = kg.prune(model, kg.Magnitude(0.5, structure=COUPLED), where="normalized|first|last")
    notes = {row["path"]: row["note"] for row in kg.summary(pruned).rows}
    assert "output of the model" in notes["last/kernel"]
    assert "GroupNormalization" in notes["normalized/kernel"]
    assert notes["first/kernel"] == ""


def test_the_choice_of_a_part_of_what_makes_a_channel_leaves_it_as_it_is():
    model = randomize(everything())
    with pytest.warns(UserWarning, match="also those of 'second/kernel', which `where` leaves out"):
        pruned = kg.prune(model, kg.Magnitude(0.5, structure=COUPLED), where=["first", "inner"])
    assert list(coupled_weights(pruned)) == ["inner/kernel"]


def test_a_copy_by_keras_and_a_loaded_file_are_linked_anew(tmp_path):
    pruned = kg.prune(randomize(everything()), kg.Gibbs(0.5, structure=COUPLED), seed=0)
    x, _ = data()
    before = outputs_of(pruned, x)
    pruned.save(tmp_path / "pruned.keras")
    copy = keras.models.clone_model(pruned)
    copy.set_weights(pruned.get_weights())
    for other in (copy, keras.models.load_model(tmp_path / "pruned.keras")):
        assert type(other) is type(pruned)
        np.testing.assert_array_equal(outputs_of(other, x), before)


@symbolic
def test_what_keras_does_not_keep_of_a_shared_model_is_refused(tmp_path):
    """Keras makes a model that is called within another one and outside of it into two when it copies or loads them."""

    def pruned():
        return kg.prune(randomize(NETWORKS["nested"]()), kg.Gibbs(0.5, structure=COUPLED), seed=0)

    first, second = pruned(), pruned()
    first.save(path := tmp_path / "pruned.keras")
    with pytest.raises(ValueError, match="`load_weights` with the file"):
        keras.models.load_model(path)
    second.set_weights([np.zeros_like(value) for value in second.get_weights()])
    second.load_weights(path)
    x = inputs_of(first)
    np.testing.assert_array_equal(outputs_of(second, x), outputs_of(first, x))
    copy = keras.models.clone_model(first, clone_function=lambda layer: type(layer).from_config(layer.get_config()), recursive=True)
    copy.set_weights(first.get_weights())
    np.testing.assert_array_equal(outputs_of(copy, x), outputs_of(first, x))


def test_ranks_are_those_of_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = everything()
    finally:
        keras.config.set_dtype_policy("float32")
    kernel = np.tile(1.0 + 1e-4 * np.arange(4, dtype="float32"), (1, 1, 6, 1))  # one number in bfloat16
    randomize(model).get_layer("inner").kernel.assign(kernel)
    pruned = kg.prune(model, kg.Magnitude(0.5, structure=COUPLED))
    pruned(data()[0], training=True)
    pruned(data()[0])
    layer = pruned.get_layer("inner")
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.masked_weights[0].state["decision"]).reshape(-1), [0, 0, 1, 1])


@symbolic
def test_statistics_are_set_anew_in_the_pruned_model_as_in_the_stripped_one():
    x, _ = data()
    pruned = kg.prune(randomize(everything()), kg.Magnitude(0.5, structure=COUPLED))
    stripped = kg.recalibrate(kg.strip_pruning(pruned), x)
    kg.recalibrate(pruned, x)
    assert_close(outputs_of(pruned, x), outputs_of(stripped, x))
    np.testing.assert_array_equal(outputs_of(kg.strip_pruning(pruned), x), outputs_of(pruned, x))


def attention(kind, **options):
    inputs = keras.Input((5, 8))
    layer = layers.MultiHeadAttention(4, 3, name="attention") if kind == "multi" else layers.GroupQueryAttention(3, 8, 4, name="attention")
    x = layers.Add()([inputs, layer(layers.LayerNormalization()(inputs), inputs, **options)])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Dense(8, "relu", name="hidden")(x))))


@pytest.mark.few(jax=["multi"])
@pytest.mark.parametrize("kind", ["multi", "grouped"])
def test_heads_of_attention_leave_exactly(kind):
    model = randomize(attention(kind, **({"use_causal_mask": True} if kind == "multi" else {})))
    pruned = compiled(kg.prune(model, kg.Magnitude(0.5, structure=kg.Head()), seed=0), keras.optimizers.Adam(0.01))
    x = np.random.default_rng(0).normal(size=(8, 5, 8)).astype("float32")
    pruned.fit(x, np.arange(8) % 3, batch_size=4, epochs=1, verbose=0)
    ((path, mask),) = kept_channels(pruned).items()
    assert (path, mask.sum()) == ("attention/query/kernel", 2)
    before, small = outputs_of(pruned, x), kg.shrink(pruned)
    assert_close(outputs_of(small, x), before)
    made = small.get_layer("attention")
    assert (made.num_heads if kind == "multi" else (made.num_query_heads, made.num_key_value_heads)) == (2 if kind == "multi" else (4, 2))
    masks = [ops.convert_to_numpy(value) for value in pruned.get_layer("attention").masks().values()]
    assert [found.any(axis=(0, 2)).sum() for found in masks] == ([2, 2, 2] if kind == "multi" else [4, 2, 2])
    notes = {row["path"]: row["note"] for row in kg.summary(pruned).rows}
    assert notes["hidden/kernel"] == "it makes no heads"


@symbolic
def test_filters_leave_heads_alone_and_scores_keep_them():
    model = randomize(attention("multi"))
    pruned = kg.prune(model, kg.Magnitude(0.5, structure=COUPLED))
    assert list(coupled_weights(pruned)) == ["hidden/kernel"]
    assert "Head()" in {row["path"]: row["note"] for row in kg.summary(pruned).rows}["attention/value/kernel"]
    x = keras.Input((5, 8))
    y, scores = layers.MultiHeadAttention(4, 3)(x, x, return_attention_scores=True)
    refused("heads of this attention are not followed", lambda: kg.prune(keras.Model(x, [y, scores]), kg.Magnitude(0.5, structure=kg.Head())))


def refused(message, prune):
    with pytest.raises(ValueError, match=message):
        prune()


def test_what_cannot_be_pruned_by_channels_is_refused():
    model, method = everything(), kg.Magnitude(0.5, structure=COUPLED)
    refused("one bit", lambda: kg.Gibbs(0.5, structure=COUPLED, hamiltonian=kg.FilterCoupling()))
    refused("whole Sequential or Functional model", lambda: kg.prune(layers.Dense(3), method)(np.ones((2, 3))))
    refused("finds the masks of single weights", lambda: kg.prune(model, kg.SNIP(0.5, structure=COUPLED), data=data(), loss="mse"))
    refused("nothing to prune", lambda: kg.prune(model, method, where="head"))
    refused("share a forward pass", lambda: kg.prune(model, kg.EDropout(4, structure=COUPLED, population_chunk=2)))
    refused("of a class of its own", lambda: kg.prune(type("Own", (keras.Model,), {})(model.inputs, model.outputs), method))


@symbolic
def test_half_of_the_filters_of_a_resnet_are_a_quarter_of_its_work():
    from benchmarks.common.networks import resnet

    pruned = kg.prune(resnet(20), kg.Magnitude(0.5, structure=COUPLED))
    report = kg.shrink(pruned, plan_only=True)
    assert report.total("macs_after") <= 0.30 * report.total("macs")


@symbolic
def test_a_budget_is_met_over_channels_and_never_passed():
    model = randomize(everything())
    costs = ChannelCosts(model)
    whole = costs({})
    for budget, spent in ((kg.Budget(macs=0.4), "macs"), (kg.Budget(params=0.6), "parameters")):
        pruned = kg.prune(model, kg.Magnitude(budget, structure=COUPLED, scope="global"))
        ceiling = (budget.macs or budget.params) * getattr(whole, spent)
        one_channel = max(getattr(whole, spent) - getattr(costs({path: group.size - 1}), spent) for path, group in costs.groups.items())
        assert ceiling - one_channel <= getattr(costs({path: int(mask.sum()) for path, mask in kept_channels(pruned).items()}), spent) <= ceiling
        assert kg.shrink(pruned, plan_only=True).total(f"{spent}_after") <= ceiling
    pruned = kg.prune(model, kg.Magnitude(kg.Budget(lambda small: small.count_params(), limit=900), structure=COUPLED))
    assert kg.shrink(pruned).count_params() <= 900
