"""How a weight falls into groups that live or die together, and which groups compete.

Every structure arranges a weight as four axes, `(channels, positions, groups, contests)`: a column is a group, spread over the input channels it reads
and its spatial positions; a contest is a set of groups of which a fixed number is kept. Scores, masks and samplers work on this arrangement and know no
Keras layout. A structure with one contest says which axes of a weight a group spans; one that cuts axes into pieces overrides `arrange` and `restore`.
"""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_gibbs.arguments import require_flag
from keras_gibbs.configuration import Configuration, register
from keras_gibbs.structure.layouts import Layout
from keras_gibbs.typing import Tensor


class Structure(Configuration):
    """Base of the structures.

    Attributes:
        removes_outputs: True where removing a group removes an output channel of the layer.
        one_contest: False where the groups of a weight fall into several contests.
        coupled: True where one decision is taken for all weights of a model that make a channel, and for what follows them.
        of_heads: True where these channels are the heads of attention.
    """

    removes_outputs = False
    one_contest = True
    coupled = False
    of_heads = False

    def axes(self, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The axes of the weight that become (channels, positions, groups)."""
        raise NotImplementedError

    def check(self, weight) -> None:
        """Raise `ValueError` where the structure makes no sense for `weight`, a `Prunable`."""

    def check_sparsity(self, sparsity) -> None:
        """Raise `ValueError` where the structure cannot have this final `sparsity`, a schedule."""

    def arrange(self, x: Tensor, layout: Layout) -> Tensor:
        """Bring `x`, shaped like the weight, into the form `(channels, positions, groups, contests)`; what is filled in is 0."""
        parts = self.axes(layout)
        order = sum(parts, ())
        sizes = [math.prod(x.shape[axis] for axis in part) for part in parts]
        if order != tuple(range(len(order))):
            x = ops.transpose(x, order)
        return ops.reshape(x, (*sizes, 1))

    def restore(self, x: Tensor, shape: tuple[int, ...], layout: Layout) -> Tensor:
        """Undo `arrange`: `x` broadcasts to `(channels, positions, groups, contests)`; the result has the weight's `shape`."""
        parts = self.axes(layout)
        order = sum(parts, ())
        x = ops.broadcast_to(x, [*(math.prod(shape[axis] for axis in part) for part in parts), 1])
        x = ops.reshape(x, [shape[axis] for axis in order])
        if order != tuple(range(len(order))):
            x = ops.transpose(x, [order.index(axis) for axis in range(len(order))])
        return x

    def shape(self, shape: tuple[int, ...], layout: Layout) -> tuple[int, int, int, int]:
        """The arranged shape of a weight of `shape`: (channels, positions, groups, contests)."""
        return (*(math.prod(shape[axis] for axis in part) for part in self.axes(layout)), 1)

    def filled(self, shape: tuple[int, ...], layout: Layout) -> np.ndarray | None:
        """Where the arranged form holds entries of the weight, `(channels, positions, groups, contests)` or what broadcasts to it: bool, or how much each
        counts in a mean over its group. None where it holds nothing else, and all count alike."""
        return None


@register
@dataclasses.dataclass(frozen=True)
class Unstructured(Structure):
    """Every weight is a group of its own.

    Example:

    >>> kg.Gibbs(sparsity=0.9, structure=kg.Unstructured())
    """

    def axes(self, layout):
        return (), (), tuple(range(layout.ndim))


@register
@dataclasses.dataclass(frozen=True)
class Kernel(Structure):
    """The spatial kernel between one input and one output channel is a group: k x k weights of a convolution, one weight of a Dense layer.

    Example:

    >>> kg.Gibbs(sparsity=0.9, structure=kg.Kernel())
    """

    def axes(self, layout):
        return (), layout.positions, tuple(sorted(layout.inputs + layout.outputs))


@register
@dataclasses.dataclass(frozen=True)
class Filter(Structure):
    """All weights of one output channel (of one unit of a Dense layer) are a group.

    A layer whose outputs reach the model's output without passing through another kernel is never pruned by filters: it would lose a class. Recurrent,
    depthwise and embedding weights and the projections of attention have no filters that could go alone: `prune` leaves them out and names them.

    With `coupled=True` channels are removed from the whole network: the filters that an addition, say, makes one channel of live or die together, and with
    them go their biases and the scales and offsets of the BatchNormalization behind. A removed channel is exactly zero wherever it is read, in training as
    at inference, so that `shrink` takes it out. A group is worth the mean of its filters, each counted by its mean; sparsity counts channels. Every group
    keeps a channel. What cannot be removed, `prune` and `summary` name with the reason. Only `prune` couples, on Sequential and Functional models.

    Args:
        coupled: Whether filters that make one channel are removed together.

    Example:

    >>> kg.Gibbs(sparsity=0.5, structure=kg.Filter())
    >>> kg.Magnitude(sparsity=0.5, structure=kg.Filter(coupled=True))
    """

    coupled: bool = False

    removes_outputs = True

    def __post_init__(self):
        require_flag(coupled=self.coupled)

    def axes(self, layout):
        return layout.inputs, layout.positions, layout.outputs

    def check(self, weight):
        if self.coupled:
            _check_rows(self, weight)
        elif not weight.layout.filters:
            raise ValueError(
                f"`Filter()` cannot prune {weight.path!r}: its outputs are tied to those of other weights, or each reads one channel. Use `Kernel()` for it, "
                f"or leave it out with `where=`. Received: the {weight.name} of a {type(weight.owner).__name__}."
            )

    def filled(self, shape, layout):
        return _counting_alike(layout.rows)


@register
@dataclasses.dataclass(frozen=True)
class Head(Structure):
    """A head of attention is a group: its queries, keys and values with their biases, of which one decision is taken.

    For MultiHeadAttention and GroupQueryAttention, where the heads that share keys and values are one group. A removed head gives exactly zero, in training as
    at inference, and `shrink` takes it out of the layer; one head stays. Everything else is left as it is. As `Filter(coupled=True)`, for whole Sequential and
    Functional models; an attention whose scores are outputs, or whose mask has an entry for each head, keeps its heads.

    Example:

    >>> kg.Magnitude(sparsity=0.5, structure=kg.Head())
    """

    coupled = True
    of_heads = True

    def axes(self, layout):
        return layout.inputs, layout.positions, layout.outputs

    def check(self, weight):
        _check_rows(self, weight)

    def filled(self, shape, layout):
        return _counting_alike(layout.rows)


def _check_rows(structure, weight):
    if not weight.layout.rows:
        raise ValueError(
            f"`{structure.brief()}` needs to know what reads the channels of {weight.path!r}. Prune a whole Sequential or Functional model of Keras 3 by "
            f"`keras_gibbs.prune`, or use another structure. Received: the {weight.name} of a {type(weight.owner).__name__}."
        )


def _counting_alike(rows):
    """How much each weight counts, so that the mean of their worth is the mean over the variables of their means; None for a single variable."""
    if len(rows) < 2:
        return None
    return np.concatenate([np.full(count, 1.0 / count, "float32") for count in rows]).reshape(-1, 1, 1, 1)
