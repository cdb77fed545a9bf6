"""Samplers of masks from Gibbs distributions: pure functions of tensors, the randomness an argument.

Everywhere a field is positive where it favours removal, a spin x = +1 keeps a weight and x = -1 removes it, and a mask is (x + 1) / 2. `uniform`
is a callable `(shape, stream=0)` giving float32 numbers in [0, 1); draws with different streams are independent (`keras_gibbs.numerics.noise.Uniform`).
"""

from collections.abc import Callable

import numpy as np
from keras import ops

from keras_gibbs.numerics import ranking
from keras_gibbs.typing import Tensor

MOST_COUPLED_SPINS = 128  # beyond, binomial coefficients overflow float32
_WORD = 31  # spins whose fate fits into one int32
_COLDEST = np.float32(1e30)  # a beta beyond this is the same law, but products with it could overflow


def bernoulli(logit: Tensor, uniform: Callable) -> Tensor:
    """Independent bits that are 1 with probability sigmoid(logit).

    Args:
        logit: Float tensor of any shape. +inf always gives 1, -inf never.
        uniform: The source of noise.

    Returns:
        float32 mask of 0 and 1, shaped like `logit`; its probability of 1 is sigmoid(logit) rounded down to a multiple of 2^-24.
    """
    return ops.cast(_kept(logit, uniform(logit.shape)), "float32")


def exactly(logit: Tensor, kept: Tensor, uniform: Callable) -> Tensor:
    """Exactly `kept` bits that are 1, each with its own probability: order sampling of Pareto type.

    The bits with the largest sums of logit and logistic noise are 1. The probability of each is very nearly sigmoid(logit + c), with the one c for which
    these probabilities add up to `kept`: the Gibbs law at a fixed expected count, c / beta being the shift of the threshold, without its fluctuation. It
    costs one threshold.

    Args:
        logit: Finite float tensor `(1, 1, groups, contests)`; adding a constant to all of a contest changes nothing.
        kept: Scalar int32 in [0, groups], how many are 1 in every contest.
        uniform: The source of noise.

    Returns:
        float32 mask of 0 and 1, shaped like `logit`.

    Reference: Rosen 1997, On sampling with probability proportional to size, J. Statist. Plann. Inference 62, 159-191 (not read).
    """
    noise = uniform(logit.shape) + np.float32(2.0**-25)  # in (0, 1)
    keys = ranking.to_key(logit + ops.log(noise) - ops.log(1.0 - noise))
    return ranking.top(keys, kept)


def _kept(logit, noise):
    # 1 - noise lies in (0, 1], without 0: a probability that underflows, to 0 or to the least float, never keeps, and one of 1 always does.
    return 1.0 - noise <= ops.sigmoid(logit)


def coupled_spins(field: Tensor, beta: Tensor, coupling: float, uniform: Callable) -> Tensor:
    """Exact draws from small systems in which every spin is coupled to every other equally.

    The law is p(x) ~ exp(-beta H) with H = (b . x - c (M^2 - N)) / 2, M = sum(x). It depends on the states through the field and M alone, so the
    number of kept spins is drawn first, then which they are: O(N^2) per system instead of 2^N.

    With u_i = exp(-beta b_i) and e_m the elementary symmetric polynomials, P(m kept) ~ e_m(u) exp(beta c (2m - N)^2 / 2); and of the first i
    spins, m of them kept, spin i is kept with probability u_i e_{m-1}(u_1..u_{i-1}) / e_m(u_1..u_i). The spins are sorted by descending u, and
    every e_m is divided by its largest term u_1...u_m: what is stored lies between 1 and binomial(N, m), and no logarithm is needed on the way.

    Args:
        field: Float tensor (N, G): the field b of N spins in each of G independent systems; N up to 128.
        beta: Scalar >= 0, the inverse temperature; 0 keeps every spin with probability 1/2.
        coupling: Python float c. Positive values favour all-equal systems, negative ones balanced systems, 0 makes spins independent.
        uniform: The source of noise.

    Returns:
        float32 mask (N, G) of 0 and 1.

    Reference: the sequential draw is that of conditional Bernoulli sampling (Chen, Dempster & Liu 1994, Biometrika 81, 457-469; not read). The
    authors of Gibbs pruning enumerate the 2^N states (gibbs_pruning.py:10-19), with H twice as large.
    """
    spins, systems = field.shape
    log_odds, rank = _sorted(field, beta)
    noise = uniform((spins + 1, systems))
    sums, fates = _elementary_sums(log_odds, noise)
    kept = _draw(_log_weights(log_odds, sums, beta, coupling), noise[spins:])
    chosen = _counts(spins) == kept  # (N+1, G)
    mask = 0
    for word, fate in enumerate(fates):
        fate = ops.sum(ops.where(chosen, fate, 0), axis=0, keepdims=True)  # (1, G)
        place = rank - word * _WORD
        bit = ops.bitwise_and(ops.right_shift(fate, ops.clip(place, 0, _WORD - 1)), _int(1))
        mask = mask + ops.where(ops.logical_and(place >= 0, place < _WORD), bit, 0)
    return ops.cast(mask, "float32")


def coupled_spins_log_weights(field: Tensor, beta: Tensor, coupling: float) -> Tensor:
    """The exact law of the number of kept spins of `coupled_spins`.

    Args:
        field: Float tensor (N, G), the field b.
        beta: Scalar >= 0, the inverse temperature.
        coupling: Python float c.

    Returns:
        float32 tensor (N + 1, G): log P(m kept) for m = 0..N up to a constant per system, which makes the weight of m = 0 equal 0.
    """
    log_odds, _ = _sorted(field, beta)
    sums, _ = _elementary_sums(log_odds)
    return _log_weights(log_odds, sums, beta, coupling)


def _int(value):
    return ops.convert_to_tensor(np.int32(value))


def _counts(spins):
    return np.arange(spins + 1, dtype="int32")[:, None]


def _cold(beta):
    return ops.minimum(ops.cast(beta, "float32"), _COLDEST)


def _sorted(field, beta):
    """Log odds -beta b in descending order (N, G), and the place of every spin in that order (N, G)."""
    # N^2 comparisons, fused: for 9 and for 25 spins 5 to 10 times faster than the sort of XLA on a CPU.
    log_odds = -_cold(beta) * field
    spins = field.shape[0]
    index = np.arange(spins, dtype="int32")[:, None]
    rank = 0
    for j in range(spins):
        before = ops.where(j < index, log_odds[j : j + 1] >= log_odds, log_odds[j : j + 1] > log_odds)
        rank = rank + ops.cast(before, "int32")
    ordered = 0.0
    for j in range(spins):
        ordered = ordered + ops.where(rank[j : j + 1] == index, log_odds[j : j + 1], 0.0)
    return ordered, rank


def _elementary_sums(log_odds, noise=None):
    """e_m(u) / (u_1...u_m) for m = 0..N (N + 1, G), and with noise the spins kept if m of them are, as bits of words (N + 1, G) each.

    The decisions "keep spin i, given that m of the first i are kept" are taken while the sums are built, for every m at once and with the same
    number. The path that the final count selects uses every number once, so the draw is exact, and no second pass over all sums is needed.
    """
    spins, systems = log_odds.shape
    count = _counts(spins)
    lead = ops.concatenate([log_odds[:1], log_odds], axis=0)  # (N+1, G): log u_m in row m; row 0 is never used

    def shift(table):  # row m takes row m - 1
        return ops.concatenate([ops.zeros_like(table[:1]), table[:-1]], axis=0)

    def add_spin(i, state):
        sums, *fates = state
        ratio = ops.exp(ops.minimum(ops.slice(log_odds, (i, 0), (1, systems)) - lead, 0.0))  # u_i / u_m <= 1; rows beyond meet sums of 0
        with_spin = ratio * shift(sums)
        sums = sums + with_spin
        if noise is None:
            return (sums,)
        keep = ops.slice(noise, (i, 0), (1, systems)) * sums < with_spin
        bit = ops.left_shift(_int(1), ops.cast(i % _WORD, "int32"))
        for word, fate in enumerate(fates):
            fates[word] = ops.where(keep, shift(fate) + ops.where(i // _WORD == word, bit, 0), fate)
        return (sums, *fates)

    nothing = ops.zeros((spins + 1, systems), dtype="int32")
    start = ops.cast(nothing + (count == 0), "float32")
    words = 0 if noise is None else -(-spins // _WORD)
    sums, *fates = ops.fori_loop(0, spins, add_spin, (start, *[nothing] * words))
    return sums, fates


def _log_weights(log_odds, sums, beta, coupling):
    spins = log_odds.shape[0]
    count = _counts(spins)
    largest = ops.cumsum(ops.concatenate([ops.zeros_like(log_odds[:1]), log_odds], axis=0), axis=0)  # log u_1...u_m
    # ((2m - N)^2 - N^2) / 2 = -2 m (N - m): exactly 0 for both all-equal states, whose odds thus keep their digits at any coupling.
    pairs = (-2.0 * coupling * count * (spins - count)).astype("float32")
    return largest + ops.log(sums) + _cold(beta) * pairs


def _draw(log_weights, noise):
    """An index (1, G) of axis 0 from unnormalised log probabilities (K, G), by inverting their distribution function."""
    weights = ops.exp(log_weights - ops.max(log_weights, axis=0, keepdims=True))
    cumulative = [weights[:1]]
    for k in range(1, weights.shape[0]):
        cumulative.append(cumulative[-1] + weights[k : k + 1])
    level = noise * (cumulative[-1] * np.float32(1 - 2**-23))  # below the total even after rounding, so the last index needs its weight
    return sum(ops.cast(below <= level, "int32") for below in cumulative[:-1])


def chromatic_spins(field: Tensor, beta: Tensor, coupling: float, uniform: Callable, sweeps: int = 50) -> Tensor:
    """Two-colour Gibbs sampling of filters whose input channels are coupled across two halves.

    Colour A is the first C // 2 input channels, colour B the rest; every spin of A is coupled to every spin of B of the same filter, by
    H = (b . x - c sum_{i in A, j in B} x_i x_j) / 2. A sweep redraws A given B, P(x_i = +1) = sigmoid(-beta (b_i - c sum_B x)), then B given A.

    Every call starts anew, as the authors' code does: for the first update of A, B counts as C // 2 * P spins of one sign, +1 where the mean field of
    the filter is negative (mean w^2 above the threshold), else -1. Above the ordering transition, beta of about 4 / (c P C), the chain does not
    leave that sign in any realistic number of sweeps: the mask is the magnitude decision of the filter plus noise, not an equilibrium draw.

    Args:
        field: Float tensor (C, P, G): the field b of C input channels and P positions of G filters.
        beta: Scalar >= 0, the inverse temperature.
        coupling: Python float c.
        uniform: The source of noise; sweep t takes the streams 2t for A and 2t + 1 for B.
        sweeps: Python int >= 1, sweeps over both colours.

    Returns:
        float32 mask (C, P, G) of 0 and 1. With C = 1 colour A is empty, and the bits are independent with probability sigmoid(-beta b).

    Reference: gibbs_pruning.py:139-167 of the authors' code, j201/gibbs-pruning.
    """
    channels, positions, filters = field.shape
    spins, first = channels * positions, channels // 2 * positions
    beta = _cold(beta)
    field = ops.reshape(field, (spins, filters))
    start = ops.where(ops.mean(field, axis=0, keepdims=True) < 0, float(first), -float(first))  # (1, G)
    field_a, field_b = field[:first], field[first:]

    def update(own_field, other_sum, stream):
        return _kept(-beta * (own_field - coupling * other_sum), uniform(own_field.shape, stream=stream))

    def update_a(sum_b, sweep):
        return update(field_a, sum_b, 2 * sweep)

    def update_b(sum_a, sweep):
        return update(field_b, sum_a, 2 * sweep + 1)

    def spin_sum(keep):  # counted in integers, which a compiler may add in any order
        return ops.cast(2 * ops.sum(ops.cast(keep, "int32"), axis=0, keepdims=True) - keep.shape[0], "float32")

    last = sweeps - 1
    if first == 0:
        keep = update_b(0.0, last)
    else:
        # Only the sum of B passes from one sweep to the next; the spins themselves are made once, in the last.
        sum_b = ops.fori_loop(0, last, lambda sweep, sum_b: spin_sum(update_b(spin_sum(update_a(sum_b, sweep)), sweep)), start)
        keep_a = update_a(sum_b, last)
        keep = ops.concatenate([keep_a, update_b(spin_sum(keep_a), last)], axis=0)
    return ops.reshape(ops.cast(keep, "float32"), (channels, positions, filters))
