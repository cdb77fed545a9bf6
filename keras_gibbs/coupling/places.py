"""Channels along one axis of a variable: take them out, and put them back."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from keras import ops

from keras_gibbs.typing import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Where channels stand along one axis of a variable.

    Attributes:
        shape: Shape of the variable.
        axis: The axis, from 0.
        indices: int array `(channels, repeats)`: the places of every channel, as many of each.
    """

    shape: tuple[int, ...]
    axis: int
    indices: np.ndarray

    @property
    def rows(self) -> int:
        """How many entries of the variable a channel has."""
        return math.prod(self.shape) // self.shape[self.axis] * self.indices.shape[1]

    @property
    def _length(self):
        return self.shape[self.axis]

    @property
    def _is_whole(self):
        return self.indices.shape == (self._length, 1) and (self.indices[:, 0] == np.arange(self._length)).all()

    def take(self, value: Tensor) -> Tensor:
        """The channels of a variable as the columns of a matrix `(rows, channels)`."""
        columns = ops.reshape(ops.moveaxis(value, self.axis, -1), (-1, self._length))
        if self._is_whole:
            return columns
        channels, repeats = self.indices.shape
        taken = ops.reshape(ops.take(columns, self.indices.reshape(-1).astype("int32"), axis=1), (-1, channels, repeats))
        return ops.reshape(ops.transpose(taken, (0, 2, 1)), (-1, channels))

    def put(self, value: Tensor, columns: Tensor) -> Tensor:
        """`value` of the variable with `columns`, as `take` gives them, in the places of the channels."""
        columns = ops.cast(columns, value.dtype)
        if not self._is_whole:
            channels, repeats = self.indices.shape
            columns = ops.reshape(ops.transpose(ops.reshape(columns, (-1, repeats, channels)), (0, 2, 1)), (-1, channels * repeats))
            others = ops.reshape(ops.moveaxis(value, self.axis, -1), (-1, self._length))
            order = np.arange(self._length, dtype="int32")
            order[self.indices.reshape(-1)] = self._length + np.arange(self.indices.size)
            columns = ops.take(ops.concatenate([others, columns], axis=1), order, axis=1)
        rest = tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)
        return ops.moveaxis(ops.reshape(columns, (*rest, self._length)), -1, self.axis)


def stacked(makers: Iterable[tuple[Any, Places]]) -> Tensor:
    """The channels of several variables, each given with their places, one below the other: `(rows, channels)`."""
    parts = [places.take(ops.convert_to_tensor(variable)) for variable, places in makers]
    return parts[0] if len(parts) == 1 else ops.concatenate([ops.cast(part, parts[0].dtype) for part in parts], axis=0)


def spread(places: list[Places], masks: list[Tensor]) -> Tensor:
    """The masks of several sets of channels, each `(channels,)`, over the axis that they share; 1 where no channel is. It broadcasts to the variable."""
    first = places[0]
    if len(places) == 1 and first._is_whole:
        along = masks[0]
    else:
        order, start = np.full(first._length, sum(len(each.indices) for each in places), "int32"), 0
        for each in places:
            order[each.indices] = start + np.arange(len(each.indices))[:, None]
            start += len(each.indices)
        along = ops.take(ops.concatenate([*masks, ops.ones((1,), masks[0].dtype)]), order)
    return ops.reshape(along, [size if axis == first.axis else 1 for axis, size in enumerate(first.shape)])


def packed(indices: np.ndarray) -> list:
    """Indices as JSON: `[start, stop]` where channels follow one another."""
    start = int(indices[0, 0])
    if indices.shape[1] == 1 and (indices[:, 0] == start + np.arange(len(indices))).all():
        return [start, start + len(indices)]
    return indices.tolist()


def unpacked(packed: list) -> np.ndarray:
    """What `packed` was given."""
    return np.array(packed) if isinstance(packed[0], list) else np.arange(*packed)[:, None]
