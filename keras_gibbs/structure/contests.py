"""Structures that cut the axes of a weight into pieces: n of every m weights, and blocks."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_gibbs.arguments import require_count
from keras_gibbs.budget import budget_of
from keras_gibbs.configuration import register
from keras_gibbs.structure.groups import Structure
from keras_gibbs.structure.layouts import Layout
from keras_gibbs.typing import Tensor

TOLERANCE = 1e-6  # of a sparsity that is a fraction of two small integers


def _flat_axes(layout: Layout):
    return layout.positions, layout.outputs, layout.inputs


def _to_matrix(x, layout):
    """`x` as `(positions, outputs, inputs)`."""
    parts = _flat_axes(layout)
    sizes = [math.prod(x.shape[axis] for axis in part) for part in parts]
    return ops.reshape(ops.transpose(x, sum(parts, ())), sizes)


def _from_matrix(x, shape, layout):
    order = sum(_flat_axes(layout), ())
    x = ops.reshape(x, [shape[axis] for axis in order])
    return ops.transpose(x, [order.index(axis) for axis in range(len(order))])


def _matrix_shape(shape, layout):
    return tuple(math.prod(shape[axis] for axis in part) for part in _flat_axes(layout))


class _Pieces(Structure):
    """A structure whose arrangement is made of padded pieces; a subclass cuts and joins the matrix `(positions, outputs, inputs)`."""

    def _cut(self, matrix: Tensor, library=ops) -> Tensor:
        raise NotImplementedError

    def _join(self, pieces: Tensor, size: tuple[int, int, int]) -> Tensor:
        raise NotImplementedError

    def arrange(self, x, layout):
        return self._cut(_to_matrix(x, layout))

    def restore(self, x, shape, layout):
        x = ops.broadcast_to(x, self.shape(shape, layout))
        return _from_matrix(self._join(x, _matrix_shape(shape, layout)), shape, layout)

    def filled(self, shape, layout):
        positions, outputs, inputs = _matrix_shape(shape, layout)
        if self._fits(outputs, inputs):
            return None
        return self._cut(np.ones((positions, outputs, inputs), bool), np)


@register
@dataclasses.dataclass(frozen=True)
class NofM(_Pieces):
    """Of every m consecutive inputs of an output, n are kept: the pattern that sparse tensor cores run, 2 of 4.

    Runs of m go along the input axis, one run a contest. Where the number of inputs does not divide by m the last run is filled up with zeros, which rank
    last and never take a place of a weight: it keeps n weights, or all where it has fewer.

    The `sparsity` of the method is 1 - n/m, or a schedule that ends there; on the way the number kept of m is rounded in each run.

    Args:
        n: How many of m are kept, an int in [1, m).
        m: The length of a run, an int of at least 2.

    Raises:
        ValueError: For other numbers.

    Example:

    >>> kg.Magnitude(0.5, structure=kg.NofM(2, 4))

    Reference: Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, https://arxiv.org/abs/2104.08378. TF-MOT has it as `sparsity_m_by_n=(2, 4)`,
    without a schedule, and loses it when a model is saved.
    """

    n: int
    m: int

    one_contest = False

    def __post_init__(self):
        require_count(n=self.n, m=self.m)
        if not self.n < self.m:
            raise ValueError(f"`NofM(n, m)` keeps n of every m, and n must be smaller. Received: n={self.n!r}, m={self.m!r}. 2 of 4 is `NofM(2, 4)`.")

    def check(self, weight):
        if not weight.layout.inputs:
            raise ValueError(
                f"`NofM` cannot prune {weight.path!r}: its runs go along the inputs, and each output reads one channel. Leave it out with `where=`. "
                f"Received: the {weight.name} of a {type(weight.owner).__name__}."
            )

    def check_sparsity(self, sparsity):
        if budget_of(sparsity):
            raise ValueError(f"`NofM({self.n}, {self.m})` fixes its sparsity, which leaves a budget nothing to find. Received: {budget_of(sparsity).brief()}.")
        end = 1.0 - self.n / self.m
        if abs(sparsity(1.0) - end) > TOLERANCE:
            raise ValueError(f"With `NofM({self.n}, {self.m})` the sparsity is {end:g}, or a schedule that ends there. Received: {sparsity!r}.")

    def _fits(self, outputs, inputs):
        return inputs % self.m == 0

    def shape(self, shape, layout):
        positions, outputs, inputs = _matrix_shape(shape, layout)
        return 1, 1, self.m, positions * outputs * math.ceil(inputs / self.m)

    def _cut(self, matrix, library=ops):
        positions, outputs, inputs = matrix.shape
        matrix = library.pad(matrix, ((0, 0), (0, 0), (0, -inputs % self.m)))
        return library.transpose(library.reshape(matrix, (-1, self.m)))[None, None]

    def _join(self, pieces, size):
        positions, outputs, inputs = size
        matrix = ops.reshape(ops.transpose(pieces[0, 0]), (positions, outputs, -1))
        return matrix[:, :, :inputs]


@register
@dataclasses.dataclass(frozen=True)
class Block(_Pieces):
    """Blocks of h inputs by w outputs at one spatial position are the groups.

    A block at the edge, where the axes do not divide, is smaller; its worth is the mean over the weights it has.

    Args:
        h: Inputs of a block, a positive int.
        w: Outputs of a block, a positive int.

    Raises:
        ValueError: For other numbers.

    Example:

    >>> kg.Magnitude(0.8, structure=kg.Block(1, 4))

    Reference: Narang, Undersander & Diamos 2017, Block-Sparse Recurrent Neural Networks, https://arxiv.org/abs/1711.02782 (not read); TF-MOT's `block_size`.
    """

    h: int
    w: int

    def __post_init__(self):
        require_count(h=self.h, w=self.w)

    def _fits(self, outputs, inputs):
        return inputs % self.h == 0 and outputs % self.w == 0

    def shape(self, shape, layout):
        positions, outputs, inputs = _matrix_shape(shape, layout)
        return self.h, self.w, positions * math.ceil(outputs / self.w) * math.ceil(inputs / self.h), 1

    def _cut(self, matrix, library=ops):
        positions, outputs, inputs = matrix.shape
        matrix = library.pad(matrix, ((0, 0), (0, -outputs % self.w), (0, -inputs % self.h)))
        pieces = library.reshape(matrix, (positions, math.ceil(outputs / self.w), self.w, math.ceil(inputs / self.h), self.h))
        return library.reshape(library.transpose(pieces, (4, 2, 0, 1, 3)), (self.h, self.w, -1, 1))

    def _join(self, pieces, size):
        positions, outputs, inputs = size
        pieces = ops.reshape(pieces, (self.h, self.w, positions, math.ceil(outputs / self.w), math.ceil(inputs / self.h)))
        matrix = ops.reshape(ops.transpose(pieces, (2, 3, 1, 4, 0)), (positions, math.ceil(outputs / self.w) * self.w, -1))
        return matrix[:, :outputs, :inputs]
