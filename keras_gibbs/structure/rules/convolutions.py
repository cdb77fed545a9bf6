"""Convolutions: grouped, transposed, separable and depthwise too."""

import numpy as np
from keras import layers

from keras_gibbs.structure.constants import array_of
from keras_gibbs.structure.mixing import mixing_of
from keras_gibbs.structure.rules.dense import give, read


def channel_axis(layer, rank: int) -> int:
    """The axis of the channels of an image-like tensor, counted from the last."""
    return -1 if getattr(layer, "data_format", "channels_last") != "channels_first" else 1 - rank


def unpadded(layer) -> bool:
    """Whether a convolution reads nothing beyond the border of its input."""
    return layer.padding == "valid" or (layer.padding == "same" and all(size == 1 for size in layer.kernel_size))


def convolution(flow, site):
    layer, kernel = site.layer, site.layer.kernel
    groups, inputs = layer.groups, kernel.shape[-2]
    axis = channel_axis(layer, len(site.shapes[0]))
    source = read(flow, site, axis, inputs * groups)
    if groups > 1 and inputs == 1:
        flow.resize(layer, ("groups",), source.ids)
        flow.resize(layer, ("filters",), np.repeat(source.ids, layer.filters // groups))
        return _apart(flow, site, axis, source, layer.filters // groups, kernel_axis=-1)
    outputs = flow.made_by(layer, layer.filters)
    for ids in (source.ids, outputs):  # every group loses the same of its channels
        for group in ids.reshape(groups, -1)[1:]:
            flow.tie(ids.reshape(groups, -1)[0], group)
    flow.bind(site, kernel, -2, source.ids[:inputs], "consumes")
    flow.bind(site, kernel, -1, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    flow.resize(layer, ("filters",), outputs)
    values = flow.use(site, lambda: mixing_of(layer, _ungrouped(array_of(kernel), groups), unpadded(layer)), source, outputs)
    return give(flow, site, axis, outputs, values)


def _ungrouped(kernel, groups):
    """A convolution kernel as `(positions, inputs, outputs)`, zero between groups."""
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    if groups == 1:
        return kernel
    positions, inputs, outputs = kernel.shape
    whole = np.zeros((positions, groups, inputs, groups, outputs // groups), kernel.dtype)
    each = np.arange(groups)
    whole[:, each, :, each] = kernel.reshape(positions, inputs, groups, -1).transpose(2, 0, 1, 3)
    return whole.reshape(positions, groups * inputs, outputs)


def transposed(flow, site):
    layer, kernel = site.layer, site.layer.kernel
    axis = channel_axis(layer, len(site.shapes[0]))
    source = read(flow, site, axis, kernel.shape[-1])
    outputs = flow.made_by(layer, layer.filters)
    flow.bind(site, kernel, -1, source.ids, "consumes")
    flow.bind(site, kernel, -2, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    flow.resize(layer, ("filters",), outputs)
    values = flow.use(site, lambda: mixing_of(layer, array_of(kernel).reshape(-1, *kernel.shape[-2:]).swapaxes(1, 2), False), source, outputs)
    return give(flow, site, axis, outputs, values)


def separable(flow, site):
    layer, depthwise, pointwise = site.layer, site.layer.depthwise_kernel, site.layer.pointwise_kernel
    axis, multiplier = channel_axis(layer, len(site.shapes[0])), layer.depth_multiplier
    source = read(flow, site, axis, depthwise.shape[-2])
    outputs = flow.made_by(layer, layer.filters)
    flow.bind(site, depthwise, -2, source.ids, "consumes")
    flow.bind(site, pointwise, -2, np.repeat(source.ids, multiplier), "consumes")
    flow.bind(site, pointwise, -1, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    flow.resize(layer, ("filters",), outputs)

    def mixing():
        taps = array_of(depthwise).reshape(-1, *depthwise.shape[-2:])
        return mixing_of(layer, np.einsum("pim,imo->pio", taps, array_of(pointwise).reshape(*depthwise.shape[-2:], -1)), unpadded(layer))

    return give(flow, site, axis, outputs, flow.use(site, mixing, source, outputs))


def depthwise(flow, site):
    layer = site.layer
    axis = channel_axis(layer, len(site.shapes[0]))
    source = read(flow, site, axis, layer.kernel.shape[-2])
    return _apart(flow, site, axis, source, layer.depth_multiplier, kernel_axis=-2)


def _apart(flow, site, axis, source, multiplier, kernel_axis):
    """A convolution that makes `multiplier` channels of each channel, and adds up none."""
    layer, kernel = site.layer, site.layer.kernel
    outputs = np.repeat(source.ids, multiplier)
    flow.bind(site, kernel, kernel_axis, source.ids if kernel_axis == -2 else outputs, "carries")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    if flow.imagined:
        return give(flow, site, axis, outputs, flow.emptied(outputs))
    taps = array_of(kernel).reshape(-1, len(outputs))
    values = np.repeat(source.values if unpadded(layer) else np.where(source.values == 0, 0.0, np.nan), multiplier)
    added = np.where((taps == 0).all(0), 0.0, values * taps.sum(0, dtype="float64"))
    return give(flow, site, axis, outputs, added + (0.0 if layer.bias is None else array_of(layer.bias)))


RULES = {
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), convolution),
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), transposed),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), separable),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), depthwise),
}
