"""Counter-based uniform noise: the same bits on every backend, saved as one integer.

A uniform number is a hash of (key, counter, stream, position). Nothing is drawn from a generator whose state Keras does not save, so a
checkpoint that holds the counter resumes the noise exactly; and the hash is a handful of integer operations that a compiler fuses with
the comparison that consumes it.
"""

import math

import numpy as np
from keras import ops

from keras_gibbs.typing import Tensor

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: neighbouring positions land far apart
_MIX = ((16, 0x7FEB352D), (15, 0x846CA68B))  # shifts and multipliers of the "lowbias32" finaliser (C. Wellons, hash prospector, 2018)


def _word(value):
    return ops.convert_to_tensor(np.uint32(value & 0xFFFFFFFF))


def _mix(x, inject=None):
    """Scramble uint32 words one to one; `inject` is xor-ed in half way, so two keys never give the same sequence in another order."""
    (first, multiplier), (second, last_multiplier) = _MIX
    x = ops.bitwise_xor(x, ops.right_shift(x, _word(first))) * _word(multiplier)
    if inject is not None:
        x = ops.bitwise_xor(x, inject)
    x = ops.bitwise_xor(x, ops.right_shift(x, _word(second))) * _word(last_multiplier)
    return ops.bitwise_xor(x, ops.right_shift(x, _word(16)))


class Uniform:
    """A source of uniform float32 numbers in [0, 1), fixed by a key and a counter.

    Args:
        key: The seed of one weight: a Python int, of which the low 64 bits count, or its two halves, low first, as an int32 or uint32 tensor of shape (2,).
        counter: Scalar int32 or uint32 tensor (or int), the number of the draw: one more for every training step.
        start: Scalar int32 tensor (or int), where the numbers begin: those of a part of an array, the rest of which is drawn elsewhere.

    Call arguments:
        shape: Tuple of ints, the shape of the numbers.
        stream: Int or scalar integer tensor; draws of one step that must be independent take different streams. A loop passes its index.

    Returns:
        float32 tensor of `shape`, multiples of 2^-24 in [0, 1).

    Example:

    >>> uniform = Uniform(key=7, counter=0)
    >>> tuple(uniform((2, 3)).shape)
    (2, 3)
    """

    def __init__(self, key: int | Tensor, counter: Tensor, start: Tensor | int | None = None):
        self._start = start
        low, high = (_word(key), _word(key >> 32)) if isinstance(key, int) else ops.unstack(ops.cast(key, "uint32"), 2)
        counter = ops.cast(counter, "uint32")
        self._first = _mix(counter * _word(_GOLDEN) + low)
        self._second = _mix(self._first + high + _word(_GOLDEN))

    def __call__(self, shape: tuple[int, ...], stream: Tensor | int = 0) -> Tensor:
        stream = ops.cast(stream, "uint32") * _word(_GOLDEN)
        first = _mix(self._first + stream)
        second = _mix(ops.bitwise_xor(self._second, stream) + first)
        position = ops.arange(math.prod(shape), dtype="int32")
        position = ops.cast(position if self._start is None else position + self._start, "uint32")  # TensorFlow has no uint32 range
        bits = _mix(position * _word(_GOLDEN) + first, inject=second)
        uniform = ops.cast(ops.right_shift(bits, _word(8)), "float32") * np.float32(2.0**-24)
        return ops.reshape(uniform, shape)


def halves(seed: int) -> np.ndarray:
    """The two halves of a 64-bit seed, low first, as the bits of int32 `(2,)`: a dtype that every strategy can hand round."""
    return np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], "uint32").view("int32")


def split(seed: int, index: int) -> int:
    """The 64-bit key of layer number `index` under `seed`: layers of one shape never share noise."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
