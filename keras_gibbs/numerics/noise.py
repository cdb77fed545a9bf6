"""Counter-based uniform noise: the same bits on every backend, saved as one integer.

A uniform number is a hash of (key, counter, stream, position). Nothing is drawn from a generator whose state Keras does not save, so a
checkpoint that holds the counter resumes the noise exactly; and the hash is a handful of integer operations that a compiler fuses with
the comparison that consumes it.
"""

import math

import numpy as np
from keras import ops

from keras_gibbs.numerics.compilation import is_known
from keras_gibbs.typing import Tensor

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: neighbouring positions land far apart
_MIX = ((16, 0x7FEB352D), (15, 0x846CA68B))  # shifts and multipliers of the "lowbias32" finaliser (C. Wellons, hash prospector, 2018)


class _Tensors:
    """The operations of the hash on uint32 tensors."""

    bitwise_xor, right_shift = staticmethod(ops.bitwise_xor), staticmethod(ops.right_shift)

    @staticmethod
    def word(value):
        return ops.convert_to_tensor(np.uint32(value & 0xFFFFFFFF)) if isinstance(value, int) else ops.cast(value, "uint32")

    @staticmethod
    def positions(count):
        return ops.cast(ops.arange(count, dtype="int32"), "uint32")  # TensorFlow has no uint32 range


class _Arrays:
    """The same on the host, at once: arrays of one entry, which overflow as tensors do."""

    bitwise_xor, right_shift = staticmethod(np.bitwise_xor), staticmethod(np.right_shift)

    @staticmethod
    def word(value):
        return np.array([int(ops.convert_to_numpy(value)) & 0xFFFFFFFF], "uint32")

    @staticmethod
    def positions(count):
        return np.arange(count, dtype="uint32")


def _mix(of, x, inject=None):
    """Scramble uint32 words one to one; `inject` is xor-ed in half way, so two keys never give the same sequence in another order."""
    (first, multiplier), (second, last_multiplier) = _MIX
    x = of.bitwise_xor(x, of.right_shift(x, of.word(first))) * of.word(multiplier)
    if inject is not None:
        x = of.bitwise_xor(x, inject)
    x = of.bitwise_xor(x, of.right_shift(x, of.word(second))) * of.word(last_multiplier)
    return of.bitwise_xor(x, of.right_shift(x, of.word(16)))


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
        self._of = of = _Arrays if is_known(key) and is_known(counter) else _Tensors
        if isinstance(key, int):
            low, high = key & 0xFFFFFFFF, key >> 32
        else:
            low, high = ops.convert_to_numpy(key) if of is _Arrays else ops.unstack(ops.cast(key, "uint32"), 2)
        self._first = _mix(of, of.word(counter) * of.word(_GOLDEN) + of.word(low))
        self._second = _mix(of, self._first + of.word(high) + of.word(_GOLDEN))

    def __call__(self, shape: tuple[int, ...], stream: Tensor | int = 0) -> Tensor:
        of = self._of if is_known(stream) else _Tensors
        stream = of.word(stream) * of.word(_GOLDEN)
        first = _mix(of, self._first + stream)
        second = _mix(of, of.bitwise_xor(self._second, stream) + first)
        positions = of.positions(math.prod(shape))
        positions = positions if self._start is None else positions + of.word(self._start)
        bits = _mix(of, positions * of.word(_GOLDEN) + first, inject=second)
        uniform = ops.cast(of.right_shift(bits, of.word(8)), "float32") * np.float32(2.0**-24)
        return ops.reshape(uniform, shape)


def halves(seed: int) -> np.ndarray:
    """The two halves of a 64-bit seed, low first, as the bits of int32 `(2,)`: a dtype that every strategy can hand round."""
    return np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], "uint32").view("int32")


def split(seed: int, index: int) -> int:
    """The 64-bit key of layer number `index` under `seed`: layers of one shape never share noise."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
