"""How weights fall into groups and contests, against hand-written axes and independent counts."""

import itertools
import math

import keras
import numpy as np
import pytest
from cases import LAYERS, STRUCTURES, every_layer, every_structure, groups_of, numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from scipy.special import expit

import keras_gibbs as kg
from keras_gibbs.structure.layouts import Layout, standard_layout
from keras_gibbs.structure.prunable import prunable_weights

PIECES = {"2 of 4": kg.NofM(2, 4), "1 of 3": kg.NofM(1, 3), "block": kg.Block(2, 3)}
every_piece = pytest.mark.parametrize("structure", [pytest.param(case, id=name) for name, case in (STRUCTURES | PIECES).items()])


def counting(shape):
    return np.arange(1, math.prod(shape) + 1, dtype="float32").reshape(shape)


def kernel_of(layer):
    return prunable_weights(layer)[0]


def pooled(structure, kernel, layout=None):
    return numpy(structure.arrange(kernel, layout or standard_layout(kernel.ndim))).mean(axis=(0, 1)).reshape(-1)


@every_layer
def test_the_layout_of_every_layer_names_its_axes(layer_case):
    layout = kernel_of(layer_case.built()).layout
    assert (layout.positions, layout.inputs, layout.outputs) == layer_case.axes
    assert layout.filters == layer_case.filters


@pytest.mark.once
@every_layer
@every_piece
def test_restore_undoes_arrange(structure, layer_case):
    kernel = counting(layer_case.built().kernel.shape)
    layout = Layout(*layer_case.axes)
    arranged = numpy(structure.arrange(kernel, layout))
    assert arranged.shape == structure.shape(kernel.shape, layout)
    assert np.array_equal(numpy(structure.restore(arranged, kernel.shape, layout)), kernel)
    filled = structure.filled(kernel.shape, layout)
    assert np.array_equal(arranged > 0, np.ones(arranged.shape, bool) if filled is None else filled)


@pytest.mark.once
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_restore_undoes_arrange_for_any_layout(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    roles = data.draw(st.lists(st.sampled_from(range(3)), min_size=len(shape), max_size=len(shape)))
    layout = Layout(*(tuple(axis for axis, role in enumerate(roles) if role == wanted) for wanted in range(3)))
    kernel = counting(shape)
    for structure in (STRUCTURES | PIECES).values():
        assert np.array_equal(numpy(structure.restore(structure.arrange(kernel, layout), tuple(shape), layout)), kernel)


@every_layer
@every_structure
def test_the_columns_of_an_arranged_kernel_are_its_groups(structure, layer_case):
    kernel = counting(layer_case.built().kernel.shape)
    if structure.removes_outputs and not layer_case.filters:
        pytest.skip("filters of a depthwise kernel")
    columns = numpy(structure.arrange(kernel, Layout(*layer_case.axes)))[..., 0]
    columns = columns.reshape(-1, columns.shape[-1]).T
    assert np.array_equal(np.sort(columns, axis=1), np.sort(groups_of(kernel, structure, layer_case.axes), axis=1))


def test_groups_by_hand():
    kernel = np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]], "float32")  # 2 inputs, 3 units
    assert pooled(kg.Unstructured(), kernel).tolist() == [1, 2, 3, 5, 6, 7]
    assert pooled(kg.Kernel(), kernel).tolist() == [1, 2, 3, 5, 6, 7]
    assert pooled(kg.Filter(), kernel).tolist() == [3, 4, 5]
    restored = kg.Filter().restore(np.array([1.0, 0.0, 1.0], "float32").reshape(1, 1, 3, 1), (2, 3), standard_layout(2))
    assert numpy(restored).tolist() == [[1, 0, 1], [1, 0, 1]]


def test_a_convolution_pools_by_hand():
    kernel = np.zeros((2, 2, 2, 3), "float32")
    kernel[:, :, 1, 2] = 4.0
    assert pooled(kg.Kernel(), kernel).tolist() == [0, 0, 0, 0, 0, 4]
    assert pooled(kg.Filter(), kernel).tolist() == [0, 0, 2]


def test_the_filters_of_a_transposed_convolution_are_its_output_channels():
    weight = kernel_of(LAYERS["conv2d-transpose"].built())  # kernel (3, 3, 4 out, 2 in)
    kernel = np.zeros(weight.shape, "float32")
    kernel[:, :, 1, :] = 1.0
    assert pooled(kg.Filter(), kernel, weight.layout).tolist() == [0, 1, 0, 0]


def test_removing_a_filter_silences_exactly_one_output_channel():
    for name in ("conv1d", "conv2d", "conv2d-grouped", "conv2d-transpose", "conv1d-transpose", "dense", "einsum", "einsum-merge"):
        layer = LAYERS[name].built(use_bias=False) if "einsum" not in name else LAYERS[name].built()
        groups = np.ones(4 if name != "einsum-merge" else 6, "float32")
        groups[2] = 0
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(np.zeros(layer.bias.shape))
        weight = kernel_of(layer)
        layer.kernel.assign(layer.kernel.value * kg.Filter().restore(groups.reshape(1, 1, -1, 1), weight.shape, weight.layout))
        outputs = numpy(layer(LAYERS[name].inputs()))
        silent = np.abs(outputs).reshape(-1, outputs.shape[-1]).max(axis=0) == 0
        assert silent.tolist() == [channel == 2 for channel in range(len(groups))], name


def test_the_heads_of_an_einsum_layer_are_filters_of_their_own():
    weight = kernel_of(LAYERS["einsum-heads"].built())  # kernel (6 in, 2 heads, 4 wide)
    assert kg.Filter().shape(weight.shape, weight.layout)[2] == 8


def test_filters_of_a_depthwise_kernel_are_refused_with_what_to_use():
    for layer in (layers.DepthwiseConv1D(3, name="deep"), layers.DepthwiseConv2D(3, name="deep")):
        layer.build((None, 6, 6, 2)[: 3 if "1D" in type(layer).__name__ else 4])
        with pytest.raises(ValueError, match=r"Filter.*'kernel'.*Kernel\(\)"):
            kg.Filter().check(kernel_of(layer))
        with pytest.raises(ValueError, match=r"NofM.*inputs.*where="):
            kg.NofM(2, 4).check(kernel_of(layer))
        for structure in (kg.Unstructured(), kg.Kernel()):
            structure.check(kernel_of(layer))


def test_structures_are_equal_by_value_and_say_whether_they_remove_outputs():
    assert kg.Kernel() == kg.Kernel() != kg.Filter()
    assert [structure.removes_outputs for structure in STRUCTURES.values()] == [False, False, True]


# n of m, and blocks: counts by another way than the product's


def runs(array, axes, m):
    """The weights in runs of m inputs as rows, by plain NumPy; NaN where a run has no more."""
    positions, inputs, outputs = axes
    rows = array.transpose(*positions, *outputs, *inputs).reshape(-1, int(np.prod([array.shape[axis] for axis in inputs])))
    padded = np.full((len(rows), math.ceil(rows.shape[1] / m) * m), np.nan, "float32")
    padded[:, : rows.shape[1]] = rows
    return padded.reshape(-1, m)


WITH_INPUTS = [name for name in LAYERS if LAYERS[name].axes[1]]


@pytest.mark.once
@pytest.mark.parametrize("name", WITH_INPUTS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (3, 8)])
def test_the_largest_n_of_every_m_are_kept(name, n, m):
    layer = LAYERS[name].built()
    mask = numpy(kg.Pruned(layer, kg.Magnitude(1 - n / m, structure=kg.NofM(n, m))).mask())
    kept, values = runs(mask, LAYERS[name].axes, m), runs(np.abs(numpy(layer.kernel)), LAYERS[name].axes, m)
    there = (~np.isnan(values)).sum(axis=1)
    assert np.array_equal(np.nansum(kept, axis=1), np.minimum(n, there))
    least = np.where(kept == 1, values, np.inf).min(axis=1)
    most = np.where(kept == 0, values, -np.inf).max(axis=1)
    assert (least > most).all()


def test_many_to_choose_from_are_ranked_as_a_few():
    rng = np.random.default_rng(0)
    kernel = np.round(rng.normal(size=(80, 3)), 1).astype("float32")  # with ties
    layer = layers.Dense(3)
    layer.build((None, 80))
    layer.kernel.assign(kernel)
    mask = numpy(kg.Pruned(layer, kg.Magnitude(0.75, structure=kg.NofM(10, 40))).mask())
    for unit, run in itertools.product(range(3), range(2)):
        values = np.abs(kernel[40 * run : 40 * run + 40, unit])
        expected = np.zeros(40)
        expected[np.argsort(-values, kind="stable")[:10]] = 1
        assert np.array_equal(mask[40 * run : 40 * run + 40, unit], expected)


@pytest.mark.once
@pytest.mark.parametrize("method", [kg.Gibbs, kg.Magnitude])
def test_a_schedule_ends_at_n_of_m_and_rounds_in_every_run(method):
    layer = LAYERS["conv2d"].built()
    pruned = kg.Pruned(layers.Dense(5), method(kg.Linear(0.0, 0.5), structure=kg.NofM(2, 4)))
    pruned.build((None, 10))
    for progress, kept in ((0.0, 4), (0.2, 4), (0.3, 3), (0.7, 3), (0.8, 2), (1.0, 2)):
        pruned.anneal(progress)
        counts = np.nansum(runs(numpy(pruned.mask()), ((), (0,), (1,)), 4), axis=1).reshape(5, 3)
        assert np.array_equal(counts, [[kept, kept, min(kept, 2)]] * 5)
    assert kg.Pruned(layer, method(0.5, structure=kg.NofM(2, 4))).mask().shape == layer.kernel.shape


def test_gibbs_keeps_weights_of_two_in_four_by_the_enumerated_law():
    rng = np.random.default_rng(3)
    kinds = rng.normal(size=(3, 4)).astype("float32")  # runs of four inputs, each at many outputs
    layer = layers.Dense(3 * 4000, use_bias=False)
    layer.build((None, 4))
    layer.kernel.assign(np.repeat(kinds.T, 4000, axis=1))
    beta = 1.5
    mask = numpy(kg.Pruned(layer, kg.Gibbs(0.5, structure=kg.NofM(2, 4), beta=beta), seed=5).mask(training=True))
    states = np.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    for kind, draws in zip(kinds, np.split(mask, 3, axis=1), strict=True):
        field = np.quantile(kind.astype(float) ** 2, 0.5) - kind.astype(float) ** 2  # the threshold is that of the run
        weights = np.exp(-beta * 0.5 * states @ field)
        observed = np.bincount(((2.0 ** np.arange(4)[::-1]) @ draws).astype(int), minlength=16) / 4000
        expected = weights / weights.sum()
        assert (np.abs(observed - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3).all()
        assert draws.mean(axis=1) == pytest.approx(expit(-beta * field), abs=0.04)


def test_an_exact_count_holds_in_every_run():
    pruned = kg.Pruned(layers.Dense(50), kg.Gibbs(0.5, structure=kg.NofM(2, 4), beta=1.0, count="exact"), seed=1)
    pruned.build((None, 16))
    first, second = (numpy(pruned.mask(training=True)) for _ in range(2))
    assert (first.T.reshape(-1, 4).sum(axis=1) == 2).all() and (first != second).any()


@pytest.mark.parametrize("name", ["dense", "conv2d", "conv2d-transpose", "einsum-merge", "depthwise2d"])
def test_blocks_live_or_die_together_and_the_best_by_their_mean_stay(name):
    layer, (positions, inputs, outputs), h, w = LAYERS[name].built(), LAYERS[name].axes, 2, 3
    mask = numpy(kg.Pruned(layer, kg.Magnitude(0.5, structure=kg.Block(h, w))).mask())
    order = (*positions, *inputs, *outputs)
    sizes = [int(np.prod([mask.shape[axis] for axis in part])) for part in (positions, inputs, outputs)]
    mask, kernel = (array.transpose(order).reshape(sizes) for array in (mask, numpy(layer.kernel)))
    means, kept = [], []
    for position, i, j in itertools.product(range(sizes[0]), range(0, sizes[1], h), range(0, sizes[2], w)):
        part = mask[position, i : i + h, j : j + w]
        assert part.min() == part.max()
        kept.append(part.max())
        means.append((kernel[position, i : i + h, j : j + w].astype(float) ** 2).mean())
    assert sum(kept) == max(1, len(kept) - math.floor(0.5 * len(kept) + 0.5))
    kept, means = np.array(kept), np.array(means)
    assert means[kept == 1].min() > means[kept == 0].max()


@pytest.mark.once
@pytest.mark.parametrize("structure", list(PIECES.values()), ids=list(PIECES))
def test_pieces_train_save_load_and_strip(structure, tmp_path):
    sparsity = 1 - structure.n / structure.m if isinstance(structure, kg.NofM) else 0.5
    model = keras.Sequential([keras.Input((5, 5, 3)), layers.Conv2D(7, 3, activation="relu"), layers.Flatten(), layers.Dense(3)])
    pruned = kg.prune(model, kg.Gibbs(kg.Linear(0.0, sparsity, end=0.5), structure=structure, settle=0.6), seed=2)
    pruned.compile("sgd", "mse")
    x, y = np.random.default_rng(0).normal(size=(32, 5, 5, 3)).astype("float32"), np.zeros((32, 3), "float32")
    pruned.fit(x, y, epochs=4, batch_size=8, verbose=0, callbacks=[kg.GibbsPruningCallback()])
    pruned.save(tmp_path / "pieces.keras")
    loaded, stripped = keras.models.load_model(tmp_path / "pieces.keras"), kg.strip_pruning(pruned)
    assert loaded.layers[0].method == pruned.layers[0].method  # the structure is in the configuration
    for first, second in zip(kg.pruned_layers(pruned), kg.pruned_layers(loaded), strict=True):
        assert np.array_equal(numpy(first.mask()), numpy(second.mask()))
    expected = pruned.predict(x, verbose=0)
    assert np.array_equal(loaded.predict(x, verbose=0), expected)
    assert np.allclose(stripped.predict(x, verbose=0), expected, atol=1e-6)
    assert kg.sparsity(stripped) == kg.sparsity(pruned) > 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kg.NofM(4, 4), "smaller.*n=4, m=4"),
        (lambda: kg.NofM(0, 4), "positive int.*n=0"),
        (lambda: kg.NofM(2.0, 4), "positive int.*n=2.0"),
        (lambda: kg.Block(0, 2), "positive int.*h=0"),
        (lambda: kg.Magnitude(0.9, structure=kg.NofM(2, 4)), r"NofM\(2, 4\).*0\.5.*Received.*0\.9"),
        (lambda: kg.Gibbs(kg.Linear(0.0, 0.75), structure=kg.NofM(2, 4)), "ends there.*Received"),
        (lambda: kg.Magnitude(0.5, structure=kg.NofM(2, 4), scope="global"), "scope='layer'"),
        (lambda: kg.GumbelSoftmax(structure=kg.NofM(2, 4)), "needs a `sparsity`"),
    ],
)
def test_pieces_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
