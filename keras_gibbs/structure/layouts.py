"""Which axes of a weight are its positions, inputs and outputs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of a weight read.

    Attributes:
        positions: Spatial axes.
        inputs: Axes of the input channels that one output reads; empty in a depthwise kernel.
        outputs: Axes of the output channels.
        filters: Whether all weights of one output channel can be removed together. False for depthwise, recurrent and embedding weights and for the
            projections of attention, whose outputs are tied to those of other weights.
        rows: Of the channels that several weights make together, how many weights each of these has for a channel; `()` for a single variable.
    """

    positions: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    filters: bool = True
    rows: tuple[int, ...] = ()

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.positions) + len(self.inputs) + len(self.outputs)


def standard_layout(ndim: int) -> Layout:
    """The layout `(*positions, in, out)` of Keras's Dense and convolution kernels of `ndim` axes."""
    return Layout(tuple(range(ndim - 2)), tuple(range(max(ndim - 2, 0), ndim - 1)), (ndim - 1,))


def transposed_layout(ndim: int) -> Layout:
    """The layout `(*positions, out, in)` of the kernels of transposed convolutions."""
    return Layout(tuple(range(ndim - 2)), (ndim - 1,), (ndim - 2,))


def coupled_layout(rows: tuple[int, ...]) -> Layout:
    """The layout `(weights, channels)` of channels that several weights make: theirs stand one below the other, `rows` of each."""
    return Layout((), (0,), (1,), rows=rows)


def depthwise_layout(ndim: int) -> Layout:
    """The layout `(*positions, channel, multiplier)` of depthwise kernels: every output reads one channel."""
    return Layout(tuple(range(ndim - 2)), (), (ndim - 2, ndim - 1), filters=False)


def einsum_layout(equation: str, ndim: int) -> Layout:
    """The layout of the kernel of an EinsumDense: its output axes are those that appear in the output of the equation."""
    kernel, output = equation.replace(" ", "").replace("...", "").split(",")[1].split("->")
    outputs = tuple(axis for axis, letter in enumerate(kernel) if letter in output)
    return Layout((), tuple(axis for axis in range(ndim) if axis not in outputs), outputs)
