"""Layers that move, pool or rearrange what lies beside the channels."""

import numpy as np
from keras import layers

from keras_gibbs.structure.rules.convolutions import channel_axis
from keras_gibbs.structure.rules.pointwise import unchanged
from keras_gibbs.structure.states import Channels, Held


def _on_channels(rule):
    """A rule for a layer with a `data_format`, where its channels are those of its input."""

    def checked(flow, site):
        state = site.states[0]
        if isinstance(state, Held):
            return state
        if len(site.states) > 1 or state.axis != channel_axis(site.layer, len(site.shapes[0])):
            return flow.stop(site, f"{site.describe()} works along the axis of its channels")
        return rule(site, state)

    return checked


@_on_channels
def even(site, state):
    """Constant channels stay what they are."""
    return state


@_on_channels
def padded(site, state):
    """Zeros come in from outside."""
    return state.with_values(np.where(state.values == 0, 0.0, np.nan))


@_on_channels
def resized(site, state):
    layer = site.layer
    return state.with_values(np.where(state.values == layer.fill_value, state.values, np.nan)) if layer.pad_to_aspect_ratio else state


@_on_channels
def pooled(site, state):
    """Global pooling: the channels become the last axis, unless the others are kept."""
    return state if site.layer.keepdims else Channels(-1, state.ids, state.values)


def flatten(flow, site):
    (state,), shape = site.states, site.shapes[0]
    if isinstance(state, Held):
        return state
    order = [0, *range(2, len(shape)), 1] if site.layer.data_format == "channels_first" and len(shape) > 2 else list(range(len(shape)))
    return _reshaped(flow, site, moved(state, order, len(shape)), tuple(shape[place] for place in order), site.output_shape)


def reshape(flow, site):
    (state,) = site.states
    if isinstance(state, Held):
        return state
    result = _reshaped(flow, site, state, site.shapes[0], site.output_shape)
    if isinstance(result, Channels) and site.layer.target_shape[result.axis] != -1:
        flow.resize(site.layer, ("target_shape", result.axis), result.ids)
    return result


def _reshaped(flow, site, state, before, after):
    """The channels of a tensor of shape `before` when it is read as one of shape `after`."""
    places = _places(state.axis, before, after)
    if places is None:
        return flow.stop(site, f"{site.describe()} spreads channels over several axes")
    axis, places = places
    return Channels(axis, state.ids[places], state.values[places])


def _places(axis, before, after):
    """The axis that channels run along after a reshaping, and which one is where on it; None where there is no such axis."""
    size = before[axis]
    if axis == -1 and after[-1] == size:
        return -1, np.arange(size)
    if None in before[1:] or None in after[1:] or size == 1 or axis == -len(before):
        return None
    channels = np.arange(size).reshape(-1, *[1] * (-axis - 1))
    spread = np.broadcast_to(channels, before[1:]).reshape(after[1:])
    for place in range(-1, -len(after), -1):
        rows = np.moveaxis(spread, place, 0).reshape(after[place], -1)
        if (rows == rows[:, :1]).all():
            return place, rows[:, 0]
    return None


def permute(flow, site):
    (state,), rank = site.states, len(site.shapes[0])
    return state if isinstance(state, Held) else moved(state, (0, *site.layer.dims), rank)


def moved(state: Channels, order, rank: int) -> Channels:
    """The channels of a transposed tensor; `order` is what axis stands where."""
    return Channels(order.index(rank + state.axis) - rank, state.ids, state.values)


RULES = {
    layers.Flatten: flatten,
    layers.Reshape: reshape,
    layers.Permute: permute,
    layers.RepeatVector: unchanged,
    layers.Resizing: resized,
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), padded),
    **dict.fromkeys((layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D), even),
    **dict.fromkeys((layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D), even),
    **dict.fromkeys((layers.Cropping1D, layers.Cropping2D, layers.Cropping3D), even),
    **dict.fromkeys((layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D), even),
    **dict.fromkeys((layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D), pooled),
    **dict.fromkeys((layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D), pooled),
}
