"""How a kernel falls into groups of weights that live or die together.

Every structure sees a kernel as a matrix of three axes, `(channels, positions, groups)`: column `g` holds the weights of group `g`, spread over
the input channels it reads and its spatial positions. Scores, masks and samplers work on this arrangement and know no Keras layout.
"""

import dataclasses
import math

import keras
from keras import ops

from keras_gibbs.configuration import Configuration, register
from keras_gibbs.structure.layouts import DEPTHWISE, Layout, is_a, standard_layout
from keras_gibbs.typing import Tensor


class Structure(Configuration):
    """Base of the structures. A subclass says which axes of a kernel a group spans; everything else follows."""

    removes_outputs = False  # True where removing a group removes an output channel of the layer

    def axes(self, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The kernel axes that become (channels, positions, groups)."""
        raise NotImplementedError

    def check(self, layer: keras.layers.Layer) -> None:
        """Raise `ValueError` where the structure makes no sense for `layer`."""

    def arrange(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        """Bring `x`, shaped like a kernel, into the form `(channels, positions, groups)`."""
        layout = layout or standard_layout(len(x.shape))
        parts = self.axes(layout)
        order = sum(parts, ())
        sizes = [math.prod(x.shape[axis] for axis in part) for part in parts]
        if order != tuple(range(len(order))):
            x = ops.transpose(x, order)
        return ops.reshape(x, sizes)

    def restore(self, x: Tensor, shape: tuple[int, ...], layout: Layout | None = None) -> Tensor:
        """Undo `arrange`: `x` broadcasts to `(channels, positions, groups)`; the result has the kernel's `shape`."""
        layout = layout or standard_layout(len(shape))
        parts = self.axes(layout)
        order = sum(parts, ())
        x = ops.broadcast_to(x, [math.prod(shape[axis] for axis in part) for part in parts])
        x = ops.reshape(x, [shape[axis] for axis in order])
        if order != tuple(range(len(order))):
            x = ops.transpose(x, [order.index(axis) for axis in range(len(order))])
        return x

    def pool(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        """Mean of `x` over each group.

        Args:
            x: Tensor in the kernel's shape.
            layout: Layout of the kernel; the standard `(*positions, in, out)` by default.

        Returns:
            Tensor of shape `(groups,)`.
        """
        return ops.mean(self.arrange(x, layout), axis=(0, 1))

    def expand(self, groups: Tensor, shape: tuple[int, ...], layout: Layout | None = None) -> Tensor:
        """Give every weight the value of its group: `groups` of shape `(groups,)`, the result of kernel shape `shape`."""
        return self.restore(ops.reshape(groups, (1, 1, -1)), shape, layout)


@register
@dataclasses.dataclass(frozen=True)
class Unstructured(Structure):
    """Every weight is a group of its own.

    Example:

    >>> kg.Gibbs(sparsity=0.9, structure=kg.Unstructured())
    """

    def axes(self, layout):
        return (), (), tuple(range(len(layout.positions + layout.inputs + layout.outputs)))


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

    A layer whose outputs reach the model's output without passing through another kernel is never pruned by filters: it would lose a class.

    Example:

    >>> kg.Gibbs(sparsity=0.5, structure=kg.Filter())
    """

    removes_outputs = True

    def axes(self, layout):
        return layout.inputs, layout.positions, layout.outputs

    def check(self, layer):
        if is_a(layer, *DEPTHWISE):
            raise ValueError(
                f"`Filter()` cannot prune {layer.name!r}: each output of a depthwise kernel reads one channel, so it has no filters. Use `Kernel()` for it, or "
                f"leave it out with `where=`. Received: a {type(layer).__name__}."
            )
