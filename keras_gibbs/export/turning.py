"""Convolutions turned by 180 degrees.

Keras pads even sizes at stride 2 by one line, below and to the right; XNNPACK's sparse path wants it on every side. A network whose spatial kernels are
flipped along both axes gives the turned result on the turned image, and its padding lies above and to the left: where the stride is 2, a line more on the
other side is never read.
"""

import keras

WINDOWS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
POOLS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
GLOBAL_POOLS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
# Layers that treat every position alike, whatever its neighbours; the axis of the normalizing ones is checked.
POINTWISE = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.Identity,
    keras.layers.Rescaling,
    keras.layers.Normalization,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Add,
    keras.layers.Multiply,
    keras.layers.Subtract,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Minimum,
    keras.layers.Concatenate,
    keras.layers.UpSampling2D,
)
# Operations between layers that do so too; their classes are not public.
OPERATIONS = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Relu", "Relu6", "HardSwish", "HardSigmoid", "Silu", "Sigmoid"}


def is_map(tensor) -> bool:
    """Whether a tensor holds feature maps of more than one position."""
    return len(tensor.shape) == 4 and tuple(tensor.shape[1:3]) != (1, 1)


def is_pointwise(layer) -> bool:
    """Whether a layer or operation treats every position alike."""
    if not isinstance(layer, keras.layers.Layer):
        return type(layer).__name__ in OPERATIONS
    if type(layer) not in POINTWISE:
        return False
    axis = layer.get_config().get("axis", -1)
    return axis in (-1, 3, [-1], [3], (-1,), (3,), None)


def padding_of(layer, sizes: tuple[int, int]) -> tuple | None:
    """What a convolution or pooling layer adds to the sides itself, `((top, bottom), (left, right))`; None if it is not known."""
    if layer.padding == "valid":
        return (0, 0), (0, 0)
    if None in sizes or layer.padding != "same":
        return None
    totals = [max((-(-size // stride) - 1) * stride + window - size, 0) for size, window, stride in zip(sizes, window_of(layer), strides_of(layer))]
    return tuple((total // 2, total - total // 2) for total in totals)


def window_of(layer) -> tuple[int, int]:
    """The sizes of the window, with dilation."""
    if isinstance(layer, POOLS):
        return tuple(layer.pool_size)
    return tuple((size - 1) * rate + 1 for size, rate in zip(layer.kernel_size, layer.dilation_rate))


def strides_of(layer) -> tuple[int, int]:
    """The strides along height and width."""
    return tuple(layer.strides) if isinstance(layer.strides, (tuple, list)) else (layer.strides,) * 2


def turned(pads: tuple, sizes: tuple, layer) -> tuple | None:
    """The padding with which the turned layer gives the turned result; None where it would have to cut lines off."""
    result = []
    for (before, after), size, window, stride in zip(pads, sizes, window_of(layer), strides_of(layer)):
        if size is None and stride > 1:
            return None
        unread = (size + before + after - window) % stride if stride > 1 else 0
        if after < unread:
            return None
        result.append((after - unread, before))
    return tuple(result)


def evened(pads: tuple, sizes: tuple, layer) -> tuple:
    """The padding with as many lines after as before, along the axes where the result stays the same."""

    def along(pair, size, window, stride):
        before, after = pair
        if size is not None and (size + 2 * before - window) // stride == (size + before + after - window) // stride:
            return before, before
        return pair

    return tuple(along(*each) for each in zip(pads, sizes, window_of(layer), strides_of(layer)))
