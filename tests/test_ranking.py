"""Ranking: exact counts, order statistics and quantiles, against NumPy's sort."""

import numpy as np
import pytest
from cases import numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops

from keras_gibbs.numerics import ranking
from keras_gibbs.numerics.compilation import compiled
from keras_gibbs.structure.allocation import by_score

SIZE = 37  # one shape, so that every function is compiled once
few = settings(max_examples=60, deadline=None)
ordinary = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-30, -1e30])
scores_of = {SIZE: st.lists(st.one_of(ordinary, tied), min_size=SIZE, max_size=SIZE) | st.lists(tied, min_size=SIZE, max_size=SIZE)}

top_mask = compiled(lambda scores, kept: ranking.keep(ranking.to_key(scores), *ranking.cut(ranking.to_key(scores), kept)))
key_of_rank = compiled(lambda scores, rank: ranking.order_statistic(ranking.to_key(scores), rank))
there_and_back = compiled(lambda scores: ranking.from_key(ranking.to_key(scores)))
to_key = compiled(ranking.to_key)
quantile = compiled(ranking.quantile)


def tracker(tolerance):
    return compiled(lambda keys, below, guess: ranking.track(lambda: keys, below, guess, tolerance))


trackers = {tolerance: tracker(tolerance) for tolerance in (0, 2)}


def float32(values):
    return np.array(values, "float32")


def top_by_sorting(scores, kept):
    mask = np.zeros(scores.size, "float32")
    mask[np.argsort(-scores, kind="stable", axis=None)[:kept]] = 1
    return mask.reshape(scores.shape)


@given(st.integers(1, 5000), st.integers(0, 9999))
def test_count_kept_rounds_half_up_what_it_removes_and_keeps_at_least_one(groups, tenthousandths):
    removed = (tenthousandths * groups + 5000) // 10000  # floor(sparsity n + 1/2) in whole numbers
    exact_half = (tenthousandths * groups + 5000) % 10000 == 0  # there, the float decides
    kept = ranking.count_kept(groups, tenthousandths / 10000)
    assert kept == max(1, groups - removed) or (exact_half and kept == max(1, groups - removed + 1))
    assert 1 <= kept <= groups


@pytest.mark.parametrize(
    "groups, sparsity, kept",
    [(4, 0.5, 2), (10, 0.9, 1), (2304, 0.9, 230), (16, 0.98, 1), (5, 0.5, 2), (7, 0.0, 7), (1, 0.999, 1), (3, 0.5, 1)],
)
def test_count_kept_by_hand(groups, sparsity, kept):
    assert ranking.count_kept(groups, sparsity) == kept


@few
@given(scores_of[SIZE], st.integers(0, SIZE))
@example([0.0, -0.0] * 18 + [0.0], 5)
@example([1.0] * SIZE, 11)
@example([-3.0] * SIZE, SIZE)
def test_cut_and_keep_agree_with_a_stable_sort(scores, kept):
    scores = float32(scores)
    assert np.array_equal(numpy(top_mask(scores, np.int32(kept))), top_by_sorting(scores, kept))


def test_keep_takes_the_largest_by_hand():
    assert numpy(top_mask(float32([1, 3, 2, 4]), np.int32(2))).tolist() == [0, 1, 0, 1]
    assert numpy(top_mask(float32([5, 5, 5, 5]), np.int32(3))).tolist() == [1, 1, 1, 0]


def test_scores_of_any_shape_are_ranked_over_all_entries():
    scores = np.random.default_rng(0).integers(0, 6, (3, 4, 5)).astype("float32")
    for kept in (0, 1, 29, 60):
        assert np.array_equal(numpy(top_mask(scores, np.int32(kept))), top_by_sorting(scores, kept))


def test_a_large_kernel_is_cut_exactly():
    scores = float32(np.random.default_rng(1).normal(size=50_000) ** 2)
    scores[1000:3000] = scores[7]
    for kept in (1, 5_000, 49_999):
        assert np.array_equal(numpy(top_mask(scores, np.int32(kept))), top_by_sorting(scores, kept))


def test_a_single_score_can_be_kept():
    assert numpy(top_mask(float32([3.0]), np.int32(1))).tolist() == [1]
    assert numpy(top_mask(float32([3.0]), np.int32(0))).tolist() == [0]


def test_denormal_scores_keep_the_count_exact():
    # A processor may take denormals for zeros, all equal then; the count holds either way.
    scores = float32([1e-45, 0.0, 2e-45, -1e-45, 1.0, 1e-39, -0.0])
    for kept in range(8):
        mask = numpy(top_mask(scores, np.int32(kept)))
        assert mask.sum() == kept
        assert mask[4] == (kept > 0)


@few
@given(scores_of[SIZE])
def test_keys_have_the_order_of_their_scores_and_lead_back(scores):
    scores = float32(scores)
    keys = numpy(to_key(scores)).astype(np.int64)
    assert np.array_equal(keys[:, None] < keys[None], scores[:, None] < scores[None])
    assert np.array_equal(numpy(there_and_back(scores)), scores)


def test_infinities_stand_at_the_ends_of_the_keys():
    keys = numpy(to_key(float32([-np.inf, -3.4e38, 0.0, 3.4e38, np.inf])))
    assert np.all(np.diff(keys.astype(np.int64)) > 0)


@few
@given(scores_of[SIZE], st.integers(0, SIZE - 1))
def test_the_order_statistic_is_the_sorted_value(scores, rank):
    scores = float32(scores)
    assert numpy(ranking.from_key(key_of_rank(scores, np.int32(rank)))) == np.sort(scores)[rank]


@few
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=SIZE, max_size=SIZE), st.floats(0, 1, exclude_max=True))
@example(list(range(SIZE)), 0.9)
@example([1.0] * SIZE, 0.3)
def test_the_quantile_is_numpys(values, fraction):
    scores = float32(values)
    rank, offset = ranking.quantile_position(SIZE, fraction)
    found = numpy(quantile(scores, np.int32(rank), np.float32(offset)))
    # 1e-9 SIZE of a gap for the rounded position, 2^-23 of the values for float32
    assert abs(found - np.quantile(scores.astype("float64"), fraction)) <= 1e-6 * max(1e-6, np.ptp(scores), np.abs(scores).max())


def test_nine_tenths_of_eleven_values_is_the_tenth_itself():
    for tenths in range(10):
        assert ranking.quantile_position(11, tenths / 10) == (tenths, 0.0)
    assert ranking.quantile_position(1, 0.99) == (0, 0.0)


def test_a_quantile_between_equal_values_is_that_value():
    scores = float32([2.0] * 20 + [5.0] * (SIZE - 20))
    assert numpy(quantile(scores, np.int32(10), np.float32(0.5))) == 2.0
    assert numpy(quantile(scores, np.int32(19), np.float32(0.5))) == 3.5


def check_track(keys, below, guess, tolerance):
    found = numpy(trackers[tolerance](keys, np.int32(below), np.int32(guess))).item()
    off = abs(int(np.count_nonzero(keys < found)) - below)
    assert off <= tolerance or found == np.sort(keys)[below], (below, guess, tolerance, found)


@few
@given(scores_of[SIZE], st.integers(0, SIZE - 1), st.integers(-(2**31), 2**31 - 1), st.sampled_from([0, 2]))
@example([1.0] * SIZE, 5, 0, 0)
@example([1.0] * 20 + [2.0] * 17, 30, 2**31 - 1, 2)
@example([float(i) for i in range(SIZE)], 0, -(2**31), 0)
@example([float(i) for i in range(SIZE)], SIZE - 1, 2**31 - 1, 0)
def test_a_tracked_threshold_is_within_tolerance_or_at_the_tie_itself(scores, below, guess, tolerance):
    check_track(numpy(to_key(float32(scores))), below, guess, tolerance)


@few
@given(scores_of[SIZE], st.integers(0, SIZE - 1), st.integers(0, SIZE - 1))
def test_tracking_from_a_value_of_the_scores_themselves_works(scores, below, start):
    keys = numpy(to_key(float32(scores)))
    check_track(keys, below, int(keys[start]), 0)


def test_tracking_leaves_a_guess_that_holds():
    keys = numpy(to_key(float32(np.arange(SIZE))))
    guess = int(keys[20])
    assert numpy(trackers[2](keys, np.int32(21), np.int32(guess))) == guess


@pytest.mark.parametrize("chunk", [8, ranking.CHUNK])
@few
@given(scores_of[SIZE], st.integers(0, SIZE), st.floats(0, 1, exclude_max=True))
@example([1.0] * 20 + [-2.0] * 17, 20, 0.0)
@example([-0.0, 0.0] * 18 + [-1e-30], 30, 0.5)
def test_numpy_ranks_known_scores_as_compiled_code_does(chunk, scores, kept, offset):
    scores, rank, offset = ops.convert_to_tensor(float32(scores)), np.int32(max(0, kept - 1)), np.float32(offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CHUNK", chunk)  # of more keys than that, NumPy counts bins
        keys = ranking.to_key(scores)
        assert np.array_equal(numpy(ranking.keep(keys, *ranking.cut(keys, np.int32(kept)))), numpy(top_mask(scores, np.int32(kept))))
        if abs(numpy(scores)).max() < 1e30:
            assert numpy(ranking.quantile(scores, rank, offset)) == numpy(quantile(scores, rank, offset))


layers_of_scores = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=4)


@given(layers_of_scores, st.data())
def test_the_shares_are_those_of_one_stable_sort_over_all_layers(layers, data):
    together = np.concatenate([float32(layer) for layer in layers])
    kept = data.draw(st.integers(1, together.size))
    owner = np.repeat(np.arange(len(layers)), [len(layer) for layer in layers])
    chosen = owner[np.argsort(-together, kind="stable")[:kept]]
    assert by_score([float32(layer) for layer in layers], kept) == [int(np.sum(chosen == index)) for index in range(len(layers))]
