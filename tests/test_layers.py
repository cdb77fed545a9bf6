"""`Pruned`: a layer under a mask, for every layer class and every method."""

import keras
import numpy as np
import pytest
from cases import (
    LAYERS,
    METHODS,
    every_layer,
    every_method,
    gradients,
    groups_of,
    half_mask,
    numpy,
    randomize,
    same,
    saved_and_loaded,
    skip_unless_fits,
    top,
    weights,
    xla,
)
from keras import layers

import keras_gibbs as kg

without_xla = pytest.fixture(scope="module", autouse=True)(xla(False))
with_xla = pytest.fixture(xla(True))
some_on_jax = pytest.mark.few(jax=["dense", "einsum-heads", "conv2d", "conv2d-transpose", "depthwise2d"])  # which compiles every operation of every shape
GIBBS = kg.Gibbs(0.5)
RANDOM = [name for name, case in METHODS.items() if case.random]


def wrapped_conv(method=GIBBS, **kwargs):
    return kg.Pruned(LAYERS["conv2d"].built(), method, **{"seed": 1} | kwargs)


def wrapped_dense(method=GIBBS, **kwargs):
    return kg.Pruned(LAYERS["dense"].built(**kwargs), method, seed=1)


def masked_copy(layer_case, layer, mask):
    """A plain copy of `layer` whose kernel is multiplied by `mask`."""
    plain = layer_case.built()
    plain.set_weights(layer.get_weights())
    plain.kernel.assign(numpy(layer.kernel) * numpy(mask))
    return plain


# The outputs.


@pytest.mark.once
@every_layer
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_that_keeps_everything_gives_the_plain_outputs(layer_case, training):
    plain = layer_case.built()
    expected = numpy(plain(layer_case.inputs()))
    outputs = kg.Pruned(plain, kg.Fixed())(layer_case.inputs(), training=training)
    assert np.allclose(numpy(outputs), expected, atol=1e-6)


@some_on_jax
@every_layer
def test_a_fixed_mask_acts_like_the_product_of_kernel_and_mask(layer_case):
    layer = layer_case.built()
    mask = half_mask(layer.kernel.shape)
    pruned = kg.Pruned(layer, kg.Fixed(mask))
    assert np.array_equal(numpy(pruned.mask()), mask)
    expected = numpy(masked_copy(layer_case, layer, mask)(layer_case.inputs()))
    for training in (False, True):
        assert np.allclose(numpy(pruned(layer_case.inputs(), training=training)), expected, atol=1e-6)


@some_on_jax
@every_layer
def test_symbolic_and_real_outputs_have_one_shape(layer_case):
    pruned = kg.Pruned(layer_case.make(), GIBBS)
    symbolic = pruned(keras.Input(layer_case.input_shape))
    assert pruned(layer_case.inputs()).shape[1:] == symbolic.shape[1:]
    assert tuple(pruned.compute_output_shape((None, *layer_case.input_shape))) == symbolic.shape


@every_layer
def test_wrapping_a_built_layer_keeps_its_weights(layer_case):
    layer = layer_case.built()
    before = weights(layer)
    pruned = kg.Pruned(layer, GIBBS)
    assert pruned.built and pruned.layer is layer and pruned.name == layer.name
    pruned(layer_case.inputs(), training=True)
    assert same(weights(layer), before)


@pytest.mark.few(tensorflow=["gibbs", "gibbs-filter", "gibbs-curvature", "magnitude-global", "gumbel", "edropout", "rigl"], jax=["gibbs", "gumbel"])
@every_method
def test_the_training_outputs_are_those_of_the_mask_that_was_drawn(method, with_xla):
    layer_case = LAYERS["conv2d"]
    pruned = kg.Pruned(layer_case.built(), method.make(), seed=1)
    draws = numpy(pruned._draws)
    outputs = numpy(pruned(layer_case.inputs(), training=True))
    pruned._draws.assign(draws)
    expected = masked_copy(layer_case, pruned.layer, pruned.mask(training=True))(layer_case.inputs())
    assert np.allclose(outputs, numpy(expected), atol=1e-6)


# The masks.


@pytest.mark.once
@every_layer
@every_method
def test_masks_are_zero_or_one_in_the_kernels_shape(method, layer_case):
    skip_unless_fits(method, layer_case)
    pruned = kg.Pruned(layer_case.built(), method.make(), seed=1)
    mask = numpy(pruned.mask())
    assert mask.shape == pruned.layer.kernel.shape and mask.dtype == np.float32
    assert set(np.unique(mask)) <= {0.0, 1.0}
    if method.ranked:
        rows = groups_of(mask, method.structure, layer_case.axes)
        assert np.all(rows == rows[:, :1])  # whole groups only
        scores = (groups_of(numpy(pruned.layer.kernel), method.structure, layer_case.axes) ** 2).mean(axis=1)
        assert np.array_equal(rows[:, 0], top(scores, 0.5))


@pytest.mark.once
@every_method
@pytest.mark.parametrize("name", ["dense", "conv2d", "conv2d-transpose"])
def test_sampled_masks_are_zero_or_one_in_the_kernels_shape(method, name):
    pruned = kg.Pruned(LAYERS[name].built(), method.make(), seed=1)
    mask = numpy(pruned.mask(training=True))
    assert mask.shape == pruned.layer.kernel.shape and mask.dtype == np.float32
    assert set(np.unique(mask)) <= {0.0, 1.0}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("structure", [kg.Unstructured(), kg.Kernel(), kg.Filter()], ids=repr)
def test_the_count_of_kept_groups_is_exact(structure, sparsity):
    layer_case = LAYERS["conv2d"]
    pruned = kg.Pruned(layer_case.built(), kg.Magnitude(sparsity, structure=structure))
    rows = groups_of(numpy(pruned.mask()), structure, layer_case.axes)
    assert np.all(rows == rows[:, :1])
    assert rows[:, 0].sum() == max(1, len(rows) - int(np.floor(sparsity * len(rows) + 0.5)))


def test_of_equal_weights_the_first_are_kept():
    layer = LAYERS["dense"].built()
    layer.kernel.assign(np.ones((5, 4)))
    mask = numpy(kg.Pruned(layer, kg.Magnitude(0.65)).mask())
    assert mask.reshape(-1).tolist() == [1] * 7 + [0] * 13


def test_a_sparsity_of_zero_keeps_every_weight_in_every_mask():
    pruned = wrapped_conv(kg.Gibbs(0.0, beta=0.0))
    assert numpy(pruned.mask()).all() and numpy(pruned.mask(training=True)).all()


@pytest.mark.once
@pytest.mark.parametrize("name", RANDOM)
def test_two_training_masks_differ_and_two_inference_masks_agree(name):
    # 8 groups at least, each kept with a probability far from 0 and 1: sixteen equal masks by chance in less than 1e-9 of all cases.
    pruned = kg.Pruned(layers.Conv2D(8, 3), METHODS[name].make(), seed=1)
    pruned(np.zeros((1, 5, 5, 2), "float32"))
    training = [numpy(pruned.mask(training=True)) for _ in range(16)]
    assert any(not np.array_equal(training[0], other) for other in training[1:])
    assert np.array_equal(numpy(pruned.mask()), numpy(pruned.mask()))


def test_training_draws_anew_at_every_call():
    pruned, x = wrapped_conv(), LAYERS["conv2d"].inputs()
    first, second = (numpy(pruned(x, training=True)) for _ in range(2))
    assert not np.allclose(first, second)
    assert np.array_equal(numpy(pruned(x)), numpy(pruned(x, training=False)))


def test_the_same_seed_gives_the_same_masks_and_another_seed_others():
    masks = [numpy(wrapped_conv(seed=seed).mask(training=True)) for seed in (5, 5, 6, 5 + 2**40)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2]) and not np.array_equal(masks[0], masks[3])


def test_without_a_seed_keras_set_random_seed_fixes_the_masks():
    def draw():
        keras.utils.set_random_seed(3)
        return numpy(wrapped_conv(seed=None).mask(training=True))

    assert np.array_equal(draw(), draw())
    one, other = wrapped_conv(seed=None), wrapped_conv(seed=None)
    assert not np.array_equal(numpy(one.mask(training=True)), numpy(other.mask(training=True)))


def test_two_layers_of_one_shape_do_not_share_noise():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(8)])
    for layer in model.layers:
        layer.kernel.assign(np.ones((8, 8)))
    first, second = kg.pruned_layers(kg.prune(model, kg.Gibbs(0.5), seed=0))
    assert not np.array_equal(numpy(first.mask(training=True)), numpy(second.mask(training=True)))


def test_the_mask_follows_the_kernel():
    pruned = wrapped_dense(kg.Magnitude(0.95))
    kernel = np.zeros((5, 4), "float32")
    kernel[3, 2] = 1.0
    pruned.layer.kernel.assign(kernel)
    assert np.array_equal(numpy(pruned.mask()), kernel)


def test_an_unbuilt_layer_has_no_mask_and_says_how_to_get_one():
    with pytest.raises(ValueError, match="built.*Call it"):
        kg.Pruned(layers.Dense(3), GIBBS).mask()


@pytest.mark.parametrize("structure", [kg.Unstructured(), kg.Filter()], ids=repr)
def test_gibbs_adds_less_than_a_kilobyte(structure):
    pruned = kg.Pruned(layers.Dense(200), kg.Gibbs(kg.Linear(0, 0.9), structure=structure))
    pruned.build((None, 100))
    own = {id(weight) for weight in pruned.weights} - {id(weight) for weight in pruned.layer.weights}
    assert 0 < sum(numpy(weight).nbytes for weight in pruned.weights if id(weight) in own) < 1000


def test_a_large_layer_infers_with_its_exact_mask_after_a_training_step(with_xla):
    pruned = kg.Pruned(layers.Dense(100, use_bias=False), kg.Gibbs(0.9), seed=1)  # 10,000 weights: the cut is remembered
    x = np.eye(100, dtype="float32")
    for _ in range(2):
        pruned(x, training=True)
        pruned.layer.kernel.assign(np.random.default_rng(2).normal(size=(100, 100)))
        outputs = numpy(pruned(x))
        assert np.count_nonzero(outputs) == 1000
        assert np.allclose(outputs, numpy(pruned.layer.kernel) * numpy(pruned.mask()), atol=1e-6)
        assert np.array_equal(outputs, numpy(pruned(x)))


# Gradients.


@pytest.mark.few(tensorflow=["gibbs", "gibbs-kernel", "gibbs-curvature", "magnitude-global", "gumbel", "edropout", "rigl"], jax=["gibbs", "gumbel"])
@every_method
def test_a_masked_weight_has_a_gradient_of_exactly_zero(method, with_xla):
    layer_case = LAYERS["conv2d"]
    pruned = kg.Pruned(layer_case.built(), method.make(), seed=1)
    draws = numpy(pruned._draws)
    gradient = gradients(pruned, layer_case.inputs())[pruned.layer.kernel.path]
    pruned._draws.assign(draws)
    mask = numpy(pruned.mask(training=True))
    assert np.all(gradient[mask == 0] == 0)
    assert np.all(gradient[mask == 1] != 0)


@pytest.mark.parametrize("method", [kg.Fixed(half_mask((5, 4))), GIBBS, kg.Magnitude(0.5)], ids=["fixed", "gibbs", "magnitude"])
def test_weight_decay_reaches_the_full_kernel(method):
    decay = 0.125
    pruned = wrapped_dense(method, kernel_regularizer=keras.regularizers.L2(decay))
    gradient = gradients(pruned, LAYERS["dense"].inputs())[pruned.layer.kernel.path]
    pruned._draws.assign(0)
    removed = numpy(pruned.mask(training=True)) == 0
    kernel = numpy(pruned.layer.kernel)
    assert removed.any()
    assert np.array_equal(gradient[removed], np.float32(2 * decay) * kernel[removed])


def test_the_gradient_of_a_kept_weight_is_that_of_the_masked_layer():
    layer_case = LAYERS["conv2d"]
    layer = layer_case.built()
    mask = half_mask(layer.kernel.shape)
    plain = masked_copy(layer_case, layer, mask)
    expected = gradients(plain, layer_case.inputs())[plain.kernel.path]
    found = gradients(kg.Pruned(layer, kg.Fixed(mask)), layer_case.inputs())[layer.kernel.path]
    assert np.allclose(found, expected * mask, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_removed_weight_stays_bit_for_bit_under_plain_sgd(jit_compile, with_xla):
    layer = LAYERS["dense"].built()
    mask = half_mask((5, 4))
    before = numpy(layer.kernel).copy()
    model = keras.Sequential([keras.Input((5,)), kg.Pruned(layer, kg.Fixed(mask))])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(32, 5)), rng.normal(size=(32, 4)), batch_size=8, epochs=2, verbose=0)
    after = numpy(layer.kernel)
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert np.all(after[mask == 1] != before[mask == 1])


def test_a_layer_that_is_not_trainable_keeps_its_kernel_in_fit():
    for flag in ("layer", "wrapper"):
        layer = LAYERS["dense"].built()
        layer.trainable = flag != "layer"
        pruned = kg.Pruned(layer, GIBBS, seed=1)
        if flag == "wrapper":
            pruned.trainable = False
        assert not pruned.trainable and not pruned.trainable_variables
        before = weights(layer)
        model = keras.Sequential([keras.Input((5,)), pruned, layers.Dense(2)])
        model.compile("sgd", "mse")
        model.fit(np.ones((4, 5)), np.ones((4, 2)), verbose=0)
        assert same(weights(layer), before)


# Losses.


@pytest.mark.parametrize("training", [False, True])
def test_losses_count_once(training):
    plain = LAYERS["dense"].built(activity_regularizer=keras.regularizers.L2(0.1), kernel_regularizer="l1", bias_regularizer="l2")
    pruned = kg.Pruned(LAYERS["dense"].built(activity_regularizer=keras.regularizers.L2(0.1), kernel_regularizer="l1", bias_regularizer="l2"), kg.Fixed())
    for _ in range(2):  # also when called again
        plain(LAYERS["dense"].inputs())
        pruned(LAYERS["dense"].inputs(), training=training)
    assert sorted(float(loss) for loss in pruned.losses) == pytest.approx(sorted(float(loss) for loss in plain.losses))
    assert len(pruned.losses) == 3


def test_an_all_ones_mask_trains_like_the_plain_layer_loss_for_loss():
    def history(wrap):
        keras.utils.set_random_seed(0)
        regular = {"activity_regularizer": "l2", "kernel_regularizer": "l2"}
        model = keras.Sequential([keras.Input((5,)), wrap(LAYERS["dense"].built(**regular)), layers.BatchNormalization(), wrap(layers.Dense(2, name="head"))])
        model.compile("adam", "mse")
        rng = np.random.default_rng(0)
        return model.fit(rng.normal(size=(32, 5)), rng.normal(size=(32, 2)), batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]

    assert history(lambda layer: kg.Pruned(layer, kg.Fixed(), seed=1)) == pytest.approx(history(lambda layer: layer), rel=1e-5)


# Mixed precision.


@pytest.mark.once
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_under_mixed_precision_masks_rank_float32_kernels_and_the_layer_computes_in_its_own_type(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential([keras.Input((5,)), kg.Pruned(layers.Dense(4, name="dense"), kg.Magnitude(0.5)), layers.Dense(2, dtype="float32")])
    finally:
        keras.config.set_dtype_policy("float32")
    pruned = model.layers[0]
    # Weights that a half-precision type rounds to one value: rounded, the first half would be kept.
    kernel = (1.0 + np.arange(20) * 1e-5).astype("float32").reshape(5, 4)
    pruned.layer.kernel.assign(kernel)
    expected = (np.arange(20) >= 10).astype("float32").reshape(5, 4)
    assert np.array_equal(numpy(pruned.mask()), expected)
    head = model.layers[1]
    head.kernel.assign(np.ones((4, 2)))
    for training in (False, True):  # one input row at a time, whose outputs tell how many of its weights are kept
        outputs = numpy(model(np.eye(5, dtype="float32"), training=training))
        assert outputs[:, 0].round().tolist() == expected.sum(axis=1).tolist()
    assert keras.backend.standardize_dtype(pruned(np.ones((1, 5), "float32")).dtype) == policy.removeprefix("mixed_")
    assert pruned.layer.kernel.dtype == "float32" and pruned.layer.compute_dtype == policy.removeprefix("mixed_")
    model.compile("sgd", "mse")
    assert np.isfinite(model.fit(np.ones((8, 5)), np.ones((8, 2)), batch_size=4, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_survives_pruning_and_stripping(policy):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, dtype=policy), layers.Dense(2, dtype=policy)])
    pruned = kg.prune(model, GIBBS)
    stripped = kg.strip_pruning(pruned)
    assert [layer.dtype_policy.name for layer in stripped.layers] == [policy] * 2
    assert np.array_equal(numpy(pruned(np.ones((1, 5)))), numpy(stripped(np.ones((1, 5)))))
    pruned.compile("sgd", "mse")
    assert np.isfinite(pruned.fit(np.ones((8, 5)), np.ones((8, 2)), verbose=0).history["loss"]).all()


# Masks of time steps.


def test_a_time_mask_goes_through_a_wrapped_dense_layer():
    tokens = np.array([[1, 2, 0, 0], [3, 1, 2, 0]])

    def model(wrap):
        built = keras.Sequential([keras.Input((4,)), layers.Embedding(5, 3, mask_zero=True), wrap(layers.Dense(2)), layers.GlobalAveragePooling1D()])
        return randomize(built)

    plain, pruned = model(lambda layer: layer), model(lambda layer: kg.Pruned(layer, kg.Fixed()))
    assert pruned.layers[1].supports_masking
    pruned.layers[1].layer.set_weights(plain.layers[1].get_weights())
    assert np.allclose(numpy(pruned(tokens)), numpy(plain(tokens)), atol=1e-6)


def test_a_wrapped_layer_works_inside_time_distributed():
    pruned = kg.Pruned(LAYERS["dense"].built(), kg.Fixed(half_mask((5, 4))))
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    model = keras.Sequential([keras.Input((3, 5)), layers.TimeDistributed(pruned)])
    assert np.allclose(numpy(model(x)), numpy(pruned(x)), atol=1e-6)


# Saving.


@some_on_jax
@every_layer
def test_a_saved_model_comes_back_with_its_weights_and_masks(layer_case, tmp_path):
    model = keras.Sequential([keras.Input(layer_case.input_shape), kg.Pruned(layer_case.built(), GIBBS, seed=2**63 + 1)])
    model.layers[0].mask(training=True)
    loaded = saved_and_loaded(model, tmp_path)
    assert same(weights(loaded), weights(model))
    one, other = model.layers[0], loaded.layers[0]
    assert (other.method, other.seed, other.name) == (one.method, one.seed, one.name)
    assert other.layer.get_config() == one.layer.get_config()
    assert np.allclose(numpy(loaded(layer_case.inputs())), numpy(model(layer_case.inputs())), atol=1e-6)
    assert np.array_equal(numpy(other.mask(training=True)), numpy(one.mask(training=True)))  # the noise goes on where it was


@every_method
def test_a_saved_model_comes_back_for_every_method(method, tmp_path):
    layer_case = LAYERS["conv2d"]
    model = keras.Sequential([keras.Input(layer_case.input_shape), kg.Pruned(layer_case.built(), method.make(), seed=4)])
    model.layers[0].anneal(0.5)
    loaded = saved_and_loaded(model, tmp_path)
    assert loaded.layers[0].method == model.layers[0].method
    assert loaded.layers[0].progress == 0.5
    assert same(weights(loaded), weights(model))
    assert np.array_equal(numpy(loaded.layers[0].mask()), numpy(model.layers[0].mask()))


def test_a_fixed_mask_is_saved_with_the_weights(tmp_path):
    mask = half_mask((5, 4))
    model = keras.Sequential([keras.Input((5,)), kg.Pruned(LAYERS["dense"].built(), kg.Fixed(mask))])
    assert np.array_equal(numpy(saved_and_loaded(model, tmp_path).layers[0].mask()), mask)


@every_layer
def test_config_round_trips(layer_case):
    pruned = kg.Pruned(layer_case.make(), kg.Gibbs(0.9, structure=kg.Kernel(), beta=kg.Geometric(1, 10)), seed=3, name="mine", trainable=False)
    again = kg.Pruned.from_config(pruned.get_config())
    assert again.get_config() == pruned.get_config()
    assert (again.method, again.seed, again.name, again.trainable, type(again.layer)) == (
        pruned.method,
        3,
        "mine",
        False,
        type(pruned.layer),
    )


@every_method
def test_the_configuration_of_every_method_round_trips(method):
    made = method.make()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert again == made and hash(again) == hash(made)


def test_a_sparsity_given_as_a_numpy_number_can_be_saved(tmp_path):
    model = keras.Sequential([keras.Input((5,)), kg.Pruned(LAYERS["dense"].built(), kg.Gibbs(np.float32(0.5)))])
    assert saved_and_loaded(model, tmp_path).layers[0].method.sparsity == 0.5


def test_moving_averages_of_an_inner_layer_are_kept():
    class Counting(layers.Dense):
        def build(self, input_shape):
            super().build(input_shape)
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, inputs):
            self.calls.assign_add(1.0)
            return super().call(inputs)

    pruned = kg.Pruned(Counting(3), kg.Fixed())
    pruned(np.ones((1, 5), "float32"))
    pruned(np.ones((1, 5), "float32"), training=True)
    assert float(pruned.layer.calls.value) == 2.0


# Errors.


def test_what_cannot_be_wrapped_is_refused_by_name():
    with pytest.raises(ValueError, match="already wrapped.*strip_pruning"):
        kg.Pruned(kg.Pruned(layers.Dense(2), GIBBS), GIBBS)
    with pytest.raises(ValueError, match="'norm' cannot be pruned.*BatchNormalization.*Supported.*Dense"):
        kg.Pruned(layers.BatchNormalization(name="norm"), GIBBS)
    with pytest.raises(TypeError, match="Received: 'dense'"):
        kg.Pruned("dense", GIBBS)
    with pytest.raises(TypeError, match="method=0.9"):
        kg.Pruned(layers.Dense(2), 0.9)
    with pytest.raises(ValueError, match=r"depthwise_conv2d.*Kernel\(\)"):
        kg.Pruned(layers.DepthwiseConv2D(3), kg.Gibbs(0.5, structure=kg.Filter())).build((None, 5, 5, 2))


def test_a_fixed_mask_of_another_shape_or_with_other_values_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 5\).*'mine/kernel'.*\(5, 4\)"):
        kg.Pruned(LAYERS["dense"].built(name="mine"), kg.Fixed(np.ones((4, 5))))
    late = kg.Pruned(layers.Dense(4), kg.Fixed(np.ones((4, 5))))
    with pytest.raises(ValueError, match="shape"):
        late.build((None, 5))
    for value in (0.5, 2, np.nan):
        with pytest.raises(ValueError, match="0 .*1 .*only"):
            kg.Fixed(np.full((5, 4), value))


@pytest.mark.parametrize("make", [kg.Gibbs, kg.Magnitude])
@pytest.mark.parametrize(
    "sparsity, error, words",
    [
        (90, ValueError, r"\[0, 1\).*90.*pass 0\.9"),
        (-0.1, ValueError, r"\[0, 1\).*-0\.1"),
        (1.0, ValueError, r"\[0, 1\).*1\.0"),
        (1, ValueError, r"\[0, 1\)"),
        (float("nan"), ValueError, "nan"),
        (float("inf"), ValueError, "inf"),
        ("0.9", TypeError, "'0.9'"),
        (True, TypeError, "True"),
        (None, TypeError, "None"),
        ([0.5], TypeError, r"\[0\.5\]"),
        (kg.Linear(0.0, 1.0), ValueError, r"\[0, 1\)"),
        (kg.Linear(-0.5, 0.5), ValueError, r"\[0, 1\)"),
        (kg.Constant(90), ValueError, r"\[0, 1\)"),
    ],
    ids=repr,
)
def test_a_sparsity_that_is_no_fraction_is_refused(make, sparsity, error, words):
    with pytest.raises(error, match=words):
        make(sparsity)


def test_a_gibbs_law_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="Kernel"):
        kg.Gibbs(0.5, hamiltonian=kg.KernelCoupling())
    with pytest.raises(ValueError, match="Filter"):
        kg.Gibbs(0.5, structure=kg.Kernel(), hamiltonian=kg.FilterCoupling())
    with pytest.raises(ValueError, match="beta=-1"):
        kg.Gibbs(0.5, beta=-1.0)
    with pytest.raises(ValueError, match="finite|nan"):
        kg.Gibbs(0.5, beta=float("nan"))
    with pytest.raises(ValueError, match="scope='model'"):
        kg.Magnitude(0.5, scope="model")
    with pytest.raises(ValueError, match="convention"):
        kg.KernelCoupling(convention="theirs")
    with pytest.raises(ValueError, match="sweeps=0"):
        kg.FilterCoupling(sweeps=0)
