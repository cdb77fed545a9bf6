"""A weight in a longer row, filled up with zeros, has the masks that it has by itself, bit for bit."""

import cases
import keras
import numpy as np
import pytest
from keras import ops

import keras_gibbs as kg
from keras_gibbs.compiled_masks import CompiledMasks
from keras_gibbs.masks import Masks
from keras_gibbs.numerics.noise import Uniform
from keras_gibbs.numerics.rows import LONGEST, SHORTEST, row_length
from keras_gibbs.structure.layouts import Layout

METHODS = {
    "gibbs": kg.Gibbs(0.9, beta=3.0),
    "recommended": kg.Gibbs.recommended(0.8),
    "curvature": kg.Gibbs(0.7, criterion=kg.CurvatureEnergy(), scale="log"),
    "magnitude": kg.Magnitude(0.5),
}

without_xla = pytest.fixture(scope="module", autouse=True)(cases.xla(False))


def numpy(tree):
    return keras.tree.map_structure(ops.convert_to_numpy, tree)


@pytest.mark.once
@pytest.mark.parametrize("size", [37, 10_007])  # with thresholds that are searched anew, and tracked
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_longer_row_changes_nothing(method, size):
    rng = np.random.default_rng(size)
    masks = Masks(method, (size,), Layout((), (), (0,)))
    weight = ops.convert_to_tensor(np.where(rng.random(size) < 0.1, 0.0, rng.normal(size=size)).astype("float32"))  # with ties
    state = {name: ops.convert_to_tensor(np.asarray(spec.value, spec.dtype)) for name, spec in method.state(masks.arranged_shape).items()}
    state |= {"sparsity": ops.convert_to_tensor(np.float32(0.5))}
    key, draw = ops.convert_to_tensor(np.array([3, 4], "int32")), ops.convert_to_tensor(np.int32(7))
    rows = CompiledMasks(masks)
    assert row_length(size) > size
    for _ in range(2):  # from nothing, and from the threshold that was found
        alone, in_row = masks.step(weight, state, key, draw), rows("step", weight, state, key, draw)
        keras.tree.map_structure(np.testing.assert_array_equal, numpy(alone), numpy(in_row))
        state |= {name: ops.convert_to_tensor(value) for name, value in alone[1].items()}
    moved = ops.convert_to_tensor(np.uint8(1))
    alone, in_row = masks.refresh(weight, state, moved), rows("refresh", weight, state, moved)
    state |= alone
    if "decision" in alone:
        np.testing.assert_array_equal(*numpy((alone["decision"], in_row["decision"])))
    else:
        np.testing.assert_array_equal(*numpy((masks.infer(weight, state), rows("infer", weight, state | in_row))))


@pytest.mark.parametrize(
    "size, length",
    [(1, SHORTEST), (SHORTEST + 1, 4 * SHORTEST), (2**17 + 1, 5 * 2**15), (9 * 2**12, 5 * 2**13), (LONGEST, LONGEST), (LONGEST + 1, LONGEST + 1)],
)
def test_rows_have_few_lengths(size, length):
    assert row_length(size) == length


def test_methods_that_differ_in_numbers_share_what_is_compiled():
    one, other = kg.Gibbs.recommended(0.5, settle=0.4), kg.Gibbs.recommended(0.9)
    assert one.without_numbers() == other.without_numbers() != kg.Gibbs(0.5).without_numbers()
    assert one == kg.Gibbs.recommended(0.5, settle=0.4)  # and are not changed


@pytest.mark.parametrize("method", [kg.Gibbs(0.9, beta=3.0), kg.Magnitude(0.5)])
def test_a_weight_beyond_the_longest_row_trains_and_infers_as_others_do(method, monkeypatch):
    """Its mask and product are one pass over memory, with a gradient of their own."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 20)).astype("float32"), rng.normal(size=(32, 3)).astype("float32")

    def trained():
        keras.utils.set_random_seed(0)
        model = kg.prune(keras.Sequential([keras.Input((20,)), keras.layers.Dense(30, activation="tanh"), keras.layers.Dense(3)]), method, seed=1)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        losses = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[kg.GibbsPruningCallback()]).history["loss"]
        return losses, model.predict(x, verbose=0), kg.sparsity(model), [numpy(weight) for weight in model.trainable_weights]

    small = trained()
    for module in ("keras_gibbs.weights", "keras_gibbs.compiled_masks", "keras_gibbs.numerics.rows"):
        monkeypatch.setattr(f"{module}.LONGEST", 10)
    keras.tree.map_structure(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), small, trained())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_figures_of_a_weight_beyond_the_longest_row_are_those_of_its_parts_together(method, monkeypatch):
    dense = keras.layers.Dense(100)
    dense.build((None, 200))
    masked = kg.Pruned(cases.randomize(dense), method, seed=1).masked_weights[0]
    masked.set_kept(3_000)
    masked.assign({"sparsity": 0.85})
    draw = ops.convert_to_tensor(np.int32(5))
    count, figures = masked.count(), masked.figures(draw)
    for module in ("keras_gibbs.weights", "keras_gibbs.compiled_masks", "keras_gibbs.numerics.rows"):
        monkeypatch.setattr(f"{module}.LONGEST", 6_000)
    parts = masked._reported("count", masked.masks.decide)
    assert [size for size, _ in parts] == [6_000, 6_000, 6_000, 2_000] and len({int(kept) for _, kept in parts}) > 1
    assert masked.count() == count == 3_000
    assert masked.figures(draw) == pytest.approx(figures, rel=1e-5)


def test_the_noise_of_a_part_is_that_of_the_whole():
    whole = numpy(Uniform(3, 7)((1, 1, 50, 1), stream=2))
    np.testing.assert_array_equal(numpy(Uniform(3, 7, 20)((1, 1, 30, 1), stream=2)), whole[:, :, 20:])
