"""`GibbsPruningCallback`: when schedules move, what is logged, and what is said about it."""

import csv
import warnings

import keras
import numpy as np
import pytest
from cases import xla

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
STEPS = 4  # batches an epoch
FIGURES = {"sparsity", "beta", "kept", "energy"}  # of Gibbs


def data(steps=STEPS):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8 * steps, 5)).astype("float32")
    return x, (x.sum(1) > 0).astype("int32") + (x[:, 0] > 1)


def tiny(method=None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)])
    return compiled(kg.prune(model, method or kg.Gibbs(0.5), seed=1))


def compiled(model):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Progress(keras.callbacks.Callback):
    """The progress of the wrapped layers under which every batch was trained."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):  # TensorFlow begins one batch too many where the data ends
        values = {layer.progress for layer in kg.pruned_layers(self.model)}
        assert len(values) == 1
        self.seen.append(values.pop())


def fit(model, callback, x=None, y=None, others=(), **kwargs):
    """Fit; the progress at every batch, and the History."""
    if x is None:
        x, y = data()
    progress = Progress()
    kwargs = {"batch_size": 8} | kwargs if y is not None else kwargs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The schedule of")  # short runs are the point here
        history = model.fit(x, y, verbose=0, callbacks=[callback, progress, *others], **kwargs)
    return np.array(progress.seen), history


def state(model, name):
    return [layer.state(name) for layer in kg.pruned_layers(model)]


def progress(model):
    return [layer.progress for layer in kg.pruned_layers(model)]


# When schedules move


@pytest.mark.once
def test_per_epoch_progress_stands_still_within_an_epoch_and_is_one_at_the_end():
    model = tiny()
    seen, _ = fit(model, kg.GibbsPruningCallback("epoch"), epochs=3)
    np.testing.assert_allclose(seen, np.repeat([0, 1 / 3, 2 / 3], STEPS), rtol=1e-6)
    assert progress(model) == [1.0, 1.0]
    assert state(model, "beta") == pytest.approx([1e4, 1e4])


@pytest.mark.once
def test_per_batch_progress_counts_every_batch():
    model = tiny()
    seen, _ = fit(model, kg.GibbsPruningCallback("batch"), epochs=3)
    np.testing.assert_allclose(seen, np.arange(3 * STEPS) / (3 * STEPS), rtol=1e-6)
    assert progress(model) == [1.0, 1.0]


def test_an_int_moves_schedules_every_so_many_batches_of_an_epoch():
    x, y = data(steps=5)
    seen, _ = fit(tiny(), kg.GibbsPruningCallback(2), x, y, epochs=2)
    np.testing.assert_allclose(seen, np.array([0, 0, 2, 2, 4, 5, 5, 7, 7, 9]) / 10, rtol=1e-6)


@pytest.mark.parametrize(("epochs", "expected"), [(19, np.arange(38) / 38), (20, np.repeat(np.arange(20) / 20, 2))])
def test_auto_is_per_batch_below_20_epochs_and_per_epoch_from_there(epochs, expected):
    x, y = data(steps=2)
    seen, _ = fit(tiny(), kg.GibbsPruningCallback(), x, y, epochs=epochs)
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_batches_that_come_several_at_a_time_move_schedules_each_time():
    model = tiny()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), steps_per_execution=2)
    x, y = data(steps=6)
    seen, _ = fit(model, kg.GibbsPruningCallback("batch"), x, y, epochs=2)
    np.testing.assert_allclose(seen, np.arange(0, 12, 2) / 12, rtol=1e-6)
    seen, _ = fit(model, kg.GibbsPruningCallback(3, restart=True), x, y, epochs=1)
    np.testing.assert_allclose(seen, np.array([0, 0, 4]) / 6, rtol=1e-6)  # the third batch passed within the execution of batches 2 and 3


def test_a_fit_that_begins_later_goes_on_where_its_first_epoch_lies():
    model = tiny()
    seen, _ = fit(model, kg.GibbsPruningCallback("batch"), epochs=4, initial_epoch=2)
    np.testing.assert_allclose(seen, (2 * STEPS + np.arange(2 * STEPS)) / (4 * STEPS), rtol=1e-6)
    assert progress(model) == [1.0, 1.0]


def test_a_horizon_reaches_over_several_fits():
    model = tiny()
    first, _ = fit(model, kg.GibbsPruningCallback("batch", epochs=4), epochs=2)
    assert progress(model) == [0.5, 0.5]
    second, _ = fit(model, kg.GibbsPruningCallback("batch", epochs=4), epochs=4, initial_epoch=2)
    np.testing.assert_allclose(np.append(first, second), np.arange(4 * STEPS) / (4 * STEPS), rtol=1e-6)
    assert progress(model) == [1.0, 1.0]


def test_a_horizon_shorter_than_the_fit_ends_within_it():
    model = tiny()
    seen, _ = fit(model, kg.GibbsPruningCallback("epoch", epochs=2), epochs=4)
    np.testing.assert_allclose(seen, np.repeat([0, 0.5, 1, 1], STEPS), rtol=1e-6)
    assert progress(model) == [1.0, 1.0]


def test_scheduled_values_are_those_of_the_schedule():
    model = tiny(kg.Gibbs(kg.Linear(0.0, 0.8), beta=kg.Geometric(1.0, 100.0)))

    class Values(keras.callbacks.Callback):
        seen = []

        def on_train_batch_begin(self, batch, logs=None):
            layer = self.model.layers[0]
            self.seen.append((layer.state("beta"), layer.state("sparsity"), layer.state("kept")))

    fit(model, kg.GibbsPruningCallback("batch"), epochs=2, others=[Values()])
    t = np.arange(2 * STEPS) / (2 * STEPS)
    beta, sparsity, kept = np.transpose(Values.seen)
    np.testing.assert_allclose(beta, 100.0**t, rtol=1e-5)
    np.testing.assert_allclose(sparsity, 0.8 * t, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(kept, [30 - np.floor(0.8 * s * 30 + 0.5) for s in t])


def test_progress_moves_only_by_epochs_where_the_number_of_steps_is_not_known_yet():
    import tensorflow as tf

    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).filter(lambda x, y: True)
    assert dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
    model = tiny()
    seen, _ = fit(model, kg.GibbsPruningCallback("batch"), dataset, epochs=3)
    np.testing.assert_allclose(seen[:STEPS], 0)
    np.testing.assert_allclose(seen[STEPS:], np.arange(STEPS, 3 * STEPS) / (3 * STEPS), rtol=1e-6)
    assert progress(model) == [1.0, 1.0]


def batches(count=STEPS):
    x, y = data(count)
    return ((x[i : i + 8], y[i : i + 8]) for i in range(0, 8 * count, 8))


@pytest.mark.parametrize("method", [kg.Gibbs(0.5), kg.Magnitude(kg.Linear(0.0, 0.5)), kg.Magnitude(0.5, settle=0.5)])
def test_one_epoch_of_unknown_length_is_refused_before_its_first_step(method):
    model = tiny(method)
    before = model.get_weights()
    with pytest.raises(ValueError, match="unknown length.*steps_per_epoch"):
        fit(model, kg.GibbsPruningCallback(), batches(), epochs=1)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
@pytest.mark.once
def test_one_epoch_of_unknown_length_does_where_nothing_moves_or_its_steps_are_given():
    model = tiny(kg.Magnitude(0.5))
    fit(model, kg.GibbsPruningCallback(), batches(), epochs=1)
    assert progress(model) == [1.0, 1.0]
    seen, _ = fit(tiny(), kg.GibbsPruningCallback("batch"), batches(), epochs=1, steps_per_epoch=STEPS)
    np.testing.assert_allclose(seen, np.arange(STEPS) / STEPS)
    model = tiny()
    for epoch in range(3):  # a horizon over several calls, each of one epoch
        fit(model, kg.GibbsPruningCallback(epochs=3), batches(), epochs=epoch + 1, initial_epoch=epoch)
        assert progress(model) == pytest.approx([(epoch + 1) / 3] * 2)


# The end


def test_a_later_fit_keeps_the_final_state_and_says_once_how_to_begin_again():
    model, callback = tiny(kg.Gibbs(kg.Linear(0.0, 0.5))), kg.GibbsPruningCallback("epoch")
    fit(model, callback, epochs=2)
    with pytest.warns(UserWarning, match="restart=True") as caught:
        first, _ = fit(model, callback, epochs=2)
        second, _ = fit(model, callback, epochs=2)
    assert sum("restart=True" in str(warning.message) for warning in caught) == 1
    assert (first == 1).all() and (second == 1).all()
    assert state(model, "sparsity") == [0.5, 0.5] and state(model, "kept") == [15, 9]
    assert kg.sparsity(model) == 0.5


def test_a_restart_begins_again():
    model = tiny()
    fit(model, kg.GibbsPruningCallback("epoch"), epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The schedule of")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        seen, _ = fit(model, kg.GibbsPruningCallback("epoch", restart=True), epochs=2)
    np.testing.assert_allclose(seen, np.repeat([0, 0.5], STEPS))
    assert progress(model) == [1.0, 1.0]


def test_that_the_horizon_has_ended_is_saved(tmp_path):
    model = tiny()
    fit(model, kg.GibbsPruningCallback("epoch"), epochs=2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert progress(again) == [1.0, 1.0]
    with pytest.warns(UserWarning, match="restart=True"):
        seen, _ = fit(again, kg.GibbsPruningCallback("epoch"), epochs=1)
    assert (seen == 1).all()


def test_a_horizon_that_has_not_ended_is_saved_too(tmp_path):
    model = tiny()
    fit(model, kg.GibbsPruningCallback("epoch", epochs=4), epochs=2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert progress(again) == [0.5, 0.5]
    assert state(again, "beta") == state(model, "beta")


def test_a_fit_without_epochs_moves_nothing():
    model = tiny()
    fit(model, kg.GibbsPruningCallback(), epochs=3, initial_epoch=3)
    assert progress(model) == [-1.0, -1.0]


# What is logged


def test_history_csv_and_every_callback_listed_later_see_the_figures(tmp_path):
    class Later(keras.callbacks.Callback):
        seen = []

        def on_epoch_end(self, epoch, logs=None):
            self.seen.append(dict(logs))

    x, y = data()
    others = [keras.callbacks.CSVLogger(tmp_path / "log.csv"), Later()]
    _, history = fit(tiny(kg.Gibbs(0.6)), kg.GibbsPruningCallback("epoch"), x, y, epochs=3, others=others, validation_data=(x, y))
    assert FIGURES | {"loss", "val_loss"} <= set(history.history)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in FIGURES:
        assert len(history.history[name]) == 3
        np.testing.assert_allclose([float(row[name]) for row in rows], history.history[name], rtol=1e-6)
        assert [logs[name] for logs in Later.seen] == history.history[name]


def test_tensorboard_sees_the_figures(tmp_path):
    pytest.importorskip("tensorboard")
    import tensorflow as tf

    fit(tiny(), kg.GibbsPruningCallback("epoch"), epochs=1, others=[keras.callbacks.TensorBoard(tmp_path)])
    records = tf.data.TFRecordDataset([str(file) for file in (tmp_path / "train").iterdir()])
    events = [tf.compat.v1.Event.FromString(record.numpy()) for record in records]
    assert {f"epoch_{name}" for name in FIGURES} <= {value.tag for event in events for value in event.summary.value}


def test_logged_values_are_those_of_the_model():
    model = tiny(kg.Gibbs(0.6))
    _, history = fit(model, kg.GibbsPruningCallback("epoch"), epochs=4)
    logs = history.history
    np.testing.assert_allclose(logs["beta"], [kg.Geometric(1, 1e4, end=0.64)(epoch / 4) for epoch in range(4)], rtol=1e-5)
    kept = (30 - 18) + (18 - 11)  # of layers of 30 and 18 weights, exactly
    np.testing.assert_allclose(logs["sparsity"], [1 - kept / 48] * 4)
    assert logs["sparsity"][-1] == kg.sparsity(model) == kg.sparsity(kg.strip_pruning(model))
    assert all(0 <= value <= 1 for value in logs["kept"])
    assert logs["kept"][-1] == pytest.approx(0.4, abs=0.05)  # beta is 1e4
    assert np.isfinite(logs["energy"]).all()


def test_a_method_without_figures_logs_its_sparsity():
    _, history = fit(tiny(kg.Magnitude(kg.Polynomial(0.0, 0.9))), kg.GibbsPruningCallback("epoch"), epochs=3)
    assert set(history.history) == {"loss", "sparsity"}
    assert history.history["sparsity"] == sorted(history.history["sparsity"])


@pytest.mark.slow
def test_the_best_checkpoint_can_be_loaded_and_predicts_as_it_did(tmp_path):
    path, x = tmp_path / "best.keras", data()[0]

    class Predictions(keras.callbacks.Callback):
        seen = []

        def on_epoch_end(self, epoch, logs=None):
            layers = kg.pruned_layers(self.model)
            self.seen.append((logs["val_loss"], [np.array(layer.mask()) for layer in layers], layers[0].progress))

    model, (_, y) = tiny(), data()
    best = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    fit(model, kg.GibbsPruningCallback("batch"), x, y, epochs=4, others=[best, Predictions()], validation_data=(x, y))
    loaded = keras.models.load_model(path)
    value, masks, at = min(Predictions.seen, key=lambda row: row[0])
    assert loaded.evaluate(x, y, batch_size=8, verbose=0) == pytest.approx(value, rel=1e-6)
    for mask, layer in zip(masks, kg.pruned_layers(loaded)):
        np.testing.assert_array_equal(np.array(layer.mask()), mask)
    assert loaded.layers[0].progress == at
    np.testing.assert_allclose(kg.strip_pruning(loaded).predict(x, verbose=0), loaded.predict(x, verbose=0), atol=1e-6)


# What is said


def test_few_moves_of_a_schedule_are_warned_about():
    x, y = data()
    with pytest.warns(UserWarning, match=r"schedule of `beta`.* moves 1 times only .* of 3 epochs.*update_freq='batch'"):
        tiny().fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[kg.GibbsPruningCallback("epoch")])


@pytest.mark.parametrize("method", [kg.Gibbs(0.5), kg.Gibbs(0.5, beta=3.0), kg.Magnitude(0.5)])
def test_enough_moves_or_no_schedule_are_not_warned_about(method):
    x, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny(method).fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[kg.GibbsPruningCallback("batch")])  # 8 * 0.64 = 5.1 moves


def test_a_model_with_nothing_wrapped_is_refused_before_training():
    keras.utils.set_random_seed(1)
    model = compiled(keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]))
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"found nothing to prune.*keras_gibbs\.prune"):
        fit(model, kg.GibbsPruningCallback(), epochs=1)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("arguments", [("often",), (0,), (-1,), (2.5,), (True,), ("auto", 0), ("auto", 2.5), ("auto", True)])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="Received: (update_freq|epochs)="):
        kg.GibbsPruningCallback(*arguments)


def test_strip_warns_of_a_model_that_was_trained_without_the_callback():
    x, y = data()
    model = tiny()
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    with pytest.warns(UserWarning, match="GibbsPruningCallback"):
        stripped = kg.strip_pruning(model)
    assert kg.sparsity(stripped) == kg.sparsity(model)
    fit(model, kg.GibbsPruningCallback(), epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kg.strip_pruning(model)


# Where the layers are


def test_layers_of_nested_models_are_annealed_too():
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, activation="relu")], name="inner")
    inputs = keras.Input((5,))
    outputs = keras.layers.Dense(3)(inner(inner(inputs)[:, :5]))
    model = compiled(kg.prune(keras.Model(inputs, outputs), kg.Gibbs(0.5), seed=1))
    seen, _ = fit(model, kg.GibbsPruningCallback("epoch"), epochs=2)
    assert seen.tolist() == [0.0] * STEPS + [0.5] * STEPS
    assert progress(model) == [1.0, 1.0]  # the shared layer once
    assert state(model, "beta") == pytest.approx([1e4, 1e4])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = kg.Pruned(keras.layers.Dense(6, activation="relu"), kg.Gibbs(0.5), seed=1)
        self.heads = [kg.Pruned(keras.layers.Dense(3), kg.Magnitude(kg.Linear(0.0, 0.5)), seed=2)]

    def call(self, inputs, training=None):
        return self.heads[0](self.hidden(inputs, training=training), training=training)


@pytest.mark.once
@pytest.mark.parametrize("built", [True, False])
def test_wrapped_layers_of_a_subclassed_model_are_annealed(built):
    keras.utils.set_random_seed(1)
    model = compiled(Subclassed())
    if built:
        model(data()[0][:1])
    seen, history = fit(model, kg.GibbsPruningCallback("batch"), epochs=2)
    np.testing.assert_allclose(np.maximum(seen, 0), np.arange(2 * STEPS) / (2 * STEPS), rtol=1e-6)  # built by the first batch: then -1, not 0
    assert progress(model) == [1.0, 1.0]
    assert model.hidden.state("beta") == pytest.approx(1e4)
    assert model.heads[0].state("kept") == 9
    assert kg.sparsity(model) == 0.5


def drive(callback, model, epochs, steps, first=0):
    """The calls of a `fit` from the epoch `first` on, without its training; yields before every batch."""
    callback.set_model(model)
    callback.set_params({"epochs": epochs, "steps": steps})
    callback.on_train_begin()
    for epoch in range(first, epochs):
        callback.on_epoch_begin(epoch)
        for batch in range(steps):
            callback.on_train_batch_begin(batch)
            yield epoch, batch


@pytest.mark.parametrize("settle", [0.3, 0.7])  # in float32 one lies above the number, the other below
@pytest.mark.parametrize("frequency, first", [("epoch", 0), ("batch", 0), ("batch", 5)])
def test_a_mask_is_held_from_the_very_batch_it_is_to_be(settle, frequency, first):
    model, held = tiny(kg.Magnitude(0.5, settle=settle)), {}
    layer = kg.pruned_layers(model)[0]
    for at in drive(kg.GibbsPruningCallback(frequency), model, 10, 3, first):
        held[at] = layer.masked_weights[0].settled
    assert min(at for at in held if held[at]) == (max(first, round(10 * settle)), 0)
    assert all(held[at] for at in held if at[0] >= 10 * settle)


def test_a_resumed_run_shares_out_what_is_kept_when_one_that_was_not_interrupted_does():
    def moments(first):
        model, shared = tiny(kg.Gibbs.recommended(0.5)), []
        callback = kg.GibbsPruningCallback("batch")
        callback.distribute = lambda model, layers, progress=None: shared.append(layers[0].progress if progress is None else progress)
        for _ in drive(callback, model, 3, 101, first):
            pass
        return shared

    whole = moments(0)
    assert len(whole) > 100 and moments(1) == whole[whole.index(1 / 3) :]


class Counted(keras.layers.Layer):
    """Passes its inputs on, and counts how often it is called: while TensorFlow traces a step, once a trace."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX finds out what a step needs without its values")
@pytest.mark.parametrize(
    ("loss", "metrics", "traces"),
    [
        ("sparse_categorical_crossentropy", ["accuracy"], 1),
        (keras.losses.CategoricalCrossentropy(), ["acc", "AUC"], 1),
        ("mse", ["mae"], 1),
        ("mse", ["accuracy"], 2),  # which accuracy that is only the targets say
    ],
)
def test_a_training_step_is_traced_once_and_logs_what_it_logs_without(loss, metrics, traces):
    x, y = data()
    y = y if loss == "sparse_categorical_crossentropy" else np.eye(3, dtype="float32")[y]
    logs = []
    for callback in ([kg.GibbsPruningCallback()], []):
        keras.utils.set_random_seed(1)
        counted = Counted()
        layers = [keras.Input((5,)), counted, keras.layers.Dense(6), keras.layers.Dense(3, activation="softmax", name="outputs")]
        pruned = kg.prune(keras.Sequential(layers), kg.Magnitude(0.5), seed=1)
        pruned.compile("adam", loss, metrics=metrics)
        inner = next(layer for layer in pruned.layers if isinstance(layer, Counted))
        inner.calls = 0
        logs.append(pruned.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=callback).history)
        assert inner.calls == (traces if callback else 2)
    early, late = logs
    assert set(early) == set(late) | {"sparsity"}
    for name, values in late.items():
        np.testing.assert_allclose(early[name], values, rtol=1e-6, err_msg=name)
