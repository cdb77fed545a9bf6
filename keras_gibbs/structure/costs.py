"""Multiply-adds of the layers of a model."""

import math
from collections.abc import Callable, Iterable

import keras
from keras import layers

from keras_gibbs.structure.graph import has_graph
from keras_gibbs.structure.trace import Call

TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.SeparableConv1D, layers.SeparableConv2D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def applications(calls: Iterable[Call]) -> dict[int, int]:
    """How many times each weight of a kernel is applied to one sample, by the id of the variable; all calls together."""
    times = {}
    for call in calls:
        layer = call.operation
        if isinstance(layer, keras.layers.Layer) and call.inputs and not has_graph(layer):
            count = _positions(layer, call.inputs[0].shape, keras.tree.flatten(call.outputs)[0].shape)
            for variable in _kernels(layer):
                times[id(variable)] = times.get(id(variable), 0) + count
    return times


def multiply_adds(calls: Iterable[Call], size: Callable = lambda variable: math.prod(variable.shape)) -> dict[int, int]:
    """Multiply-adds for one sample, by the id of the layer; all its calls together.

    Every kernel counts once for each position that it is applied to. What layers compute without kernels (attention scores, normalization, activations) does
    not count, and a dimension left open counts as 1.

    Args:
        calls: The calls of a model.
        size: Gives the number of weights of a kernel.
    """
    total = {}
    for call in calls:
        layer = call.operation
        if isinstance(layer, keras.layers.Layer) and call.inputs and not has_graph(layer):
            kernels = sum(map(size, _kernels(layer)))
            total[id(layer)] = total.get(id(layer), 0) + kernels * _positions(layer, call.inputs[0].shape, keras.tree.flatten(call.outputs)[0].shape)
    return total


def _kernels(layer):
    return [variable for variable in layer.weights if "kernel" in variable.name]


def _positions(layer, before, after):
    """How many times the kernels of a layer are applied to one sample."""
    if isinstance(layer, layers.TimeDistributed):
        return (before[1] or 1) * _positions(layer.layer, before[:1] + before[2:], after[:1] + after[2:])
    if isinstance(layer, layers.EinsumDense):
        kernel, output = layer.equation.replace(" ", "").split(",")[1].split("->")
        made = math.prod(size for letter, size in zip(kernel, layer.kernel.shape) if letter in output)
        return _product(after[1:]) // made
    if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        shape = before if isinstance(layer, TRANSPOSED) else after
        return _product(shape[2:] if layer.data_format == "channels_first" else shape[1:-1])
    return _product(before[1:-1])


def _product(shape):
    return math.prod(size or 1 for size in shape)
