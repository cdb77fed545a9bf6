"""EDropout inside `fit`: what the search applies, what it leaves alone, how it ends, and what it refuses."""

import dataclasses

import keras
import numpy as np
import pytest
from cases import JAX, numpy, xla
from keras import layers, ops

import keras_gibbs as kg
from keras_gibbs.search.model import SearchedModel

quick = pytest.fixture(autouse=True, scope="module")(xla(False))  # before the fixtures that train


def network(normalized=True, head="logits", dropout=False):
    """Two convolutions and a Dense layer, 6 + 5 + 7 units before the output."""
    x = inputs = keras.Input((8, 8, 2))
    for index, width in enumerate((6, 5), 1):
        x = layers.Conv2D(width, 3, activation=None if normalized else "relu", name=f"conv{index}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"norm{index}")(x)) if normalized else x
    x = layers.Dropout(0.2)(layers.Flatten()(x)) if dropout else layers.Flatten()(x)
    x = layers.Dense(7, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax" if head == "softmax" else None, name="output")(x))


def images(number=64, seed=0):
    x = np.random.default_rng(seed).normal(size=(number, 8, 8, 2)).astype("float32")
    return x, (x[:, :4, :, 0].mean((1, 2)) > x[:, 4:, :, 1].mean((1, 2))).astype("int32") + (x[:, 0, 0, 0] > 0.5)


def compiled(model, optimizer=None, from_logits=True, loss=None):
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss or keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits), metrics=["accuracy"])
    return model


def pruned(method=None, seed=0, **kwargs):
    keras.utils.set_random_seed(seed)
    model = kg.prune(network(**kwargs), method or kg.EDropout(population=5), seed=seed)
    for layer in model.layers:
        if getattr(getattr(layer, "layer", layer), "bias", None) is not None:
            inner = getattr(layer, "layer", layer)
            inner.bias.assign(np.random.default_rng(seed).normal(size=inner.bias.shape) * 0.1)
    return compiled(model, from_logits=kwargs.get("head") != "softmax")


def fit(model, *callbacks, epochs=2, data=None, **kwargs):
    x, y = data or images()
    return model.fit(x, y, epochs=epochs, batch_size=16, shuffle=False, verbose=0, callbacks=[kg.GibbsPruningCallback("batch"), *callbacks], **kwargs).history


def arrays(variables):
    return [np.array(numpy(variable)) for variable in variables]


def assert_same(values, others):
    assert len(values) == len(others)
    for value, other in zip(values, others, strict=True):
        np.testing.assert_array_equal(value, other)


class Watch(keras.callbacks.Callback):
    """The energies, the best state, and the variables of the searched layers, before every batch."""

    def on_train_begin(self, logs=None):
        self.rows = []

    def on_train_batch_begin(self, batch, logs=None):
        model = self.model
        bits = numpy(model.best_state()) > 0
        values = [(np.array(numpy(layer.layer.kernel)), np.array(numpy(layer.layer.bias))) for layer in kg.pruned_layers(model)]
        self.rows.append((model.energies, bits, values))


@pytest.fixture(scope="module")
def searched():
    """A model after four epochs, half of them of search; what `Watch` saw; the history."""
    model, watch = pruned(kg.EDropout(population=5)), Watch()
    return model, watch, fit(model, watch, epochs=4)


# What is searched


def test_every_layer_with_a_kernel_but_the_output_has_a_bit_per_unit():
    model = pruned()
    assert [layer.name for layer in kg.pruned_layers(model)] == ["conv1", "conv2", "hidden"]
    assert model.population.shape == (5, 18) and not np.isfinite(model.energies).any() and not model.converged
    assert 0.2 < model.population.mean() < 0.8 and kg.sparsity(model) == 0
    assert any("feeds an output" in row["note"] for row in kg.summary(model).rows if row["layer"] == "output")


def test_seeds_make_the_population():
    one, same, other = pruned(seed=1), pruned(seed=1), pruned(seed=2)
    assert (one.population == same.population).all() and (one.population != other.population).any()


def test_where_chooses_the_layers():
    model = kg.prune(network(), kg.EDropout(), where="conv")
    assert model.population.shape == (8, 11)


def test_the_best_state_is_applied_to_kernels_and_biases_alike_in_training_inference_and_strip(searched):
    model, _, _ = searched
    best = model.population[model.energies.argmin()]
    bits = np.concatenate([np.array(layer.mask())[(0,) * (len(layer.layer.kernel.shape) - 1)] for layer in kg.pruned_layers(model)])
    assert (bits == best).all() and not best.all()
    stripped, x = kg.strip_pruning(model), images()[0]
    assert type(stripped) is type(network()) and [type(layer) for layer in stripped.layers] == [type(layer) for layer in network().layers]
    np.testing.assert_array_equal(stripped.predict(x, verbose=0), model.predict(x, verbose=0))
    start = 0
    for layer in kg.pruned_layers(model):
        kept, plain = best[start : start + layer.masked_weights[0].groups], stripped.get_layer(layer.name)
        start += layer.masked_weights[0].groups
        assert (numpy(plain.kernel)[..., ~kept] == 0).all() and (numpy(plain.bias)[~kept] == 0).all()
        np.testing.assert_array_equal(numpy(plain.kernel)[..., kept], numpy(layer.layer.kernel)[..., kept])
        np.testing.assert_array_equal(numpy(plain.bias)[kept], numpy(layer.layer.bias)[kept])
        x_in = np.random.default_rng(0).normal(size=(2, *layer.input.shape[1:])).astype("float32")
        np.testing.assert_allclose(numpy(layer(x_in, training=True)), numpy(plain(x_in)), atol=1e-5)
    assert kg.sparsity(model) == kg.sparsity(stripped) > 0


def test_a_sequential_comes_back_as_one():
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(6, activation="relu", name="a"), layers.Dense(2, name="b")], name="plain")
    searched = kg.prune(model, kg.EDropout())
    assert isinstance(searched, SearchedModel) and searched.get_layer("a").name == "a"
    stripped = kg.strip_pruning(searched)
    assert type(stripped) is keras.Sequential and stripped.get_config() == model.get_config()


# The step


def test_candidates_leave_everything_but_the_search_as_it_was():
    model = pruned(dropout=True)
    x, y = (ops.convert_to_tensor(part[:16]) for part in images())
    mine = ("population", "energies", "generation", "unchanged", "converged", "bits")
    others = [variable for variable in model.variables if variable.name not in mine]
    assert len(others) < len(model.variables) and any("moving" in variable.name for variable in others)
    before, population = arrays(others), model.population
    for _ in range(3):
        model.search(x, y)
    assert_same(arrays(others), before)
    assert np.isfinite(model.energies).all() and (model.population != population).any()


@pytest.mark.parametrize("head", ["logits", "softmax"])
def test_the_energies_are_those_of_the_stripped_candidates(head):
    model = pruned(normalized=False, head=head)
    x, y = (ops.convert_to_tensor(part[:16]) for part in images())
    model.search(x, y)
    population, energies = model.population, model.energies  # the first step scores the first population
    for state, energy in zip(population, energies, strict=True):
        for layer, part in model._parts:
            layer.state["bits"].assign(state[part].astype("uint8"))
        scores = kg.strip_pruning(model).predict(numpy(x), verbose=0).astype("float64")
        right = scores[np.arange(16), numpy(y)]
        scores[np.arange(16), numpy(y)] = -np.inf
        margin = np.log(right) - np.log(scores.max(1)) if head == "softmax" else right - scores.max(1)
        assert energy == pytest.approx(-margin.mean(), abs=1e-4)


@pytest.mark.few(jax=["batch-norm"])
@pytest.mark.parametrize("normalized", [True, False], ids=["batch-norm", "bare"])
def test_one_stacked_pass_gives_the_energies_of_the_loop(normalized):
    found = {}
    for chunk in (1, 2, 6):
        model = pruned(kg.EDropout(population=6, population_chunk=chunk), normalized=normalized)
        x, y = (ops.convert_to_tensor(part[:16]) for part in images())
        model.search(x, y)
        found[chunk] = model.energies
        assert not any(layer.masks_outputs for layer in kg.pruned_layers(model))
    assert found[1].std() > 1e-3
    np.testing.assert_allclose(found[2], found[1], atol=1e-5)
    np.testing.assert_allclose(found[6], found[1], atol=1e-5)


def test_integer_and_one_hot_labels_give_the_same_energies():
    x, y = images(16)
    found = []
    for labels in (y, y[:, None], np.eye(3, dtype="float32")[y]):
        model = pruned()
        model.search(ops.convert_to_tensor(x), ops.convert_to_tensor(labels))
        found.append(model.energies)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


@pytest.mark.slow
@pytest.mark.once
def test_only_a_part_of_the_batch_is_scored():
    x, y = images()
    part, whole = pruned(kg.EDropout(energy_batch=8)), pruned(kg.EDropout())
    part.search(ops.convert_to_tensor(x[:16]), ops.convert_to_tensor(y[:16]))
    whole.search(ops.convert_to_tensor(x[:8]), ops.convert_to_tensor(y[:8]))
    np.testing.assert_allclose(part.energies, whole.energies, atol=1e-6)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "momentum": lambda: keras.optimizers.SGD(1e-2, momentum=0.9, weight_decay=1e-2),
    "adadelta": lambda: keras.optimizers.Adadelta(1.0),
}


@pytest.mark.few(tensorflow=["adam"], jax=["adam"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_filters_are_still_and_kept_ones_move_under_any_optimizer(optimizer):
    model, watch = pruned(kg.EDropout(population=5, reevaluate_parents=True)), Watch()
    compiled(model, OPTIMIZERS[optimizer]())
    fit(model, watch, epochs=3)
    moved = 0
    for (_, _, before), (_, bits, after) in zip(watch.rows, watch.rows[1:]):
        start = 0
        for old, new in zip(before, after, strict=True):
            kept = bits[start : start + new[1].size]
            start += new[1].size
            for one, other in zip(old, new, strict=True):
                assert not (one != other).reshape(-1, kept.size).any(0)[~kept].any()
            moved += (old[0] != new[0]).any()
    states = np.array([bits for _, bits, _ in watch.rows[1:]])
    returned = np.logical_and(states[1:], ~states[:-1]).sum()
    assert moved > 20 and returned > 0  # of 33 steps of a layer; filters came back while the search went on


def test_stored_energies_never_rise(searched):
    energies = np.array([row[0] for row in searched[1].rows[1:]])
    assert (np.diff(energies, axis=0) <= 0).all() and (np.diff(energies, axis=0) < 0).any()


@pytest.mark.slow
def test_parents_that_are_scored_anew_follow_the_weights():
    model, watch = pruned(kg.EDropout(population=5, reevaluate_parents=True)), Watch()
    fit(model, watch, epochs=3)
    energies = np.array([row[0] for row in watch.rows[1:]])
    assert (np.diff(energies, axis=0) > 0).any()


# Its end


def test_the_search_ends_after_its_share_of_training_and_the_best_state_stays(searched):
    model, watch, history = searched
    assert history["converged"] == [0.0, 0.0, 1.0, 1.0] and model.converged
    states, energies = np.array([row[1] for row in watch.rows]), np.array([row[0] for row in watch.rows])
    assert (states[8:] == states[8]).all() and (energies[8:] == energies[8]).all() and (energies[1:8] != energies[8]).any()
    assert (states[8] == model.population[model.energies.argmin()]).all()
    assert int(numpy(model._search_state["generation"].value)) == 8


def test_the_callback_logs_the_search(searched):
    model, _, history = searched
    assert {"sparsity", "best_energy", "mean_energy", "energy_spread", "kept", "converged"} <= set(history)
    assert history["best_energy"][-1] == pytest.approx(model.energies.min()) and history["mean_energy"][-1] == pytest.approx(model.energies.mean())
    assert history["energy_spread"][-1] == pytest.approx(model.energies.mean() - model.energies.min(), abs=1e-6)
    sizes = np.repeat([3 * 3 * 2 + 1, 3 * 3 * 6 + 1, 80 + 1], [6, 5, 7])
    assert (model.parameters() == sizes).all()
    assert history["kept"][-1] == pytest.approx(numpy(model.best_state()) @ sizes / sizes.sum())


def test_a_unanimous_population_ends_the_search():
    model = pruned()
    model._search_state["population"].assign(ops.repeat(model._search_state["population"].value[:1], 5, axis=0))
    model.search(*(ops.convert_to_tensor(part[:16]) for part in images()))
    assert model.converged and len(np.unique(model.population, axis=0)) == 1


def test_a_best_state_that_stays_for_patience_steps_ends_the_search():
    constant = kg.EDropout(population=5, objective=kg.KeepPenalty(0.5), reevaluate_parents=True, patience=3, search=1.0, crossover=0.0)
    model = pruned(constant)  # without crossover a rival is its parent: nothing ever changes
    x, y = (ops.convert_to_tensor(part[:16]) for part in images())
    ended = []
    for _ in range(5):
        model.search(x, y)
        ended.append(model.converged)
    assert ended == [False, False, False, True, True]


@pytest.mark.slow
@pytest.mark.once
def test_a_search_that_has_ended_can_be_begun_again():
    model = pruned()
    fit(model, epochs=2)
    with pytest.warns(UserWarning, match="ended in an earlier"):
        assert fit(model, epochs=1)["converged"] == [1.0]
    x, y = images()
    history = model.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=[kg.GibbsPruningCallback("batch", restart=True)]).history
    assert history["converged"] == [0.0, 1.0]


@pytest.mark.slow
@pytest.mark.once
def test_strip_says_that_no_callback_was_there():
    model = pruned()
    model.fit(*images(), verbose=0)
    with pytest.warns(UserWarning, match="GibbsPruningCallback"):
        kg.strip_pruning(model)


@pytest.mark.slow
@pytest.mark.once
def test_no_layer_is_ever_empty():
    method = kg.EDropout(population=4, initial_keep=0.01, objective=kg.KeepPenalty(0.001))
    model = pruned(method)
    assert all(model.population[:, part].any(axis=1).all() for _, part in model._parts)
    fit(model, epochs=3)
    assert all(model.population[np.isfinite(model.energies)][:, part].any(axis=1).all() for _, part in model._parts)
    assert all(numpy(layer.masked_weights[0].state["bits"]).any() for layer in kg.pruned_layers(model))


@pytest.mark.slow
def test_a_search_inside_a_larger_model_is_stripped_with_it():
    model = pruned()
    fit(model, epochs=1)
    inputs = keras.Input((8, 8, 2))
    larger = keras.Model(inputs, layers.Dense(2)(model(inputs)))
    stripped, x = kg.strip_pruning(larger), images()[0]
    assert not kg.pruned_layers(stripped) and kg.sparsity(stripped) == kg.sparsity(larger) > 0
    np.testing.assert_array_equal(stripped.predict(x, verbose=0), larger.predict(x, verbose=0))


def test_a_frozen_model_stays_frozen():
    model = network()
    model.trainable = False
    searched = kg.prune(model, kg.EDropout())
    assert not searched.trainable and not kg.strip_pruning(searched).trainable


# Saving


def test_a_search_that_is_saved_in_its_midst_goes_on_as_if_it_had_not_stopped(tmp_path):
    def run(model, begin, *others):
        callbacks = [kg.GibbsPruningCallback("batch"), *others]
        model.fit(*images(), batch_size=16, shuffle=False, verbose=0, initial_epoch=begin, epochs=4, callbacks=callbacks)

    method = kg.EDropout(population=5, objective=kg.MarginEnergy() + kg.KeepPenalty(0.5, weight=1.0), search=0.75)
    whole = pruned(method)
    run(whole, 0, keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"))
    loaded = keras.models.load_model(tmp_path / "2.keras")
    assert isinstance(loaded, SearchedModel) and loaded.method == method and not loaded.converged
    run(loaded, 2)
    assert_same(arrays(loaded.variables), arrays(whole.variables))
    assert_same(arrays(loaded.optimizer.variables), arrays(whole.optimizer.variables))
    assert whole.converged


def test_a_saved_sequential_still_strips_to_one(tmp_path):
    model = kg.prune(keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(2)]), kg.EDropout())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(kg.strip_pruning(loaded)) is keras.Sequential
    assert (loaded.population == model.population).all()


# Objectives of one's own


def few_bits(context):
    assert list(context.layers) == ["conv1", "conv2", "hidden"] and context.logits.shape[0] == context.bits.shape[0]
    assert context.kernels["conv1"].shape == (2, 9, 6) and len(context.features()["conv2"].shape) == 4
    return ops.sum(context.bits, axis=1)


@pytest.mark.slow
@pytest.mark.once
def test_a_callable_is_an_objective():
    model = pruned(kg.EDropout(objective=few_bits))
    fit(model)
    assert model.energies.min() == model.population.sum(1).min()


@pytest.mark.slow
@pytest.mark.once
def test_regression_and_several_outputs_take_an_objective_of_their_own():
    inputs = keras.Input((4,))
    x = layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(inputs, [layers.Dense(1)(x), layers.Dense(2)(x)])

    def errors(context):
        return sum(ops.mean((outputs - targets) ** 2, axis=(1, 2)) for outputs, targets in zip(context.logits, context.labels, strict=True))

    searched = kg.prune(model, kg.EDropout(objective=errors))
    searched.compile("adam", ["mse", "mse"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype("float32"), [rng.normal(size=(32, width)).astype("float32") for width in (1, 2)]
    searched.fit(x, y, verbose=0, callbacks=[kg.GibbsPruningCallback("batch")], epochs=6)
    assert np.isfinite(searched.energies).all()


# What is refused


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"population": 3}, "at least 4"),
        ({"population": True}, "at least 4"),
        ({"rule": "or"}, "rule"),
        ({"search": 0.0}, "fraction"),
        ({"crossover": 1.5}, "probability"),
        ({"initial_keep": 1.0}, "nothing to search"),
        ({"patience": 5}, "reevaluate_parents=True"),
        ({"energy_batch": 0}, "positive int"),
        ({"population_chunk": -1}, "positive int"),
    ],
)
def test_values_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        kg.EDropout(**arguments)


def one_layer(units, activation=None):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(units, activation=activation)(layers.Dense(5)(inputs)))


@pytest.mark.parametrize("model", [lambda: one_layer(1), lambda: one_layer(3, "sigmoid"), lambda: one_layer(1, "sigmoid")])
def test_outputs_that_are_no_class_logits_need_an_objective(model):
    with pytest.raises(ValueError, match="objective="):
        kg.prune(model(), kg.EDropout())


@pytest.mark.parametrize("objective", [kg.MarginEnergy, [1], "margin"])
def test_what_is_no_objective_is_refused(objective):
    with pytest.raises(TypeError, match="objective"):
        kg.EDropout(objective=objective)


def test_an_objective_gives_one_energy_a_state():
    with pytest.raises(Exception, match="one energy a state"):
        pruned(kg.EDropout(objective=lambda context: ops.sum(context.bits))).search(*images(4))


def test_an_average_of_the_weights_would_move_removed_filters():
    with pytest.raises(ValueError, match="use_ema"):
        fit(compiled(pruned(), keras.optimizers.Adam(use_ema=True)))


def test_models_that_cannot_be_searched_are_refused():
    class Own(keras.Model):
        pass

    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="plain copy"):
        kg.prune(Own(inputs, layers.Dense(3)(layers.Dense(5)(inputs))), kg.EDropout())
    with pytest.raises(ValueError, match="whole model"):
        kg.prune(layers.Dense(3), kg.EDropout())
    with pytest.raises(ValueError, match="nothing to prune"):
        kg.prune(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), kg.EDropout())


def test_candidates_share_a_pass_in_front_of_a_softmax():
    assert kg.prune(network(head="softmax"), kg.EDropout(population_chunk=3)).method.population_chunk == 3


@pytest.mark.parametrize("kwargs", [{"dropout": True}, {"activation": "sigmoid"}])
def test_candidates_share_a_pass_only_where_they_can(kwargs):
    model = network(dropout=True) if "dropout" in kwargs else keras.Sequential([keras.Input((4,)), layers.Dense(5, **kwargs), layers.Dense(3)])
    with pytest.raises(ValueError, match="population_chunk=1"):
        kg.prune(model, kg.EDropout(population_chunk=4))


@pytest.mark.parametrize(
    "labels, words", [(np.full(64, 3), "0 ... 2"), (np.full(64, -1), "0 ... 2"), (np.linspace(0, 1, 64), "class numbers"), (np.ones((64, 3)), "one-hot")]
)
def test_labels_that_are_no_classes_are_refused_before_training(labels, words):
    model = pruned()
    before = arrays(model.variables)
    with pytest.raises(ValueError, match=words):
        fit(model, data=(images()[0], labels))
    assert_same(arrays(model.variables), before)


@pytest.mark.slow
@pytest.mark.once
def test_a_batch_smaller_than_the_energy_batch_is_refused_and_a_smaller_last_one_is_not():
    with pytest.raises(ValueError, match="energy_batch=20 with batches of 16"):
        fit(pruned(kg.EDropout(energy_batch=20)))
    x, y = images(36)
    fit(pruned(kg.EDropout(energy_batch=16)), data=(x, y))


@pytest.mark.skipif(JAX, reason="a data set of TensorFlow's")
def test_labels_in_a_data_set_that_cannot_be_looked_at_are_told_after_the_first_epoch():
    import tensorflow as tf

    x, y = images()
    dataset = tf.data.Dataset.from_tensor_slices((x, np.eye(4)[y + 1][:, :3] * 0 + y[:, None] * 0 + 7)).batch(16)
    model = compiled(pruned(), loss=keras.losses.MeanSquaredError())
    with pytest.raises(ValueError, match="finite energy"):
        model.fit(dataset.map(lambda a, b: (a, tf.cast(b[:, :1], "int32"))), verbose=0, callbacks=[kg.GibbsPruningCallback("batch")])


def test_a_wrapper_outside_of_a_searched_model_is_told_by_the_callback():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(kg.Pruned(layers.Dense(5), kg.EDropout())(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="kg.prune|keras_gibbs.prune"):
        model.fit(np.ones((8, 4), "float32"), np.zeros(8, "int32"), verbose=0, callbacks=[kg.GibbsPruningCallback()])


def test_the_configuration_names_what_was_asked_for():
    method = kg.EDropout(16, rule="xor", energy_batch=32)
    assert method.brief() == "EDropout(population=16, rule='xor', energy_batch=32)"
    assert dataclasses.replace(method, population=8) != method


# Real data


@pytest.mark.slow
@pytest.mark.skipif(JAX, reason="the same mathematics, and half a minute of it")
def test_half_of_a_network_that_reads_digits_goes_within_three_points():
    from test_gumbel import accuracy, digits_network

    dense = accuracy(digits_network(), epochs=10)
    model = kg.prune(digits_network(), kg.EDropout(objective=kg.MarginEnergy() + kg.KeepPenalty(0.5)), seed=0)
    reached = accuracy(model, epochs=20)
    kept = model.figures()["kept"]
    assert abs(kept - 0.5) <= 0.03 and kg.summary(model).wrapped_sparsity >= 0.3, kept
    assert reached >= dense - 0.03, (reached, dense)
