"""How layers share out what is kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    shapes, groups = [(2, 2), (1, 3)], [4, 3]
    assert sharing.counts("global", 3 / 7, shapes, groups, scores) == [4, 0]
    assert sharing.counts("lamp", 3 / 7, shapes, groups, scores) == [2, 2]  # 1, 4/13, 2/15, 1/16 and 1, 2/5, 1/6: the two largest of each
