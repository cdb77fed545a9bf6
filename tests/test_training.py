"""What happens inside `fit`: as the dense model where nothing is removed, in one compiled trace, with the promised sparsity at its end."""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from cases import xla
from keras import ops

import keras_gibbs as kg
from keras_gibbs.numerics import ranking

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
with_xla = pytest.fixture(xla(True))
TENSORFLOW = keras.backend.backend() == "tensorflow"
only_tensorflow = pytest.mark.skipif(not TENSORFLOW, reason="about the graph of TensorFlow")


def exact(groups, sparsity):
    """How many groups are kept."""
    return max(1, groups - int(np.floor(sparsity * groups + 0.5)))


def images(samples=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, 6, 6, 2)).astype("float32"), rng.integers(0, 3, samples)


def small():
    """A convolution of 2x2 (4 filters) and two dense layers, seeded."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 2, activation="relu", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def compiled(model, optimizer="adam", **kwargs):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **kwargs)
    return model


def fit(model, epochs=3, samples=32, callbacks=None, **kwargs):
    callbacks = [kg.GibbsPruningCallback("batch")] if callbacks is None else callbacks
    return model.fit(*images(samples), batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **kwargs).history


KEPT = [exact(size, 0.6) for size in (32, 1000, 30)]  # of the kernels of `small` at sparsity 0.6


# Nothing removed: as the dense model


def everything():
    """Regularizers on kernels, biases and activities, BatchNorm and Dropout."""
    keras.utils.set_random_seed(3)
    l2 = keras.regularizers.L2
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, kernel_regularizer=l2(0.02), activity_regularizer=l2(0.01)),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(8, "relu", bias_initializer="ones", bias_regularizer=l2(0.03), activity_regularizer=l2(0.01)),
            keras.layers.Dropout(0.4, seed=5),
            keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L1(0.01)),
        ]
    )


def trained(model, jit):
    """Losses of every epoch, and the weights of the plain model at the end."""
    compiled(model, keras.optimizers.SGD(0.05, momentum=0.9), jit_compile=jit)
    history = fit(model, epochs=3, callbacks=[], validation_data=images(seed=9))
    if kg.pruned_layers(model):
        model = kg.strip_pruning(model)
    return history["loss"] + history["val_loss"], model.get_weights()


@functools.cache
def dense(jit):
    return trained(everything(), jit)


@pytest.mark.few(tensorflow=["method0-True", "method2-True", "method2-False"], jax=["method2-True"])
@pytest.mark.filterwarnings("ignore:The schedules of")  # no callback: nothing to anneal with sparsity 0
@pytest.mark.parametrize("jit", [False, True] if TENSORFLOW else [True])  # on JAX False means no compiled step at all
@pytest.mark.parametrize("method", [kg.Fixed(), kg.Magnitude(0.0), kg.Gibbs(0.0)])
def test_an_all_ones_mask_trains_exactly_like_the_dense_model(method, jit, with_xla):
    losses, weights = trained(kg.prune(everything(), method), jit)
    expected_losses, expected_weights = dense(jit)
    # XLA may fuse and thus round the two programs differently: a few ulps. What this would find, a loss counted twice, is 1e-2 and more.
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-7) if jit or not TENSORFLOW else np.testing.assert_array_equal
    close(losses, expected_losses)
    for weight, expected in zip(weights, expected_weights, strict=True):
        close(weight, expected)


# Masked weights


def test_masked_weights_stay_bit_for_bit_under_sgd():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.MaxPooling2D(2), keras.layers.Flatten(), keras.layers.Dense(3)])
    pruned = compiled(kg.prune(model, kg.Fixed(np.arange(54).reshape(18, 3) % 2)), keras.optimizers.SGD(0.01))
    before, mask = pruned.layers[-1].layer.get_weights()[0], np.array(pruned.layers[-1].mask())
    fit(pruned, epochs=2)
    after = pruned.layers[-1].layer.get_weights()[0]
    assert (mask == 0).sum() == 27
    np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
    assert (after[mask == 1] != before[mask == 1]).all()


# The train function


def operations(function):
    """The op types of a concrete function, those of every function it calls included."""
    graph = function.graph.as_graph_def()
    return {node.op for node in graph.node} | {node.op for nested in graph.library.function for node in nested.node_def}


@pytest.mark.few(tensorflow=["structure0-False", "structure3-True"])
@only_tensorflow
@pytest.mark.parametrize(("structure", "jit"), [(kg.Unstructured(), False), (kg.Unstructured(), True), (kg.Kernel(), True), (kg.Filter(), True)])
def test_the_train_function_runs_compiled_and_holds_no_python_callback(structure, jit, with_xla):
    import tensorflow as tf

    model = compiled(kg.prune(small(), kg.Gibbs(0.6, structure=structure), seed=1), jit_compile=jit)
    history = fit(model, epochs=2)
    assert np.isfinite(history["loss"]).all()
    x, y = images(8)
    step = tf.function(lambda x, y: model.train_function([(x, y)]), autograph=False)  # the compiled step that `fit` ran
    found = operations(step.get_concrete_function(tf.constant(x), tf.constant(y)))
    assert {"Conv2D", "Conv2DBackpropFilter", "RightShift"} <= found  # the walk came to the gradients and to the noise
    assert not found & {"EagerPyFunc", "PyFunc", "PyFuncStateless"}


METHODS = {
    "Gibbs, scheduled": kg.Gibbs(kg.Polynomial(0.0, 0.6)),
    "Gibbs, kernels": kg.Gibbs(0.6, structure=kg.Kernel()),
    "Gibbs, filters": kg.Gibbs(0.6, structure=kg.Filter()),
    "Magnitude, scheduled": kg.Magnitude(kg.Polynomial(0.0, 0.6)),
    "Magnitude, filters": kg.Magnitude(0.6, structure=kg.Filter()),
}


@pytest.mark.few(tensorflow=["Gibbs, scheduled", "Gibbs, filters", "Magnitude, filters"], jax=["Gibbs, scheduled"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_at_its_sparsity_exactly_and_infers_deterministically(name):
    method = METHODS[name]
    model = compiled(kg.prune(small(), method, seed=1))
    history = fit(model, epochs=2)
    assert np.isfinite(history["loss"]).all()
    layers = kg.pruned_layers(model)
    assert len(layers) == (2 if "filters" in name else 3)  # the last layer feeds the output
    for layer in layers:
        mask = np.array(layer.mask())
        pooled = {"Filter": mask.reshape(-1, mask.shape[-1]), "Kernel": mask.reshape(-1, mask.shape[-2] * mask.shape[-1])}
        groups = pooled.get(type(method.structure).__name__, mask.reshape(1, -1))
        if isinstance(method.structure, kg.Kernel) and mask.ndim == 2:
            groups = mask.reshape(1, -1)
        assert (groups == groups[:1]).all()
        assert groups[0].sum() == exact(groups.shape[1], 0.6)
    x, _ = images()
    stripped = kg.strip_pruning(model)
    assert kg.sparsity(stripped) == kg.sparsity(model)
    np.testing.assert_array_equal(model.predict(x, verbose=0), model.predict(x, verbose=0))
    np.testing.assert_allclose(stripped.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_global_magnitude_ends_at_its_sparsity_over_all_layers():
    model = compiled(kg.prune(small(), kg.Magnitude(kg.Polynomial(0.0, 0.7), scope="global"), seed=1))
    fit(model)
    masks = [np.array(layer.mask()) for layer in kg.pruned_layers(model)]
    assert sum(int(mask.sum()) for mask in masks) == exact(32 + 1000 + 30, 0.7)
    assert kg.sparsity(model) == kg.sparsity(kg.strip_pruning(model))


@pytest.mark.once
def test_evaluation_is_deterministic_and_the_same_inside_fit():
    model, (x, y) = compiled(kg.prune(small(), kg.Gibbs(0.6, beta=1.0), seed=1)), images(seed=9)
    history = fit(model, epochs=2, validation_data=(x, y))
    first, again = (model.evaluate(x, y, batch_size=8, verbose=0) for _ in range(2))
    assert first == again == history["val_loss"][-1]


# One trace


@keras.saving.register_keras_serializable(package="tests")
class Counting(keras.layers.Layer):
    """Counts how often Python runs its call: once a trace."""

    calls = 0

    def call(self, inputs, training=None):
        Counting.calls += 1
        return inputs


@pytest.mark.slow
@pytest.mark.parametrize(("update_freq", "jit"), [("batch", "auto"), ("epoch", True)])
def test_annealing_never_retraces(update_freq, jit, with_xla):
    keras.utils.set_random_seed(1)
    plain = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Flatten(), keras.layers.Dense(5), Counting(), keras.layers.Dense(3)])
    model = compiled(kg.prune(plain, kg.Gibbs(kg.Polynomial(0.0, 0.5)), seed=1), jit_compile=jit)

    class Traces(keras.callbacks.Callback):
        seen = []

        def on_epoch_end(self, epoch, logs=None):
            self.seen.append(Counting.calls)

    traces = Traces()
    fit(model, epochs=10, callbacks=[kg.GibbsPruningCallback(update_freq), traces], validation_data=images(seed=9))
    assert traces.seen == traces.seen[:1] * 10
    before = Counting.calls
    fit(model, epochs=1, callbacks=[kg.GibbsPruningCallback(update_freq, restart=True)], validation_data=images(seed=9))
    assert Counting.calls == before


# Thresholds


class Thresholds(keras.callbacks.Callback):
    """The kernels every step began with, and the state it ended with; list it after the pruning callback."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.kernels, self.states = names, [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.kernels.append([layer.layer.get_weights()[0] for layer in kg.pruned_layers(self.model)])

    def on_train_batch_end(self, batch, logs=None):
        self.states.append([{name: layer.state(name) for name in self.names} for layer in kg.pruned_layers(self.model)])

    def steps(self):
        """(layer, kernel, state) of every layer at every step."""
        for kernels, states in zip(self.kernels, self.states, strict=True):
            yield from zip(range(len(kernels)), kernels, states, strict=True)


def fit_large(method, epochs=6):
    """A real fit of a layer of 12,000 weights with Adam at 1e-2: 96 steps in which the weights grow several times over."""
    keras.utils.set_random_seed(2)
    x = np.random.default_rng(4).normal(size=(256, 100)).astype("float32")
    y = (np.abs(x[:, :3]).argmax(1)).astype("int32")
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(120, activation="relu"), keras.layers.Dense(3)])
    model = compiled(kg.prune(model, method, where=lambda layer: layer.units == 120, seed=1), keras.optimizers.Adam(1e-2))
    thresholds = Thresholds("sparsity", "threshold" if isinstance(method, kg.Gibbs) else "cut_key")
    model.fit(x, y, batch_size=16, epochs=epochs, verbose=0, callbacks=[kg.GibbsPruningCallback("batch"), thresholds])
    assert len(thresholds.states) == 16 * epochs
    return model, list(thresholds.steps())


@pytest.mark.few(tensorflow=["0.9", "sparsity3"], jax=["sparsity2"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, kg.Polynomial(0.0, 0.9, end=0.7), kg.Linear(0.9, 0.3)])
def test_the_tracked_threshold_has_its_fraction_of_weights_below_it_at_every_step(sparsity):
    model, steps = fit_large(kg.Gibbs(sparsity))
    target = np.array([state["sparsity"] for _, _, state in steps])
    below = np.array([(kernel**2 < np.float32(state["threshold"])).mean() for _, kernel, state in steps])
    assert np.abs(below - target).max() <= 0.002
    if isinstance(sparsity, float):
        assert (target == np.float32(sparsity)).all()
    else:
        assert target[0] == np.float32(sparsity.start) and target[-1] == pytest.approx(sparsity(95 / 96))
    thresholds = [state["threshold"] for _, _, state in steps]
    assert max(thresholds) > 1.2 * min(thresholds)  # it had a way to go
    assert int(np.array(model.layers[0].mask()).sum()) == exact(12_000, sparsity if isinstance(sparsity, float) else sparsity.stop)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.9, kg.Polynomial(0.0, 0.9, end=0.7)])
def test_magnitude_in_a_large_layer_removes_its_fraction_at_every_step(sparsity):
    model, steps = fit_large(kg.Magnitude(sparsity))
    keys = np.array([state["cut_key"] for _, _, state in steps], "int32")
    cuts = ops.convert_to_numpy(ranking.from_key(ops.convert_to_tensor(keys)))
    for cut, (_, kernel, state) in zip(cuts, steps):
        assert abs((np.abs(kernel) < cut).mean() - state["sparsity"]) <= 0.002
    assert int(np.array(model.layers[0].mask()).sum()) == exact(12_000, 0.9)


@pytest.mark.few(tensorflow=["structure0-0.7", "structure3-0.7"])
@pytest.mark.once
@pytest.mark.parametrize(
    ("structure", "sparsity"),
    [(kg.Unstructured(), 0.7), (kg.Unstructured(), kg.Linear(0.1, 0.8)), (kg.Kernel(), kg.Linear(0.1, 0.8)), (kg.Filter(), 0.7)],
)
def test_thresholds_of_small_layers_and_of_groups_are_the_exact_quantile_at_every_step(structure, sparsity):
    model = compiled(kg.prune(small(), kg.Gibbs(sparsity, structure=structure), seed=1), keras.optimizers.Adam(1e-2))
    recorder = Thresholds("sparsity", "threshold")
    fit(model, callbacks=[kg.GibbsPruningCallback("batch"), recorder])
    for _, kernel, state in recorder.steps():
        squares = np.float64(kernel) ** 2
        if isinstance(structure, kg.Filter):
            squares = squares.mean(tuple(range(kernel.ndim - 1)))
        elif isinstance(structure, kg.Kernel) and kernel.ndim == 4:
            squares = squares.mean((0, 1))
        assert state["threshold"] == pytest.approx(np.quantile(squares, state["sparsity"]), rel=1e-6)


@pytest.mark.slow
@pytest.mark.once
def test_a_large_layer_of_groups_has_the_exact_quantile_too():
    _, steps = fit_large(kg.Gibbs(0.6, structure=kg.Filter(), beta=1.0), epochs=1)
    for _, kernel, state in steps:
        assert state["threshold"] == pytest.approx(np.quantile((np.float64(kernel) ** 2).mean(0), 0.6), rel=1e-6)


# Beside what else `fit` can do


def test_several_steps_an_execution_class_weights_sample_weights_and_validation_work_together():
    model = compiled(kg.prune(small(), kg.Gibbs(0.6), seed=1), steps_per_execution=3, weighted_metrics=["accuracy"])
    rng = np.random.default_rng(1)
    weights = {
        "sample_weight": rng.uniform(0.5, 2.0, 64).astype("float32"),
        "validation_data": (*images(16, seed=9), np.ones(16, "float32")),
    }
    history = fit(model, samples=64, **weights)  # 8 steps, in executions of 3, 3 and 2
    again = fit(model, samples=64, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, callbacks=[kg.GibbsPruningCallback("batch", restart=True)])
    assert np.isfinite(history["loss"] + history["val_loss"] + again["loss"]).all()
    assert [int(np.array(layer.mask()).sum()) for layer in kg.pruned_layers(model)] == KEPT


@pytest.mark.slow
@pytest.mark.once
def test_several_steps_an_execution_draw_a_mask_each():
    losses, draws = [], []
    for steps in (1, 4):
        model = compiled(kg.prune(small(), kg.Gibbs(0.6, beta=5.0), seed=1), "sgd", steps_per_execution=steps)
        losses.append(fit(model, epochs=2)["loss"])
        draws.append([int(np.array(weight)) for weight in model.weights if weight.name == "draws"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert draws[0] == draws[1] == [8, 8, 8]


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_under_mixed_precision_masks_are_ranked_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(kg.prune(small(), kg.Gibbs(0.6), seed=1), keras.optimizers.Adam(1e-2))
        recorder = Thresholds("threshold")
        history = fit(model, epochs=2, callbacks=[kg.GibbsPruningCallback("batch"), recorder])
        x = images()[0]
        assert model.predict(x, verbose=0).dtype == kg.strip_pruning(model).predict(x, verbose=0).dtype
        np.testing.assert_array_equal(model.predict(x, verbose=0), kg.strip_pruning(model).predict(x, verbose=0))
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(history["loss"]).all()
    for _, kernel, state in recorder.steps():
        assert kernel.dtype == "float32"
        assert state["threshold"] == pytest.approx(np.quantile(np.float64(kernel) ** 2, 0.6), rel=1e-6)
    assert [int(np.array(layer.mask()).sum()) for layer in kg.pruned_layers(model)] == KEPT


MIRRORED = """
import keras, numpy as np, tensorflow as tf
import keras_gibbs as kg

tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
keras.utils.set_random_seed(1)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(120, activation="relu"), keras.layers.Dense(3)])
    model = kg.prune(model, kg.Gibbs(0.6, criterion=kg.CurvatureEnergy(0.9), settle=0.9), seed=1)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x = np.random.default_rng(0).normal(size=(64, 100)).astype("float32")
history = model.fit(x, (x[:, 0] > 0).astype("int32"), batch_size=16, epochs=3, verbose=0, callbacks=[kg.GibbsPruningCallback("batch")])
assert np.isfinite(history.history["loss"]).all()
replicated = 0
for variable in model.variables:
    values = [value.numpy() for value in strategy.experimental_local_results(variable.value)]
    replicated += len(values) == 2
    assert all((value == values[0]).all() for value in values), variable.path
assert replicated == len(model.variables), replicated
draws = [int(variable.numpy()) for variable in model.variables if variable.path.endswith("draws")]
assert draws == [12, 12], draws
assert [layer.progress for layer in model.layers] == [1.0, 1.0]
assert all(float(np.array(layer.masked_weights[0].values()["curvature"]).max()) > 0 and layer.masked_weights[0].settled for layer in model.layers)
kept = [int(np.array(layer.mask()).sum()) for layer in model.layers]
assert kept == [4800, 144], kept
stripped = kg.strip_pruning(model)
assert kg.sparsity(stripped) == kg.sparsity(model) == 0.6

with strategy.scope():
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(120, activation="relu"), keras.layers.Dense(3)])
    model = kg.prune(model, kg.EDropout(4), seed=1)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
history = model.fit(x, (x[:, 0] > 0).astype("int32"), batch_size=16, epochs=3, verbose=0, callbacks=[kg.GibbsPruningCallback("batch")])
assert np.isfinite(history.history["best_energy"]).all()
for variable in model.variables:
    values = [value.numpy() for value in strategy.experimental_local_results(variable.value)]
    assert len(values) == 2 and (values[0] == values[1]).all(), variable.path
print("agreed")
"""


@pytest.mark.slow
@only_tensorflow
def test_replicas_of_a_mirrored_strategy_draw_the_same_masks_and_search_alike():
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "KERAS_GIBBS_XLA": "1"}
    run = subprocess.run([sys.executable, "-c", MIRRORED], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip().endswith("agreed")


@only_tensorflow
def test_figures_are_numbers_under_a_strategy_without_xla():
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        pruned = kg.prune(small(), kg.Gibbs(0.6), seed=1)
    assert all(isinstance(value, float) for layer in kg.pruned_layers(pruned) for value in layer.figures().values())


# Weights that change outside of a training step


@pytest.mark.slow
@pytest.mark.once
def test_averaged_weights_are_masked_by_their_own_ranking():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((120,)), keras.layers.Dense(120), keras.layers.Dense(3)])
    pruned = compiled(kg.prune(model, kg.Gibbs(0.9), seed=0), keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 120)).astype("float32"), rng.integers(0, 3, 64)
    pruned.fit(x, y, epochs=2, verbose=0, validation_data=(x, y), callbacks=[kg.GibbsPruningCallback("batch")])
    difference = pruned.predict(x, verbose=0) - kg.strip_pruning(pruned).predict(x, verbose=0)
    assert np.max(np.abs(difference)) < 1e-6


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_kernels_of_other_floats_are_pruned(dtype):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,), dtype="float32"), keras.layers.Dense(4, dtype=dtype), keras.layers.Dense(3)])
    pruned = compiled(kg.prune(model, kg.Gibbs(0.5), seed=0))
    x, y = np.random.default_rng(0).normal(size=(16, 6)).astype("float32"), np.arange(16) % 3
    pruned.fit(x, y, verbose=0, epochs=2, callbacks=[kg.GibbsPruningCallback("batch")])
    assert kg.sparsity(pruned, where=pruned.layers[0].name) == 0.5
    assert np.allclose(pruned.predict(x, verbose=0), kg.strip_pruning(pruned).predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize("method", [kg.Magnitude(0.9995), kg.Gibbs(0.9995, beta=1e9)])
def test_a_large_layer_never_loses_everything_while_it_trains(method):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100, use_bias=False)])
    pruned = kg.prune(model, method, seed=0)
    x = np.eye(100, dtype="float32")
    for _ in range(3):
        kernel = ops.convert_to_numpy(pruned(x, training=True))  # the identity shows the masked kernel
        assert 1 <= np.count_nonzero(kernel) <= 10
