"""Methods on tf_keras models, stripped by TF-MOT."""

import dataclasses
import importlib.util
import inspect
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental.cluster import cluster_weights
from tf_keras import layers

import keras_gibbs as kg
from keras_gibbs import tfmot as kg_tfmot
from keras_gibbs.tfmot import GibbsPruningCallback
from keras_gibbs.tfmot.wrapper import pruned_layers

sparse = tfmot.sparsity.keras
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(32, 4, 4, 2)).astype("float32"), rng.integers(0, 3, 32)

MASKS = {name: np.arange(np.prod(shape)).reshape(shape) % 2 for name, shape in {"conv": (3, 3, 2, 8), "dense": (8, 5), "scores": (5, 3)}.items()}
METHODS = {
    "fixed": kg.Fixed(MASKS),
    "gibbs": kg.Gibbs(0.5),
    "gibbs-kernel": kg.Gibbs(0.5, structure=kg.Kernel()),
    "gibbs-filter": kg.Gibbs(0.5, structure=kg.Filter(), hamiltonian=kg.FilterCoupling(sweeps=2)),
    "magnitude": kg.Magnitude(kg.Polynomial(0.0, 0.5)),
    "magnitude-global": kg.Magnitude(0.5, scope="global"),
    "gibbs-recommended": kg.Gibbs.recommended(0.5),
    "gumbel": kg.GumbelSoftmax(),
    "gumbel-weights": kg.GumbelSoftmax(train_weights=True, sparsity=0.5),
    "edge-popup": kg.EdgePopup(0.5),
    "random": kg.Random(0.5),
    "set": kg.SET(0.5, scope="layer", every=0.2),
    "greg": kg.GReg(0.5, choose=0.3, remove=0.5),
    "lamp": kg.Magnitude(0.5, scope="lamp"),
    "blocks": kg.Magnitude(0.5, structure=kg.Block(2, 2)),
}
FROZEN = ("gumbel", "edge-popup")


def network():
    """A convolution of 144 weights and 8 filters, a Dense layer of 40, a classifier of 15."""
    tf_keras.utils.set_random_seed(1)
    return tf_keras.Sequential(
        [
            layers.Conv2D(8, 3, padding="same", use_bias=False, input_shape=(4, 4, 2), name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="relu", name="dense"),
            layers.Dense(3, name="scores"),
        ]
    )


def mlp():
    tf_keras.utils.set_random_seed(1)
    return tf_keras.Sequential([layers.Dense(8, activation="relu", input_shape=(6,), name="dense"), layers.Dense(3, name="scores")])


FLAT = X.reshape(32, -1)[:, :6]


def compiled(model, optimizer=None, graph=False):
    """Eager unless asked: to trace a graph takes longer than these few steps."""
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or tf_keras.optimizers.Adam(1e-2), loss, run_eagerly=not graph)
    return model


def fit(model, *callbacks, x=X, epochs=2, **kwargs):
    return model.fit(x, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **kwargs).history


def kernels(model):
    return [weight.numpy() for weight in model.weights if weight.shape.rank > 1]


def zeros(model):
    return [int((kernel == 0).sum()) for kernel in kernels(model)]


def same(one, other):
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.few(tensorflow=["gibbs-kernel", "gibbs-recommended", "magnitude-global", "gumbel", "set"])
@pytest.mark.parametrize("name", METHODS)
def test_strip_pruning_gives_the_plain_model_with_its_masks(name):
    model, method = network(), METHODS[name]
    before, config = model.get_weights(), model.get_config()
    pruned = compiled(kg_tfmot.prune(model, method, seed=1), graph=name == "gibbs")
    dense = [masked.variable.numpy() for layer in pruned_layers(pruned) for masked in layer.masked_weights]
    history = fit(pruned, GibbsPruningCallback(), validation_data=(X, Y))
    assert same(model.get_weights(), before)  # the model that was given
    assert all(isinstance(layer, kg_tfmot.Pruned) and layer.name == f"prune_low_magnitude_{layer.layer.name}" for layer in pruned_layers(pruned))
    final = sparse.strip_pruning(pruned)
    assert final.get_config() == config
    assert np.array_equal(final(X), pruned(X))
    assert compiled(final).evaluate(X, Y, verbose=0) == pytest.approx(history["val_loss"][-1], abs=1e-6)  # what was validated
    found = zeros(final)
    assert history["sparsity"][-1] == pytest.approx(sum(found[: len(dense)]) / sum(kernel.size for kernel in kernels(final)[: len(dense)]))
    if name == "gibbs-filter":
        assert found == [72, 24, 0]  # half of 8 and three of 5 filters; the classifier keeps its units
    elif name in ("magnitude-global", "lamp"):
        assert sum(found) == 100  # of 199
    elif name == "blocks":
        assert found == [72, 18, 10]  # smaller blocks at the edges of 8x5 and 5x3
    elif name == "gibbs-recommended":
        assert found == [97, 2, 0]  # the classifier would keep more than all; the others keep the rest in the ratio of 16 to 13
    elif name != "gumbel":
        assert found == [72, 20, 8]
    else:
        assert all(0 < count < kernel.size for count, kernel in zip(found, kernels(final), strict=True))
    if name in FROZEN:  # every kernel is its frozen one under the mask, times its layer's scale; nothing else but statistics has moved
        for start, kernel in zip(dense, kernels(final), strict=True):
            ratio = kernel[kernel != 0] / start[kernel != 0]
            assert np.allclose(ratio, ratio[0], rtol=1e-5)
        for layer in ("norm", "dense", "scores"):
            assert same(final.get_layer(layer).get_weights()[-1:] if layer != "norm" else final.get_layer(layer).get_weights()[:2], plain(model, layer))
        assert not np.allclose(final.get_layer("norm").moving_mean, 0.0)


@pytest.mark.parametrize("optimizer", [tf_keras.optimizers.Adam(0.1), tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)], ids=["adam", "legacy"])
def test_the_optimizer_forgets_grown_weights(optimizer):
    pruned = compiled(kg_tfmot.prune(network(), kg.SET(0.5, fraction=0.5, every=0.2), seed=1), optimizer)
    forgotten = []

    class Watched(GibbsPruningCallback):
        def forget(self, model, variable, where):
            super().forget(model, variable, where)
            slots = [slot for slot in slots_of(model.optimizer) if slot.shape == variable.shape and not np.array_equal(slot, variable)]
            forgotten.append((where.sum(), [np.abs(slot.numpy()[where]).sum() for slot in slots], [np.abs(slot.numpy()[~where]).sum() for slot in slots]))

    fit(pruned, Watched(update_freq="batch"), epochs=3)
    grown = [entry for entry in forgotten if entry[0]]
    assert grown and all(sum(at) == 0 for _, at, _ in grown) and any(sum(elsewhere) > 0 for *_, elsewhere in grown)


def slots_of(optimizer):
    return optimizer.variables() if callable(optimizer.variables) else optimizer.variables


@pytest.mark.parametrize(
    "method, message",
    [
        (kg.SNIP(0.5), "scores a whole Keras 3 model"),
        (kg.SynFlow(0.5), "scores a whole Keras 3 model"),
        (kg.RigL(0.5), "cannot hand"),
        (kg.Magnitude(kg.Budget(params=0.5)), "A budget is met by"),
    ],
)
def test_what_needs_keras_3_is_refused(method, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        kg_tfmot.prune(model, method)
    with pytest.raises(ValueError, match=message):
        kg_tfmot.Pruned(layers.Dense(3), method=method)


def plain(model, layer):
    weights = model.get_layer(layer).get_weights()
    return weights[:2] if layer == "norm" else weights[-1:]


@pytest.mark.few(tensorflow=["gibbs-h5"])
@pytest.mark.parametrize("name, suffix", [("gibbs", "h5"), ("gumbel", "keras")])
def test_a_checkpoint_strips_and_resumes_bit_for_bit(name, suffix, tmp_path):
    checkpoint = tf_keras.callbacks.ModelCheckpoint(f"{tmp_path}/{{epoch}}.{suffix}")
    pruned = compiled(kg_tfmot.prune(network(), METHODS[name], seed=1), graph=name == "gibbs")
    fit(pruned, GibbsPruningCallback(epochs=3), checkpoint, epochs=3)
    for epoch in (1, 3, 2):
        loaded = tf_keras.models.load_model(f"{tmp_path}/{epoch}.{suffix}")
        stripped = sparse.strip_pruning(loaded)
        assert np.array_equal(stripped(X), loaded(X)) and (min(zeros(stripped)) > 0 if name == "gumbel" else zeros(stripped) == [72, 20, 8])
    loaded.run_eagerly = pruned.run_eagerly
    fit(loaded, GibbsPruningCallback(epochs=3), epochs=3, initial_epoch=2)
    assert same(loaded.get_weights(), pruned.get_weights())
    assert same([v.numpy() for v in loaded.optimizer.variables], [v.numpy() for v in pruned.optimizer.variables])


def test_checkpoints_before_the_callback_hold_the_masks_of_a_whole_epoch_and_others_are_folded(tmp_path):
    pruned = compiled(kg_tfmot.prune(mlp(), kg.Gibbs(0.5), seed=1))
    per_batch = tf_keras.callbacks.ModelCheckpoint(f"{tmp_path}/batch.h5", save_freq=1)
    fit(pruned, tf_keras.callbacks.ModelCheckpoint(f"{tmp_path}/epoch.h5"), per_batch, GibbsPruningCallback(), x=FLAT, epochs=1)
    stripped = sparse.strip_pruning(tf_keras.models.load_model(f"{tmp_path}/epoch.h5"))
    assert np.array_equal(stripped(FLAT), pruned(FLAT)) and zeros(stripped) == [24, 12]
    loaded = tf_keras.models.load_model(f"{tmp_path}/batch.h5")
    assert zeros(sparse.strip_pruning(loaded)) == [0, 0]
    dense = kernels(sparse.strip_pruning(loaded))
    kg_tfmot.fold(loaded)
    assert zeros(sparse.strip_pruning(loaded)) == [24, 12]
    assert same([masked.value().numpy() for layer in pruned_layers(loaded) for masked in layer.masked_weights], dense)


def test_an_epoch_of_unknown_length_warns_of_checkpoints_before_the_callback():
    data = tf.data.Dataset.from_tensor_slices((FLAT, Y)).batch(16).filter(lambda *batch: True)
    pruned = compiled(kg_tfmot.prune(mlp(), kg.Gibbs(0.5, beta=1.0)))
    with pytest.warns(UserWarning, match="how long an epoch is") as found:
        pruned.fit(data, epochs=3, verbose=0, callbacks=[GibbsPruningCallback()])
    assert len([warning for warning in found if "how long" in str(warning.message)]) == 1
    assert zeros(sparse.strip_pruning(pruned)) == [24, 12]


def test_weights_that_others_write_after_folding_are_the_new_ones():
    optimizer = tf_keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)  # Keras writes the averages when the last epoch has ended
    pruned = compiled(kg_tfmot.prune(mlp(), kg.Gibbs(0.5)), optimizer)
    fit(pruned, GibbsPruningCallback(), x=FLAT)
    assert zeros(sparse.strip_pruning(pruned)) == [24, 12]
    other = mlp().get_layer("dense").get_weights()
    pruned.layers[0].set_weights(other)
    kg_tfmot.fold(pruned)
    assert np.array_equal(pruned.layers[0].masked_weights[0].value().numpy(), other[0]) and zeros(sparse.strip_pruning(pruned)) == [24, 12]


def test_a_mask_of_ones_trains_like_the_dense_model():
    def regular():
        model = mlp()
        tf_keras.utils.set_random_seed(1)
        first = layers.Dense(8, kernel_regularizer="l2", activity_regularizer="l1", input_shape=(6,))
        return tf_keras.Sequential([first, layers.BatchNormalization(), *model.layers[1:]])

    losses = [
        fit(compiled(model), *callbacks, x=FLAT)["loss"]
        for model, callbacks in ((regular(), ()), (kg_tfmot.prune(regular(), kg.Fixed()), [GibbsPruningCallback()]))
    ]
    assert losses[0] == losses[1]


@pytest.mark.few(tensorflow=["best"])
@pytest.mark.parametrize("options", [{"save_weights_only": True}, {"save_best_only": True, "monitor": "sparsity", "mode": "max"}], ids=["weights", "best"])
def test_checkpoints_of_weights_and_of_the_best_epoch_hold_the_masks(options, tmp_path):
    path = f"{tmp_path}/model.h5"
    fit(compiled(kg_tfmot.prune(mlp(), kg.Gibbs(0.5), seed=1)), GibbsPruningCallback(), tf_keras.callbacks.ModelCheckpoint(path, **options), x=FLAT)
    if "save_weights_only" in options:
        loaded = kg_tfmot.prune(mlp(), kg.Gibbs(0.5), seed=2)
        loaded.load_weights(path)
    else:
        loaded = tf_keras.models.load_model(path)
    assert zeros(sparse.strip_pruning(loaded)) == [24, 12]


class DenseOnly(sparse.PruningPolicy):
    def allow_pruning(self, layer):
        return isinstance(layer, layers.Dense)

    def ensure_model_supports_pruning(self, model):
        assert model.built


def test_models_layers_and_lists_are_taken_as_by_tfmot_with_one_argument_more():
    ours, theirs = (list(inspect.signature(function).parameters) for function in (kg_tfmot.prune_low_magnitude, sparse.prune_low_magnitude))
    assert ours == [*theirs[:-1], "method", "kwargs"]
    pruned = kg_tfmot.prune_low_magnitude(network(), pruning_policy=DenseOnly(), method=kg.Gibbs(0.5))
    assert [layer.layer.name for layer in pruned_layers(pruned)] == ["dense", "scores"]
    final = []
    for prune_low_magnitude, arguments in ((sparse.prune_low_magnitude, {}), (kg_tfmot.prune_low_magnitude, {"method": kg.Gibbs(0.5)})):
        one = prune_low_magnitude(layers.Dense(5, name="one"), input_shape=(6,), **arguments)
        wrapped = [one, *prune_low_magnitude([layers.Dense(4, name="two"), layers.Dense(3, name="three")], **arguments)]
        assert [layer.name for layer in wrapped] == [f"prune_low_magnitude_{name}" for name in ("one", "two", "three")]
        assert all(type(layer).from_config(layer.get_config()).get_config() == layer.get_config() for layer in wrapped)
        final.append(sparse.strip_pruning(tf_keras.Sequential(wrapped, name="same")))
    assert [weight.name for weight in final[1].weights] == [weight.name for weight in final[0].weights]
    assert final[1].get_config() == final[0].get_config()


def test_state_has_the_shapes_of_version_one():
    """An H5 file is read by order and shape: an axis for contests would be one too many."""
    for method, shape in ((kg.Fixed(MASKS), (1, 1, 40)), (kg.Gibbs.recommended(0.5), (1, 1, 40)), (kg.GumbelSoftmax(), (1, 1, 40))):
        state = kg_tfmot.prune(network(), method, where="dense").get_layer("prune_low_magnitude_dense").masked_weights[0].state
        assert [tuple(variable.shape) for variable in state.values() if variable.shape.rank] == [shape] and "decision" not in state


def test_without_a_method_everything_is_tfmots_own():
    schedule = sparse.PolynomialDecay(0.2, 0.6, 0, 3, frequency=1)
    weights = []
    for function in (sparse.prune_low_magnitude, kg_tfmot.prune_low_magnitude):
        pruned = compiled(function(mlp(), schedule, block_size=(2, 1), block_pooling_type="MAX"))
        fit(pruned, sparse.UpdatePruningStep(), x=FLAT)
        weights.append(pruned.get_weights())
    assert same(*weights)
    assert isinstance(pruned.layers[0], kg_tfmot.Pruned) and "method" not in pruned.layers[0].get_config()
    with pytest.raises(ValueError, match="type: object"):
        kg_tfmot.prune_low_magnitude(object())


def test_the_callbacks_of_tfmot_stand_beside_ours(tmp_path):
    for callbacks in ([sparse.UpdatePruningStep(), GibbsPruningCallback()], [GibbsPruningCallback(), sparse.UpdatePruningStep()]):
        if importlib.util.find_spec("tensorboard"):
            callbacks.append(sparse.PruningSummaries(str(tmp_path)))
        pruned = compiled(kg_tfmot.prune_low_magnitude(mlp(), method=kg.Gibbs(0.5)))
        fit(pruned, *callbacks, x=FLAT)
        assert pruned.layers[0].pruning_step == 4 and zeros(sparse.strip_pruning(pruned)) == [24, 12]
        weight, mask, threshold = pruned.layers[0].pruning_vars[0]
        assert mask.numpy().sum() == 24 and np.abs(weight.numpy()[mask == 1]).min() == threshold


def test_a_training_loop_of_ones_own():
    model = kg_tfmot.prune(mlp(), kg.Magnitude(kg.Polynomial(0.0, 0.75)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="GibbsPruningCallback"):
        model(FLAT, training=True)
    model.optimizer = optimizer = tf_keras.optimizers.SGD(0.1)
    callback = GibbsPruningCallback(epochs=2)
    callback.set_model(model)
    callback.on_train_begin()
    found = []
    for epoch in range(2):
        callback.on_epoch_begin(epoch)
        for batch in range(2):
            callback.on_train_batch_begin(batch)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf_keras.losses.sparse_categorical_crossentropy(Y, model(FLAT, training=True), from_logits=True))
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True))
        callback.on_epoch_end(epoch)
        found.append(zeros(sparse.strip_pruning(model)))
    callback.on_train_end()
    assert found[0][0] < found[1][0] == 36 and zeros(sparse.strip_pruning(model)) == [36, 18]
    with pytest.warns(UserWarning, match="not come to their end"):
        kg_tfmot.fold(kg_tfmot.prune(mlp(), kg.Gibbs(0.5)))


class Product(layers.Layer):
    """A layer of the user's own, which says what is prunable in it."""

    def build(self, input_shape):
        self.table = self.add_weight("table", (input_shape[-1], 4))

    def get_prunable_weights(self):
        return [self.table]

    def call(self, inputs):
        return inputs @ self.table


def test_every_weight_of_a_layer_has_masks_of_its_own(tmp_path):
    inputs = tf_keras.Input((3, 4))
    x = layers.MultiHeadAttention(2, 3)(inputs, value=inputs)
    x = Product()(layers.SimpleRNN(4)(x))
    pruned = compiled(kg_tfmot.prune(tf_keras.Model(inputs, x), kg.Gibbs(0.5, structure=kg.Kernel(), hamiltonian=kg.Independent())))
    data = rng.normal(size=(32, 3, 4)).astype("float32")
    fit(pruned, GibbsPruningCallback(), x=data, epochs=1)
    pruned.save(tmp_path / "model.h5")
    with tf_keras.utils.custom_object_scope({"Product": Product}):
        loaded = tf_keras.models.load_model(tmp_path / "model.h5")
    assert np.array_equal(loaded(data), pruned(data))
    final = sparse.strip_pruning(loaded)
    assert np.array_equal(loaded(data), final(data))
    prunable = [weight.numpy() for layer in pruned_layers(loaded) for weight in layer.prunable_weights]
    assert len(prunable) == 4 + 2 + 1 and all((weight == 0).mean() == 0.5 for weight in prunable)
    draws = [masked.key.numpy().tolist() for layer in pruned_layers(loaded) for masked in layer.masked_weights]
    assert len({tuple(key) for key in draws}) == 7


def test_filters_leave_out_attention_and_name_it():
    inputs = tf_keras.Input((3, 4))
    x = layers.MultiHeadAttention(2, 3, name="attention")(layers.Dense(4, name="before")(inputs), value=inputs)
    model = tf_keras.Model(inputs, layers.Dense(2)(layers.Dense(6, name="after")(x)))
    method = kg.Magnitude(0.5, structure=kg.Filter())
    with pytest.warns(UserWarning, match="1 layers stay dense.*attention/query/kernel.*tied"):
        pruned = kg_tfmot.prune(model, method)
    assert [layer.layer.name for layer in pruned_layers(pruned)] == ["before", "after"]
    with pytest.raises(ValueError, match="attention/query/kernel.*tied"):
        kg_tfmot.prune(model, method, where="attention")


def test_nested_models_and_shared_layers(tmp_path):
    shared = layers.Dense(6)
    inputs = tf_keras.Input((6,))
    inner = tf_keras.Model(inputs, shared(shared(inputs)) * 2.0, name="inner")
    inputs = tf_keras.Input((6,))
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.2)(inner(inputs))))
    pruned = compiled(kg_tfmot.prune(model, kg.Gibbs(0.5), where="dense"))
    fit(pruned, GibbsPruningCallback(), x=FLAT, epochs=1)
    final = sparse.strip_pruning(pruned)
    assert final.get_config() == model.get_config() and zeros(final) == [18, 9]
    assert np.array_equal(final(FLAT), pruned(FLAT))


def test_layers_of_one_name_in_two_nested_models_are_kept_apart():
    inputs = tf_keras.Input((6,))
    one, two = (tf_keras.Sequential([layers.Dense(6, input_shape=(6,), name="dense")], name=name) for name in ("one", "two"))
    model = tf_keras.Model(inputs, two(one(inputs)))
    masks = {"one/dense/kernel": np.eye(6), "two/dense/kernel": 1 - np.eye(6)}
    pruned = kg_tfmot.prune(model, kg.Fixed(masks))
    assert [masked.path for layer in pruned_layers(pruned) for masked in layer.masked_weights] == list(masks)
    kg_tfmot.fold(pruned)
    assert zeros(sparse.strip_pruning(pruned)) == [30, 6]
    with pytest.raises(ValueError, match="which fits"):
        kg_tfmot.prune(model, kg.Fixed({"dense": np.eye(6)}))


def test_two_of_every_four_inputs_are_kept():
    pruned = compiled(kg_tfmot.prune(mlp(), kg.Gibbs(0.5, structure=kg.NofM(2, 4)), where="scores"))
    fit(pruned, GibbsPruningCallback(), x=FLAT)
    kept = kernels(sparse.strip_pruning(pruned))[1].reshape(2, 4, 3) != 0
    assert (kept.sum(axis=1) == 2).all()


@pytest.mark.parametrize(("kind", "inputs"), [("dense", 16), ("dense", 10), ("conv", 8), ("conv", 6)])
def test_two_of_four_is_what_tfmot_keeps_of_the_same_kernel(kind, inputs):
    layer = tf_keras.layers.Dense(7) if kind == "dense" else tf_keras.layers.Conv2D(5, 3)
    shape = (inputs,) if kind == "dense" else (6, 6, inputs)
    theirs = tf_keras.Sequential([tfmot.sparsity.keras.prune_low_magnitude(layer, sparsity_m_by_n=(2, 4), input_shape=shape)])
    wrapper = theirs.layers[0]
    tf_keras.backend.set_value(wrapper.pruning_step, 1)
    wrapper.pruning_obj.conditional_mask_update()
    kernel, mask, _ = wrapper.pruning_vars[0]
    ours = keras.layers.Dense(7) if kind == "dense" else keras.layers.Conv2D(5, 3)
    ours.build((None, *shape))
    ours.kernel.assign(kernel.numpy())
    found = np.array(kg.Pruned(ours, kg.Magnitude(0.5, structure=kg.NofM(2, 4))).mask())
    assert 0.3 < found.mean() < 0.8 and np.array_equal(found, mask.numpy())



def test_mixed_precision_keeps_float32_masks():
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        pruned = compiled(kg_tfmot.prune(mlp(), kg.Gibbs(0.5)))
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    fit(pruned, GibbsPruningCallback(), x=FLAT, epochs=1)
    final = sparse.strip_pruning(pruned)
    assert zeros(final) == [24, 12] and final.layers[0].compute_dtype == "float16" and final.layers[0].kernel.dtype == "float32"


def folded():
    """A pruned and stripped network, by filling in its masks without training."""
    pruned = kg_tfmot.prune(network(), kg.Magnitude(0.6))
    kg_tfmot.fold(pruned)
    return sparse.strip_pruning(pruned)


def test_stripped_models_go_on_to_files(tmp_path):
    final = folded()
    expected = final(X)
    final.save(tmp_path / "model.h5", include_optimizer=False)
    tf.saved_model.save(final, str(tmp_path / "saved"))
    assert np.array_equal(tf_keras.models.load_model(tmp_path / "model.h5", compile=False)(X), expected)
    served = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"](tf.constant(X))
    assert np.allclose(next(iter(served.values())), expected, atol=1e-5)
    for optimizations in ([], [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]):
        converter = tf.lite.TFLiteConverter.from_keras_model(final)
        converter.optimizations = optimizations
        interpreter = tf.lite.Interpreter(model_content=converter.convert())
        entry, exit = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        interpreter.resize_tensor_input(entry, X.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry, X)
        interpreter.invoke()
        assert np.allclose(interpreter.get_tensor(exit), expected, atol=1e-5)


def test_quantisation_that_preserves_pruning_keeps_the_zeros():
    final = folded()
    before = [kernel == 0 for kernel in kernels(final)]
    quantize = tfmot.quantization.keras
    model = quantize.quantize_apply(quantize.quantize_annotate_model(final), tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme())
    fit(compiled(model), epochs=1)
    after = [kernel == 0 for kernel in kernels(model)]
    assert len(before) == len(after) == 3 and all((now >= then).all() and then.any() for then, now in zip(before, after, strict=True))


def test_clustering_that_preserves_sparsity_keeps_the_zeros():
    final = folded()
    before = [kernel == 0 for kernel in kernels(final)]
    start = tfmot.clustering.keras.CentroidInitialization.LINEAR
    model = cluster_weights(final, number_of_clusters=4, cluster_centroids_init=start, preserve_sparsity=True)
    fit(compiled(model), epochs=1)
    clustered = tfmot.clustering.keras.strip_clustering(model)
    for then, now in zip(before, kernels(clustered), strict=True):
        assert (now[then] == 0).all() and len(np.unique(now)) <= 4


class Watch(tf_keras.callbacks.Callback):
    """The energies, the bits in force and the weights of the searched layers, after every batch."""

    def on_train_begin(self, logs=None):
        self.rows = []

    def on_train_batch_end(self, batch, logs=None):
        bits = [masked.unit_mask().numpy() > 0 for masked in self.model.weights_in_order()]
        self.rows.append((self.model.energies, bits, [layer.layer.get_weights() for layer in pruned_layers(self.model)]))


def biased():
    """The network with biases that are not 0."""
    model = network()
    model.layers[4].bias.assign([0.1, -0.2, 0.3, 0.4, 0.5])
    return model


@pytest.fixture(scope="module")
def searched():
    """A model after three epochs of search on one batch and one without it; what `Watch` saw; the history. Weight decay moves what has no gradient."""
    model, watch = kg_tfmot.prune(biased(), kg.EDropout(5, search=0.75), seed=1), Watch()
    compiled(model, tf_keras.optimizers.AdamW(1e-2, weight_decay=0.1), graph=True)
    history = model.fit(X, Y, batch_size=32, epochs=4, shuffle=False, verbose=0, validation_data=(X, Y), callbacks=[watch, GibbsPruningCallback()]).history
    return model, watch.rows, history


def test_the_population_evolves_until_the_search_ends(searched):
    model, rows, history = searched
    energies = np.array([row[0] for row in rows])
    assert np.isfinite(energies[0]).all() and (np.diff(energies, axis=0) <= 0).all() and energies[2].mean() < energies[0].mean()
    assert same(energies[2], energies[3]) and same(rows[2][1], rows[3][1]) and model.converged
    best = model.population[model.energies.argmin()]
    assert same(np.split(best, [8]), rows[3][1]) and 0 < best.sum() < 13
    assert history["best_energy"] == pytest.approx(energies.min(axis=1)) and history["converged"][-1] == 1
    kept = best[:8].sum() * 18 + best[8:].sum() * 9
    assert history["kept"][-1] == pytest.approx(kept / (144 + 45))


def test_what_is_removed_is_still_while_the_rest_trains(searched):
    _, rows, _ = searched
    moved = 0
    for (_, _, before), (_, bits, after) in zip(rows, rows[1:]):
        for one, kept, other in zip(before, bits, after, strict=True):
            for start, end in zip(one, other, strict=True):
                assert np.array_equal(start[..., ~kept], end[..., ~kept])
                moved += int((start[..., kept] != end[..., kept]).all())
    assert moved == 9  # kernel and bias of two layers, one without a bias, three times


def test_the_best_state_is_stripped_by_tfmot(searched):
    model, rows, history = searched
    final = sparse.strip_pruning(model)
    assert type(final) is type(tf_keras.Model(*[tf_keras.Input((1,))] * 2))
    assert [type(layer) for layer in final.layers[1:]] == [type(layer) for layer in network().layers]
    assert np.array_equal(final(X), model(X))
    assert compiled(final).evaluate(X, Y, verbose=0) == pytest.approx(history["val_loss"][-1], abs=1e-6)
    for name, kept, weights in zip(("conv", "dense"), rows[-1][1], rows[-1][2], strict=True):
        for found, dense in zip(final.get_layer(name).get_weights(), weights, strict=True):
            assert np.array_equal(found, np.where(kept, dense, 0.0))
    assert history["sparsity"][-1] == pytest.approx(sum(zeros(final)[:2]) / (144 + 40)) and zeros(final)[2] == 0


def nested():
    inputs = tf_keras.Input((4, 4, 2))
    return tf_keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.2)(biased()(inputs))))  # mixes behind `scores`, which has bits for that


@dataclasses.dataclass(frozen=True)
class Features(kg.objectives.Objective):
    """Looks at the feature maps, and counts for nothing."""

    def __call__(self, context):
        features = context.features()
        assert features["conv"].shape == (32, 4, 4, 8) and context.layers["dense"] == slice(8, 13)
        return 0.0 * context.logits[:, 0, 0]


@pytest.mark.few(tensorflow=["biased-13-objective1"])
@pytest.mark.parametrize("build, units, objective", [(nested, 16, kg.MarginEnergy()), (biased, 13, kg.MarginEnergy() + Features())])
def test_scoring_changes_the_search_only(build, units, objective):
    model = kg_tfmot.prune(build(), kg.EDropout(4, reevaluate_parents=True, objective=objective), seed=1)
    assert model.population.shape == (4, units)
    before = model.get_weights()
    tf.function(model.search)(tf.constant(X), tf.constant(Y))
    changed = [weight.name for weight, value in zip(model.weights, before, strict=True) if not np.array_equal(weight.numpy(), value)]
    assert {name.rsplit("/")[-1] for name in changed} == {"state_bits:0", "energies:0", "generation:0"}


@pytest.mark.parametrize("softmax", [False, True])
def test_energies_are_those_of_the_candidates_by_themselves(softmax):
    model = tf_keras.Sequential([*mlp().layers, *([layers.Softmax()] if softmax else [])])
    model.layers[0].bias.assign(rng.normal(size=8))
    weights = model.layers[0].get_weights()
    pruned = kg_tfmot.prune_low_magnitude(model, method=kg.EDropout(4, energy_batch=16))
    pruned.search(tf.constant(FLAT), tf.one_hot(Y, 3))  # the first step scores the first population
    for state, energy in zip(pruned.population, pruned.energies, strict=True):
        plain = mlp()
        plain.layers[0].set_weights([weight * state for weight in weights])
        scores = plain(FLAT[:16]).numpy()
        right = scores[np.arange(16), Y[:16]]
        scores[np.arange(16), Y[:16]] = -np.inf
        assert energy == pytest.approx((scores.max(axis=1) - right).mean(), abs=1e-5)


@pytest.mark.few(tensorflow=["h5"])
@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_search_goes_on_after_loading(suffix, tmp_path):
    checkpoint = tf_keras.callbacks.ModelCheckpoint(f"{tmp_path}/{{epoch}}.{suffix}")
    method = kg.EDropout(5, search=0.9, reevaluate_parents=True, patience=50)
    pruned = compiled(kg_tfmot.prune(biased(), method, seed=1))
    fit(pruned, GibbsPruningCallback(epochs=3), checkpoint, epochs=3)
    loaded = tf_keras.models.load_model(f"{tmp_path}/1.{suffix}")
    loaded.run_eagerly = True
    stripped = sparse.strip_pruning(loaded)
    assert loaded.method == method and not loaded.converged and np.array_equal(stripped(X), loaded(X)) and min(zeros(stripped)[:2]) > 0
    fit(loaded, GibbsPruningCallback(epochs=3), epochs=3, initial_epoch=1)
    assert same(loaded.get_weights(), pruned.get_weights())


def test_a_search_ends_where_all_states_agree_and_can_begin_again():
    pruned = compiled(kg_tfmot.prune(mlp(), kg.EDropout(4)))
    pruned._search_state["population"].assign(np.ones_like(pruned.population))
    assert fit(pruned, GibbsPruningCallback(), x=FLAT, epochs=1)["converged"] == [1.0] and zeros(sparse.strip_pruning(pruned)) == [0, 0]
    assert int(pruned._search_state["generation"]) == 1
    fit(pruned, GibbsPruningCallback(restart=True), x=FLAT, epochs=1)
    assert int(pruned._search_state["generation"]) > 1 and len(np.unique(pruned.population, axis=0)) > 1


def test_layers_that_cannot_lose_a_unit_stay_as_they_are():
    inputs = tf_keras.Input((4, 4, 2))
    x = layers.SeparableConv2D(3, 3, name="separable")(layers.DepthwiseConv2D(3)(layers.Conv2D(4, 1, name="conv")(layers.ZeroPadding2D()(inputs))))
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    for pruned in (kg_tfmot.prune(model, kg.EDropout()), kg_tfmot.prune_low_magnitude(model, method=kg.EDropout())):
        assert [layer.layer.name for layer in pruned_layers(pruned)] == ["conv", "separable"] and pruned.population.shape == (8, 4 + 3)


def alone():
    """A layer wrapped by itself."""
    return tf_keras.Sequential([kg_tfmot.Pruned(layers.Dense(5), method=kg.EDropout(), input_shape=(6,)), layers.Dense(3)])


def two_classes():
    return tf_keras.Sequential([layers.Dense(4, input_shape=(6,)), layers.Dense(2)])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: kg_tfmot.prune("model", kg.Gibbs(0.5)), TypeError, "tf_keras model"),
        (lambda: kg_tfmot.prune(mlp(), 0.5), TypeError, "method"),
        (lambda: kg_tfmot.prune_low_magnitude(layers.Dense(3), method=kg.EDropout()), ValueError, "cannot prune a layer by itself"),
        (lambda: kg_tfmot.prune(mlp(), kg.EDropout(population_chunk=2)), ValueError, "population_chunk=1"),
        (lambda: kg_tfmot.prune(tf_keras.Sequential([layers.Dense(1, input_shape=(6,))]), kg.EDropout()), ValueError, "two classes or more"),
        (lambda: fit(compiled(kg_tfmot.prune(mlp(), kg.EDropout(energy_batch=17))), GibbsPruningCallback(), x=FLAT), ValueError, "energy_batch=17"),
        (lambda: fit(compiled(kg_tfmot.prune(two_classes(), kg.EDropout())), GibbsPruningCallback(), x=FLAT), ValueError, "from 0 to 2"),
        (lambda: fit(compiled(alone()), GibbsPruningCallback(), x=FLAT), ValueError, "searches a whole model"),
        (lambda: kg_tfmot.prune(kg_tfmot.prune(mlp(), kg.Gibbs(0.5)), kg.Gibbs(0.5)), ValueError, "already pruned"),
        (lambda: kg_tfmot.prune(mlp(), kg.Gibbs(0.5), where="conv"), ValueError, "nothing to prune"),
        (lambda: kg_tfmot.prune(mlp(), kg.Fixed({"none": np.ones((6, 8))})), ValueError, "none"),
        (lambda: kg_tfmot.prune(tf_keras.Sequential([layers.Dense(3)]), kg.Gibbs(0.5)), ValueError, "not built"),
        (lambda: kg_tfmot.prune_low_magnitude(mlp(), block_size=(2, 2), method=kg.Gibbs(0.5)), ValueError, "structure"),
        (lambda: kg_tfmot.prune(mlp(), kg.Gibbs(0.5, criterion=kg.CurvatureEnergy())), ValueError, "cannot hand a criterion its gradients"),
        (lambda: kg_tfmot.fold(mlp()), ValueError, "No layer"),
        (lambda: fit(compiled(mlp()), GibbsPruningCallback(), x=FLAT), ValueError, "UpdatePruningStep"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_schedule_beside_a_method_warns():
    with pytest.warns(UserWarning, match="no effect beside `method`"):
        kg_tfmot.prune_low_magnitude(mlp(), sparse.ConstantSparsity(0.9, 0), method=kg.Gibbs(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kg_tfmot.prune_low_magnitude(mlp(), method=kg.Gibbs(0.5))
