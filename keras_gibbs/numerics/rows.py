"""Rows of a few lengths: weights of many sizes, filled up with zeros, share the functions that are compiled for one length."""

import numpy as np
from keras import ops

from keras_gibbs.typing import Tensor

SHORTEST, LONGEST = 2**12, 2**20  # weights beyond the longest row are few in a model, and a copy of one costs time: they keep their own size
REPORTED = (2**14, 2**17, LONGEST)  # of what runs seldom: longer rows take less time than the compilation of more lengths


def row_length(size: int) -> int:
    """The length of the row in which a weight of `size` entries is compiled: 2^12, 2^14, or from there to 2^20 at most a quarter more; `size` beyond it."""
    if size > LONGEST:
        return size
    quarter = max(1, (1 << (size - 1).bit_length()) // 8)  # of the power of two below
    return next(length for length in (SHORTEST, 4 * SHORTEST, -(-size // quarter) * quarter) if length >= size)


def reported_length(size: int) -> int:
    """The length of the row in which a report of a weight of `size` entries, at most `LONGEST`, is compiled."""
    return next(length for length in REPORTED if length >= size)


def lengthened(x: Tensor, length: int, axis: int = 0) -> Tensor:
    """`x` with zeros after its end along `axis`, up to `length`; a NumPy array where it is one."""
    missing = length - x.shape[axis]
    widths = [(0, missing if index == axis else 0) for index in range(len(x.shape))]
    if isinstance(x, np.ndarray):
        return np.pad(x, widths)
    return ops.pad(x, widths) if missing else x


def shortened(x: Tensor, size: int, axis: int = 0) -> Tensor:
    """The first `size` entries of `x` along `axis`."""
    return x if x.shape[axis] == size else ops.slice(x, [0] * len(x.shape), [size if index == axis else length for index, length in enumerate(x.shape)])
