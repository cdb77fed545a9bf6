"""Keep exactly the top k of some scores, and find their quantiles, without sorting.

A float is compared through its bit pattern, an integer whose order is the order of the floats: a binary search over the 32 bits counts, at most
32 times, how many scores lie below a candidate. A count is one fused pass over memory (about 1.2 ms for 4 million scores on two cores, where a sort
takes 600 ms), the result is the exact order statistic, and a search that starts from the last step's answer needs one or two counts.

`key` below is always such an ordered int32. Scores have any shape and are ranked over all their entries; only `top` knows contests. Keys whose values are
known, outside of compiled code, are NumPy's to rank.
"""

import math
from collections.abc import Callable

import numpy as np
from keras import ops

from keras_gibbs.numerics.compilation import is_known, on_host, runs_at_once, traced_once
from keras_gibbs.typing import Tensor

LOWEST, HIGHEST = -(2**31), 2**31 - 1
EXACT = 2**24  # so many ones a float32 sum counts exactly, and XLA compiles it in two thirds of the time of an integer one
CHUNK = 2**18  # keys that NumPy looks at together
UNROLLED = 32  # contests of so many groups are ranked without a loop
_FIRST_STEP = 2**17  # 1/64 of an octave: about what a threshold moves between two training steps


def count_kept(groups: int, sparsity: float) -> int:
    """How many of `groups` groups are kept: `max(1, groups - floor(sparsity * groups + 0.5))`, exact and never none."""
    return max(1, groups - count_removed(groups, sparsity))


def count_removed(groups: int, sparsity: float) -> int:
    """How many of `groups` groups a sparsity asks to remove, rounded half up."""
    return math.floor(sparsity * groups + 0.5)


def to_key(scores: Tensor) -> Tensor:
    """Float32 scores as int32 keys of the same order; both zeros are one key."""
    bits = ops.view(ops.cast(scores, "float32"), dtype="int32")  # sign and magnitude
    return ops.where(bits < 0, _int(LOWEST) - bits, bits)


def from_key(key: Tensor) -> Tensor:
    """The float32 score of a key."""
    return ops.view(ops.where(key < 0, _int(LOWEST) - key, key), dtype="float32")


def to_scale(values: Tensor) -> Tensor:
    """`values` divided by a power of two, so that the largest finite one lies in [1, 2); every other bit stays as it is."""
    largest = ops.max(ops.where(ops.isfinite(values), ops.absolute(values), 0.0))
    exponent = ops.bitwise_and(ops.view(largest, dtype="int32"), _int(0xFF << 23))
    inverse = ops.clip(_int(254 << 23) - exponent, 1 << 23, 253 << 23)  # the bits of 2^-e, of a normal number
    return values * ops.view(inverse, dtype="float32")


def _int(value):
    return ops.convert_to_tensor(np.int32(value))


def _size(flat):  # within a function that is traced for any shape a tensor
    return ops.cast(ops.shape(flat)[0], "int32")


def _bit(place):  # bit 31 is LOWEST itself, which added to LOWEST gives 0
    return ops.left_shift(_int(1), ops.cast(place, "int32"))


def _count(condition):
    size = math.prod(length or EXACT + 1 for length in condition.shape)
    return ops.cast(ops.sum(ops.cast(condition, "float32" if size <= EXACT else "int32")), "int32")


def _middle(low, high):  # of two int32, without overflow
    return ops.right_shift(low, _int(1)) + ops.right_shift(high, _int(1)) + ops.bitwise_and(ops.bitwise_and(low, high), _int(1))


def _search(below, low, high):
    """The largest integer x in [low, high) with `not below(x)` at `low` and `below` true from x + 1 on; bisection."""

    def step(low, high):
        middle = _middle(low, high)
        found = below(middle)
        return ops.where(found, low, middle), ops.where(found, middle, high)

    return ops.while_loop(lambda low, high: low < high - 1, step, (low, high))[0]


def order_statistic(keys: Tensor, rank: Tensor | int) -> Tensor:
    """The key with exactly `rank` keys before it in ascending order (0 is the smallest), found bit by bit.

    Args:
        keys: int32 tensor, any shape.
        rank: Scalar int32 in [0, size).

    Returns:
        Scalar int32.
    """

    def add_bit(index, found):
        candidate = found + _bit(31 - index)
        return ops.where(_count(keys < candidate) > rank, found, candidate)

    return ops.fori_loop(0, 32, add_bit, _int(LOWEST))


def cut(keys: Tensor, kept: Tensor | int, guess: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What separates the `kept` largest keys from the rest.

    Args:
        keys: int32 tensor, any shape.
        kept: Scalar int32 in [0, size].
        guess: Scalar int32, a key near the answer, such as the last one: it saves most of the counts.

    Returns:
        `(key, index)`, scalars int32: a group is kept if its key is greater, or equal and its flat index at most `index`. Of equal scores the first
        are kept.
    """
    if is_known(keys) and is_known(kept):
        return _cut_on_host(on_host(keys).reshape(-1), int(ops.convert_to_numpy(kept)))
    keys, kept = ops.reshape(keys, (-1,)), ops.cast(kept, "int32")
    if not runs_at_once():
        return _cut_by_bits(keys, kept)
    return _cut_from_scratch(keys, kept) if guess is None else _cut_from_guess(keys, kept, guess)


@traced_once(1, 0)
def _cut_from_scratch(keys, kept):
    size = _size(keys)
    return _cut_at(order_statistic(keys, ops.clip(size - kept, 0, size - 1)), keys, kept)


@traced_once(1, 0, 0)
def _cut_from_guess(keys, kept, guess):
    size = _size(keys)
    return _cut_at(track(lambda: keys, size - kept, guess, 0), keys, kept)


def cut_again(keys: Tensor, kept: Tensor, key: Tensor, index: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """`cut` where `moved` is not 0, found from the last cut `(key, index)`; else that itself. All scalars int32."""
    keys, kept = ops.reshape(keys, (-1,)), ops.cast(kept, "int32")
    if not runs_at_once():
        return ops.cond(moved > 0, lambda: _cut_by_bits(keys, kept), lambda: (key, index))
    return _cut_again(keys, kept, key, index, moved)


@traced_once(1, 0, 0, 0, 0)
def _cut_again(keys, kept, key, index, moved):
    return ops.cond(moved > 0, lambda: _cut_from_guess(keys, kept, key), lambda: (key, index))


def _cut_by_bits(keys, kept):
    """The cut in one small loop of more counts: for a backend that compiles it anew for every weight, where two loops would take longer to compile than to run.

    Keys, the largest first, and of equal ones their positions, are compared as pairs; the last kept pair is found bit by bit.
    """
    size = keys.shape[0]
    places = max(1, (size - 1).bit_length())
    positions, falling = ops.arange(size, dtype="int32"), ops.bitwise_not(keys)

    def add_bit(step, found):
        of_key = step < 32
        key = ops.where(of_key, found[0] + _bit(31 - step), found[0])
        position = ops.where(of_key, 0, found[1] + _bit(31 + places - step))
        before = ops.logical_or(falling < key, ops.logical_and(ops.equal(falling, key), positions < position))
        accepted = _count(before) < kept
        return ops.where(accepted, key, found[0]), ops.where(accepted, position, found[1])

    key, position = ops.fori_loop(0, 32 + places, add_bit, (_int(LOWEST), _int(0)))
    return ops.bitwise_not(key), ops.where(kept > 0, position, _int(-1))


def _cut_at(key, keys, kept):
    size = _size(keys)
    key = ops.where(ops.equal(kept, 0), _int(HIGHEST), key)
    wanted = kept - _count(keys > key)  # so many of the equal ones
    all_of_them = _count(keys == key) <= wanted
    low = ops.where(all_of_them, size - 2, _int(-1))

    def reaches(middle):  # what a loop takes along it copies: the keys, and no positions
        positions = ops.arange(ops.shape(keys)[0], dtype="int32")
        return _count(ops.logical_and(keys == key, positions <= middle)) >= wanted

    index = _search(reaches, low, size - 1) + 1
    return key, ops.where(wanted > 0, index, _int(-1))


def _cut_on_host(keys, kept):
    if kept == 0:
        return _int(HIGHEST), _int(-1)
    key = _statistic_on_host(keys, keys.size - kept)
    wanted = kept - int(np.count_nonzero(keys > key))
    tied = np.flatnonzero(keys == key)
    return _int(key), _int(keys.size - 1 if wanted == tied.size else tied[wanted - 1])


def _statistic_on_host(keys, rank):
    """The key of ascending `rank`; of many keys by their upper halves first, then by the lower halves of those that share its upper one, without a copy."""
    if keys.size <= CHUNK:
        return np.partition(keys, rank)[rank]
    chunks = [keys[start : start + CHUNK] for start in range(0, keys.size, CHUNK)]
    upper, rank = _bin_of(sum(np.bincount((chunk >> 16) + 2**15, minlength=2**16) for chunk in chunks), rank)
    lower, _ = _bin_of(sum(np.bincount(chunk[chunk >> 16 == upper - 2**15] & 0xFFFF, minlength=2**16) for chunk in chunks), rank)
    return ((upper - 2**15) << 16) + lower


def _bin_of(counts, rank):
    """The bin that holds what is number `rank` of all, and its number within that."""
    below = np.cumsum(counts)
    found = int(np.searchsorted(below, rank, side="right"))
    return found, rank - int(below[found] - counts[found])


def keep(keys: Tensor, key: Tensor, index: Tensor) -> Tensor:
    """The mask that a `cut` stands for: float32 in the shape of `keys`, 1 where it keeps."""
    if all(map(is_known, (keys, key, index))):
        return _keep_on_host(on_host(keys), int(on_host(key)), int(on_host(index)))
    positions = ops.reshape(ops.arange(ops.size(keys), dtype="int32"), ops.shape(keys))
    tied_and_first = ops.logical_and(keys == key, positions <= index)
    return ops.cast(ops.logical_or(keys > key, tied_and_first), "float32")


def _keep_on_host(keys, key, index):
    kept = keys.reshape(-1) > key
    tied = np.flatnonzero(keys == key)
    kept[tied[tied <= index]] = True
    return ops.cast(ops.convert_to_tensor(kept.reshape(keys.shape)), "float32")


def top(keys: Tensor, kept: Tensor | int) -> Tensor:
    """The mask of the `kept` largest keys of every contest: float32 in the shape of `keys`, `(1, 1, groups, contests)`. Of equal scores the first are kept."""
    if keys.shape[-1] == 1:
        return keep(keys, *cut(keys, kept))
    return ops.cast(places(keys) < ops.cast(kept, "int32"), "float32")


def places(keys: Tensor) -> Tensor:
    """The place of every key in its contest, 0 for the largest; of equal ones the first comes first. int32 `(1, 1, groups, contests)`."""
    groups = keys.shape[2]
    index = np.arange(groups, dtype="int32")[:, None]

    def add_rival(other, place):
        rival = ops.slice(keys, (0, 0, other, 0), (*keys.shape[:2], 1, keys.shape[3]))
        return place + ops.cast(ops.where(index > other, rival >= keys, rival > keys), "int32")

    place = ops.zeros_like(keys)
    if groups > UNROLLED:
        return ops.fori_loop(0, groups, add_rival, place)
    for other in range(groups):
        place = add_rival(other, place)
    return place


def quantile_in_contests(scores: Tensor, rank: Tensor | int, offset: Tensor | float) -> Tensor:
    """`quantile` of every contest: from scores `(1, 1, groups, contests)` to float32 `(1, 1, 1, contests)`."""
    place = places(to_key(scores))
    last = scores.shape[2] - 1
    rank = ops.cast(rank, "int32")

    def at(rank):
        return ops.sum(ops.where(ops.equal(place, last - rank), scores, 0.0), axis=2, keepdims=True)

    value = at(rank)
    return value + ops.cast(offset, "float32") * (at(ops.minimum(rank + 1, last)) - value)


def quantile_position(size: int, fraction: float) -> tuple[int, float]:
    """Where the `fraction` quantile of `size` values lies: after `rank` values, `offset` of the way to the next.

    Linear interpolation at `fraction * (size - 1)`, as `numpy.quantile` does it; rounded to 1e-9 first, so that 0.9 * 10 is the value number 9 itself.
    """
    position = round(fraction * (size - 1), 9)
    rank = min(int(position), size - 1)
    return rank, position - rank


def quantile(scores: Tensor, rank: Tensor | int, offset: Tensor | float, guess: Tensor | None = None) -> Tensor:
    """The value `offset` of the way from the score of ascending `rank` to the next one; exact.

    Args:
        scores: float32 tensor, any shape.
        rank: Scalar int32 in [0, size).
        offset: Scalar in [0, 1).
        guess: Scalar int32, a key near the answer, such as the last one: it saves most of the counts.

    Returns:
        Scalar float32.
    """
    rank = ops.cast(rank, "int32")
    if is_known(scores) and is_known(rank):
        value, following = _neighbours_on_host(on_host(scores).reshape(-1), int(ops.convert_to_numpy(rank)))
    else:
        value, following = _neighbours(to_key(scores), rank, guess)
    return value + ops.cast(offset, "float32") * (following - value)


def _neighbours(keys, rank, guess):
    if guess is None:
        key = order_statistic(keys, rank)
    else:
        bound = track(lambda: keys, rank, guess, 0)  # so many keys lie under it, but it need not be one
        key = ops.min(ops.where(keys >= bound, keys, _int(HIGHEST)))
    above = ops.where(_count(keys <= key) > rank + 1, key, ops.min(ops.where(keys > key, keys, _int(HIGHEST))))
    return from_key(key), from_key(ops.where(above == HIGHEST, key, above))


def _neighbours_on_host(scores, rank):
    bits = scores.astype("float32", copy=False).view("int32")
    keys = np.where(bits < 0, LOWEST - bits, bits) if np.min(bits) < 0 else bits
    return tuple(from_key(_int(_statistic_on_host(keys, place))) for place in (rank, min(rank + 1, keys.size - 1)))


def track(keys: Callable[[], Tensor], below: Tensor | int, guess: Tensor, tolerance: int) -> Tensor:
    """A key with about `below` keys under it, found from a guess.

    One count confirms a guess that still holds. Otherwise the search steps away from it with doubling steps until it has the answer between two
    counted keys, and interpolates; it ends when a counted key is within `tolerance`, or at the order statistic itself where ties leave no such key.

    Args:
        keys: Function without arguments that gives the int32 keys, called for every count: fused with it, keys are never written to memory.
        below: Scalar int32, how many keys should lie under the result.
        guess: Scalar int32, a key to start from: the last step's result.
        tolerance: How far the count may be from `below`, in keys.

    Returns:
        Scalar int32.
    """

    def row():
        return ops.reshape(keys(), (-1,))

    def row_again():  # JAX takes what does not change out of the loop; of one axis it needs no copy
        return row() if runs_at_once() else array

    def is_off(count):
        return ops.absolute(count - below) > tolerance

    def unsettled(key, count, low, high, below_low, below_high, step):
        return ops.logical_and(is_off(count), low < high - 1)

    def move(key, count, low, high, below_low, below_high, step):
        too_low = count < below
        low, below_low = ops.where(too_low, key, low), ops.where(too_low, count, below_low)
        high, below_high = ops.where(too_low, high, key), ops.where(too_low, below_high, count)
        upward = ops.where(key > HIGHEST - step, _int(HIGHEST - 1), key + step)
        downward = ops.where(key < LOWEST + step, _int(LOWEST + 1), key - step)
        outward = ops.where(too_low, ops.minimum(upward, high - 1), ops.maximum(downward, low + 1))
        bracketed = ops.logical_and(low != LOWEST, high != HIGHEST)
        # Between two counted keys, where the count should be if keys were evenly spread; every third step halves, in case they are not.
        width = high - low  # may overflow, to a negative number
        share = ops.cast(below - below_low, "float32") / ops.maximum(ops.cast(below_high - below_low, "float32"), 1.0)
        across = ops.cast(ops.cast(width, "float32") * share, "int32")
        inward = low + ops.clip(across, 1, ops.maximum(width - 1, 1))
        halve = ops.logical_or(width < 2, ops.equal(step % 3, 0))
        inward = ops.where(halve, _middle(low, high), inward)
        key = ops.where(bracketed, inward, outward)
        step = ops.where(bracketed, step + 1, ops.minimum(step * 2, _int(2**29)))
        return key, _count(row_again() < key), low, high, below_low, below_high, step

    array = row()
    start = (guess, _count(array < guess), _int(LOWEST), _int(HIGHEST), _int(0), _size(array), _int(_FIRST_STEP))
    key, count, low, *_ = ops.while_loop(unsettled, move, start)
    return ops.where(is_off(count), low, key)
