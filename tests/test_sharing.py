"""How layers share out what is kept."""

import keras
import numpy as np
import pytest
from cases import numpy
from hypothesis import given
from hypothesis import strategies as st

import keras_gibbs as kg
from keras_gibbs.structure import allocation as sharing

layers_of_scores = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=5)


@given(scores=layers_of_scores, fraction=st.floats(0, 1), floor=st.floats(0, 1))
def test_shares_by_score_are_the_top_of_all_layers_with_at_least_the_floor(scores, fraction, floor):
    scores = [np.array(score, "float32") for score in scores]
    total = sum(score.size for score in scores)
    kept = max(1, round(fraction * total))
    least = [int(floor * fraction * score.size) for score in scores]
    if sum(least) > kept:
        return
    counts = sharing.by_score(scores, kept, least)
    assert sum(counts) == kept
    assert all(low <= count <= score.size for low, count, score in zip(least, counts, scores, strict=True))
    ranked = [np.sort(score)[::-1] for score in scores]
    free = [index for index, count in enumerate(counts) if count > least[index]]
    lowest_kept = [ranked[index][counts[index] - 1] for index in free]  # what a layer above its floor keeps last
    highest_removed = [ranked[index][counts[index]] for index in range(len(scores)) if counts[index] < scores[index].size]
    if lowest_kept and highest_removed:
        assert min(lowest_kept) >= max(highest_removed)


def test_equal_scores_go_to_the_first_layers():
    assert sharing.by_score([np.zeros(3), np.zeros(3)], 4) == [3, 1]


def test_shares_by_shape_follow_the_sums_of_dimensions():
    shapes, groups = [(3, 3, 16, 16), (3, 3, 64, 64), (1, 1, 16, 32)], [2304, 36864, 512]
    counts = sharing.by_shape(shapes, groups, 0.02)
    scale = 0.02 * sum(groups) / sum(sum(shape) for shape in shapes)
    assert counts == [round(scale * sum(shape)) for shape in shapes]
    assert sum(counts) == pytest.approx(0.02 * sum(groups), abs=1.5)


def test_a_layer_that_would_keep_more_than_all_keeps_all_and_the_others_share_the_rest():
    shapes, groups = [(2, 2), (100, 100)], [4, 10000]
    assert sharing.by_shape(shapes, groups, 0.5) == [4, round(0.5 * 10004 - 4)]
    assert sharing.by_shape(shapes, groups, 1.0) == groups


def test_counts_of_groups_follow_the_densities_of_weights():
    assert sharing.by_shape([(3, 3, 8, 10), (3, 3, 8, 10)], [10, 720], 0.5) == [5, 360]


def test_lamp_divides_by_all_that_is_larger():
    np.testing.assert_allclose(sharing.lamp(np.array([1.0, 9.0, 4.0])), [1 / 14, 1.0, 4 / 13])
    # Scores of the second layer are far smaller: `global` would take all of it.
    scores = [np.array([1.0, 9.0, 4.0, 2.0]), np.array([1e-6, 2e-6, 3e-6])]
    assert sharing.counts("global", 3 / 7, 3 / 7, [], [4, 3], scores) == [4, 0]
    assert sharing.counts("lamp", 3 / 7, 3 / 7, [], [4, 3], scores) == [2, 2]  # 1, 4/13, 2/15, 1/16 and 1, 2/5, 1/6: the two largest of each


@pytest.mark.parametrize("make", [kg.Magnitude, kg.Gibbs, kg.Random, kg.SynFlow, kg.RigL])
def test_a_table_gives_weights_sparsities_of_their_own(make):
    names = ("stem", "body", "head")
    model = keras.Sequential([keras.Input((10,)), *(keras.layers.Dense(10, name=name) for name in names)])
    pruned = kg.prune(model, make(0.8, scope=kg.Table({"stem/": 0.5, "^body": 0.93})))
    assert [float(numpy(layer.mask()).sum()) for layer in kg.pruned_layers(pruned)] == [50, 7, 20]
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(make(0.8, scope=kg.Table({"a": 0.5})))).scope == kg.Table({"a": 0.5})


def test_a_table_moves_with_the_schedule():
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10, name="stem"), keras.layers.Dense(10, name="head")])
    pruned = kg.prune(model, kg.Magnitude(kg.Linear(0.0, 0.8), scope=kg.Table({"stem": 0.4})))
    pruned.compile("sgd", "mse")
    kept = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: kept.append([float(numpy(layer.mask()).sum()) for layer in kg.pruned_layers(pruned)])
    )
    pruned.fit(np.ones((4, 10)), np.ones((4, 10)), epochs=2, verbose=0, callbacks=[kg.GibbsPruningCallback(update_freq="epoch"), watch])
    assert kept == [[100, 100], [80, 60]]
    assert [float(numpy(layer.mask()).sum()) for layer in kg.pruned_layers(pruned)] == [60, 20]


def test_a_table_of_something_else_is_refused():
    for table, message in (({"a(": 0.5}, "regular expressions"), ({"a": 50}, r"\{'a': 50.0\}")):
        with pytest.raises(ValueError, match=message):
            kg.Table(table)
