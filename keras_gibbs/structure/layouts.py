"""Which axes of a weight are its positions, inputs and outputs."""

import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axes of a kernel are which.

    Attributes:
        positions: Spatial axes.
        inputs: Axes of the input channels that one output reads; empty in a depthwise kernel.
        outputs: Axes of the output channels.
    """

    positions: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def standard_layout(ndim: int) -> Layout:
    """The layout `(*positions, in, out)` of Keras's Dense and convolution kernels of `ndim` axes."""
    return Layout(tuple(range(ndim - 2)), tuple(range(max(ndim - 2, 0), ndim - 1)), (ndim - 1,))


DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


def is_a(layer, *classes: type) -> bool:
    """Whether `layer` is one of the Keras `classes`, or the layer of that name in Keras 2, which lays its kernels out alike."""
    return not {base.__name__ for base in type(layer).__mro__}.isdisjoint(cls.__name__ for cls in classes)


def layout_of(layer: keras.layers.Layer, ndim: int) -> Layout:
    """The layout of `layer.kernel`, a kernel of `ndim` axes."""
    spatial = tuple(range(ndim - 2))
    if is_a(layer, *DEPTHWISE):
        return Layout(spatial, (), (ndim - 2, ndim - 1))
    if is_a(layer, *TRANSPOSED):
        return Layout(spatial, (ndim - 1,), (ndim - 2,))
    if is_a(layer, keras.layers.EinsumDense):
        kernel, output = layer.equation.replace(" ", "").replace("...", "").split(",")[1].split("->")
        outputs = tuple(axis for axis, letter in enumerate(kernel) if letter in output)
        return Layout((), tuple(axis for axis in range(ndim) if axis not in outputs), outputs)
    return standard_layout(ndim)
