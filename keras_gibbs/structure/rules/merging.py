"""Layers and operations that bring several tensors together, and the operations of `keras.ops`."""

import keras
import numpy as np
from keras import layers, tree

from keras_gibbs.structure.constants import evaluate
from keras_gibbs.structure.rules.pointwise import elementwise
from keras_gibbs.structure.rules.spatial import moved
from keras_gibbs.structure.states import Channels, Held

UNARY = (
    "Abs Absolute Cast Celu Elu Erf Exp Expm1 Gelu HardShrink HardSigmoid HardSilu HardTanh LeakyRelu Log1p LogSigmoid Mish Negative Relu Relu6 Selu Sigmoid "
    "Silu SoftShrink Softplus Softsign SparsePlus SparseSigmoid Sqrt Square Squareplus Tanh TanhShrink Threshold"
).split()
BINARY = "Add Divide Maximum Minimum Multiply Power Subtract TrueDivide".split()


def joined(flow, site):
    """Tensors that meet element by element: a channel of one is tied to the channel in its place of the others."""
    operands = _operands(site)
    tracked = [(shape, state) for shape, state in operands if isinstance(state, Channels)]
    if not tracked:
        return next((state for _, state in operands if state is not None), Held("nothing is known of it"))
    axis = tracked[0][1].axis
    fixed = next((state.reason for shape, state in operands if isinstance(state, Held) and _size(shape, axis) != 1), None)
    if any(state.axis != axis for _, state in tracked):
        return flow.stop(site, f"{site.describe()} brings together channels that run along different axes")
    size = site.output_shape[axis]
    for _, state in tracked:
        if len(state.ids) != size:
            flow.freeze(state.ids, f"{site.describe()} uses it for all channels of another tensor")
    whole = [state for _, state in tracked if len(state.ids) == size]
    if fixed is not None:
        flow.stop(site, f"{site.describe()} ties it to a tensor that stays: {fixed}")
        return Held(fixed)
    if not whole:
        return flow.stop(site, f"{site.describe()} has no tensor with all channels")
    for state in whole[1:]:
        flow.tie(whole[0].ids, state.ids)
    return whole[0].with_values(_values(flow, site, size, axis, [state for _, state in operands]))


def _operands(site):
    """(shape, state) of all that an operation combines: tensors, and arrays, which stay as they are; None is the state of a scalar."""
    states = iter(zip(site.shapes, site.states))
    operands = []
    for leaf in tree.flatten(site.args):
        if isinstance(leaf, keras.KerasTensor):
            operands.append(next(states))
        elif np.ndim(leaf):
            operands.append((np.shape(leaf), Held("an array is part of the graph")))
        elif leaf is not None:
            operands.append(((), None))
    return operands


def _size(shape, axis):
    return shape[axis] if len(shape) >= -axis else 1


def _values(flow, site, size, axis, states):
    """What is constant of the result."""
    operands = []
    for state in states:
        if isinstance(state, Channels):
            apart = len(state.ids) == size
            operands.append(np.full(size, np.nan) if not apart and flow.imagined else np.broadcast_to(state.values, (size,)))
        elif isinstance(state, Held):
            operands.append(np.full(size, np.nan))
    values = evaluate(lambda *tensors: _call(site, tensors), *operands)
    if type(site.layer).__name__ == "Multiply":
        values = np.where(np.any([operand == 0 for operand in operands], axis=0), 0.0, values)
    return values


def _call(site, tensors):
    """The operation on other tensors, scalars as they are."""
    tensors = iter(tensors)
    args, kwargs = tree.map_structure(lambda leaf: next(tensors) if isinstance(leaf, keras.KerasTensor) else leaf, site.args)
    return site.layer(*args, **kwargs)


def concatenated(flow, site):
    rank = len(site.output_shape)
    along = site.layer.axis % rank - rank
    tracked = [state for state in site.states if isinstance(state, Channels)]
    if not tracked:
        return site.states[0]
    axis = tracked[0].axis
    if axis != along:
        if len(tracked) < len(site.states) or any(state.axis != axis for state in tracked):
            return flow.stop(site, f"{site.describe()} sets it beside a tensor whose channels stay or run along another axis")
        for state in tracked[1:]:
            flow.tie(tracked[0].ids, state.ids)
        values = np.array([state.values for state in tracked])
        return tracked[0].with_values(np.where((values == values[0]).all(0), values[0], np.nan))
    reason = f"{site.describe()} reads another axis than its channels'"
    parts = [flow.along(state, along, shape[along], reason) for shape, state in zip(site.shapes, site.states)]
    return Channels(along, np.concatenate([part.ids for part in parts]), np.concatenate([part.values for part in parts]))


def expanded(flow, site):
    """`ops.expand_dims` and `ops.squeeze` of axes that are not the channels'."""
    state, before, after = site.states[0], len(site.shapes[0]), len(site.output_shape)
    if isinstance(state, Held):
        return state
    axes = site.layer.axis
    if axes is None or len(site.states) > 1:
        return flow.stop(site, f"{site.describe()} is not followed")
    inside = max(before, after)
    axes = {axis % inside for axis in np.atleast_1d(axes).tolist()}
    kept = [axis for axis in range(inside) if axis not in axes]  # the axes of the smaller tensor, in the larger one
    if after > before:
        return Channels(kept[before + state.axis] - after, state.ids, state.values)
    if before + state.axis in axes:
        return flow.stop(site, f"{site.describe()} drops the axis of the channels")
    return Channels(kept.index(before + state.axis) - after, state.ids, state.values)


def transposed(flow, site):
    state, rank = site.states[0], len(site.shapes[0])
    if isinstance(state, Held):
        return state
    order = site.layer.axes
    return moved(state, list(range(rank))[::-1] if order is None else [axis % rank for axis in order], rank)


def reduced(flow, site):
    """`ops.mean` and `ops.max` over other axes than the channels'."""
    state, rank = site.states[0], len(site.shapes[0])
    if isinstance(state, Held):
        return state
    if getattr(site.layer, "initial", None) is not None:
        return flow.stop(site, f"{site.describe()} has an initial value")
    axes = site.layer.axis
    axes = set(range(rank)) if axes is None else {axis % rank for axis in np.atleast_1d(axes).tolist()}
    if rank + state.axis in axes:
        return flow.stop(site, f"{site.describe()} reads all channels")
    behind = 0 if site.layer.keepdims else sum(axis > rank + state.axis for axis in axes)
    return Channels(state.axis + behind, state.ids, state.values)


def _single(rule):
    """A rule for an operation on one tensor, and on no arrays beside it."""

    def checked(flow, site):
        if len(site.states) != 1 or any(np.ndim(leaf) for leaf in tree.flatten(site.args) if not isinstance(leaf, keras.KerasTensor)):
            return flow.stop(site, f"{site.describe()} has further tensors")
        return rule(flow, site)

    return checked


RULES = {
    layers.Concatenate: concatenated,
    **dict.fromkeys((layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum), joined),
}
# The classes behind `keras.ops` are not public: they are known by their names.
OPERATIONS = {
    "Concatenate": concatenated,
    "ExpandDims": expanded,
    "Squeeze": expanded,
    "Transpose": transposed,
    "Mean": reduced,
    "Max": reduced,
    **dict.fromkeys(UNARY, _single(elementwise)),
    **dict.fromkeys(BINARY, joined),
}
