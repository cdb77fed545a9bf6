"""Functions of channels that are constant."""

from collections.abc import Callable

import keras
import numpy as np


def array_of(variable) -> np.ndarray:
    """The value of a variable or tensor as float32."""
    return np.asarray(keras.ops.convert_to_numpy(variable)).astype("float32", copy=False)


def evaluate(function: Callable, *operands: np.ndarray) -> np.ndarray:
    """What `function`, which works on each channel by itself, makes of constant channels.

    Args:
        function: From float32 tensors `(channels,)` to one of this shape.
        *operands: float64 arrays `(channels,)`, NaN where a channel varies.

    Returns:
        float64 array `(channels,)`, NaN where one of the operands varies.
    """
    varies = np.any([np.isnan(operand) for operand in operands], axis=0)
    tensors = [keras.ops.convert_to_tensor(np.nan_to_num(operand).astype("float32")) for operand in operands]
    return np.where(varies, np.nan, array_of(function(*tensors)).astype("float64"))
