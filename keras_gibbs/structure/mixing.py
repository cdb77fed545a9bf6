"""Layers whose every output channel adds up their input channels: Dense, convolutions, Embedding, recurrent layers."""

import dataclasses
import functools

import keras
import numpy as np
from keras import layers

from keras_gibbs.structure.constants import array_of
from keras_gibbs.structure.flow import Channels, Held
from keras_gibbs.structure.pointwise import activate


@dataclasses.dataclass(frozen=True, eq=False)
class Mixing:
    """What a layer adds up.

    Attributes:
        kernel: `(positions, inputs, outputs)`.
        bias: `(outputs,)`; None where there is none that could take a constant.
        uniform: Whether an input channel that is constant adds the same at every position: not where padding cuts it off.
        variable: The bias variable, or None.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    uniform: bool
    variable: keras.Variable | None = None

    @functools.cached_property
    def reads(self) -> np.ndarray:
        """bool `(inputs, outputs)`: whether an output depends on an input."""
        return (self.kernel != 0).any(0)

    @property
    def folds(self) -> bool:
        """Whether a constant input channel can move into the bias."""
        return self.uniform and self.bias is not None

    def sums(self, values: np.ndarray) -> np.ndarray:
        """What input channels of these constants add to each output, `(outputs,)`; NaN counts as zero."""
        chosen = np.flatnonzero(np.nan_to_num(values))
        return np.einsum("i,pio->o", values[chosen], self.kernel[:, chosen].astype("float64"))

    def constants(self, values: np.ndarray) -> np.ndarray:
        """The values of the outputs, NaN where they vary."""
        varying = ~np.isfinite(values) if self.uniform else values != 0  # NaN != 0
        outputs = self.sums(np.where(varying, 0.0, values)) + (0.0 if self.bias is None else self.bias)
        return np.where(self.reads[varying].any(0), np.nan, outputs)


def _bias(layer):
    return getattr(layer, "bias", None)


def _mixing(layer, kernel, uniform):
    bias = _bias(layer)
    return Mixing(kernel, None if bias is None else array_of(bias).reshape(-1), uniform, bias)


def channel_axis(layer, rank: int) -> int:
    """The axis of the channels of an image-like tensor, counted from the last."""
    return -1 if getattr(layer, "data_format", "channels_last") != "channels_first" else 1 - rank


def unpadded(layer) -> bool:
    """Whether a convolution reads nothing beyond the border of its input."""
    return layer.padding == "valid" or (layer.padding == "same" and all(size == 1 for size in layer.kernel_size))


def _read(flow, site, axis, size):
    reason = f"{site.describe()} reads another axis than its channels'"
    return flow.along(site.states[0], axis, size, reason)


def _give(flow, site, axis, outputs, values):
    """The output of a layer after its own activation."""
    return activate(flow, site, Channels(axis, outputs, values), site.layer.activation)


def dense(flow, site):
    layer = site.layer
    source = _read(flow, site, -1, layer.kernel.shape[0])
    outputs = flow.made_by(layer, layer.units)
    flow.bind(site, layer.kernel, 0, source.ids, "consumes")
    flow.bind(site, layer.kernel, 1, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    flow.resize(layer, ("units",), outputs)
    values = flow.use(site, lambda: _mixing(layer, array_of(layer.kernel)[None], True), source, outputs)
    return _give(flow, site, -1, outputs, values)


def einsum(flow, site):
    """An EinsumDense that is a Dense: one axis in, one out."""
    layer, kernel = site.layer, site.layer.kernel
    left, right, out = layer.equation.replace(" ", "").replace(",", "->").split("->")
    read, made = [letter for letter in right if letter not in out], [letter for letter in right if letter in out and letter not in left]
    if len(read) != 1 or len(made) != 1 or len(right) != 2 or (_bias(layer) is not None and layer.bias_axes != made[0]):
        return site.stop(flow, f"{site.describe()} has several axes of inputs or outputs, or a bias along other ones")
    into, onto = right.index(read[0]), right.index(made[0])
    axis = _place(out, made[0], len(site.output_shape))
    source = _read(flow, site, _place(left, read[0], len(site.shapes[0])), kernel.shape[into])
    outputs = flow.made_by(layer, kernel.shape[onto])
    flow.bind(site, kernel, into, source.ids, "consumes")
    flow.bind(site, kernel, onto, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    # The config names the output's axes without the batch, and without those of an ellipsis.
    named = out.replace("...", "") if "..." in out else out[1:]
    flow.resize(layer, ("output_shape", named.index(made[0]) - len(named)), outputs)
    values = flow.use(site, lambda: _mixing(layer, np.moveaxis(array_of(kernel), into, 0)[None], True), source, outputs)
    return _give(flow, site, axis, outputs, values)


def _place(letters, letter, rank):
    """The axis of a letter of an einsum term, counted from the last."""
    before, _, after = letters.partition("...")
    letters = before + " " * (rank - len(before) - len(after)) + after
    return letters.index(letter) - rank


def convolution(flow, site):
    layer, kernel = site.layer, site.layer.kernel
    groups, inputs = layer.groups, kernel.shape[-2]
    axis = channel_axis(layer, len(site.shapes[0]))
    source = _read(flow, site, axis, inputs * groups)
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
    values = flow.use(site, lambda: _mixing(layer, _ungrouped(array_of(kernel), groups), unpadded(layer)), source, outputs)
    return _give(flow, site, axis, outputs, values)


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
    source = _read(flow, site, axis, kernel.shape[-1])
    outputs = flow.made_by(layer, layer.filters)
    flow.bind(site, kernel, -1, source.ids, "consumes")
    flow.bind(site, kernel, -2, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    flow.resize(layer, ("filters",), outputs)
    values = flow.use(site, lambda: _mixing(layer, array_of(kernel).reshape(-1, *kernel.shape[-2:]).swapaxes(1, 2), False), source, outputs)
    return _give(flow, site, axis, outputs, values)


def separable(flow, site):
    layer, depthwise, pointwise = site.layer, site.layer.depthwise_kernel, site.layer.pointwise_kernel
    axis, multiplier = channel_axis(layer, len(site.shapes[0])), layer.depth_multiplier
    source = _read(flow, site, axis, depthwise.shape[-2])
    outputs = flow.made_by(layer, layer.filters)
    flow.bind(site, depthwise, -2, source.ids, "consumes")
    flow.bind(site, pointwise, -2, np.repeat(source.ids, multiplier), "consumes")
    flow.bind(site, pointwise, -1, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    flow.resize(layer, ("filters",), outputs)

    def mixing():
        taps = array_of(depthwise).reshape(-1, *depthwise.shape[-2:])
        return _mixing(layer, np.einsum("pim,imo->pio", taps, array_of(pointwise).reshape(*depthwise.shape[-2:], -1)), unpadded(layer))

    return _give(flow, site, axis, outputs, flow.use(site, mixing, source, outputs))


def depthwise(flow, site):
    layer = site.layer
    axis = channel_axis(layer, len(site.shapes[0]))
    source = _read(flow, site, axis, layer.kernel.shape[-2])
    return _apart(flow, site, axis, source, layer.depth_multiplier, kernel_axis=-2)


def _apart(flow, site, axis, source, multiplier, kernel_axis):
    """A convolution that makes `multiplier` channels of each channel, and adds up none."""
    layer, kernel = site.layer, site.layer.kernel
    outputs = np.repeat(source.ids, multiplier)
    flow.bind(site, kernel, kernel_axis, source.ids if kernel_axis == -2 else outputs, "carries")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    if flow.imagined:
        return _give(flow, site, axis, outputs, flow.emptied(outputs))
    taps = array_of(kernel).reshape(-1, len(outputs))
    values = np.repeat(source.values if unpadded(layer) else np.where(source.values == 0, 0.0, np.nan), multiplier)
    added = np.where((taps == 0).all(0), 0.0, values * taps.sum(0, dtype="float64"))
    return _give(flow, site, axis, outputs, added + (0.0 if layer.bias is None else array_of(layer.bias)))


def embedding(flow, site):
    table = site.layer.embeddings
    outputs = flow.made_by(site.layer, site.layer.output_dim)
    flow.bind(site, table, 1, outputs, "produces")
    flow.resize(site.layer, ("output_dim",), outputs)
    rows = array_of(table)
    values = flow.emptied(outputs) if flow.imagined else np.where((rows == rows[0]).all(0), rows[0], np.nan).astype("float64")
    return Channels(-1, outputs, values)


def recurrent(flow, site):
    """An RNN reads channels; its own units stay."""
    reason = f"{site.describe()} keeps its units"
    inner = [site.layer.forward_layer, site.layer.backward_layer] if isinstance(site.layer, layers.Bidirectional) else [site.layer]
    if len(site.states) != 1 or any(type(layer) not in (layers.LSTM, layers.GRU, layers.SimpleRNN) for layer in inner):
        return site.stop(flow, f"{site.describe()} is not followed")
    kernels = [layer.cell.kernel for layer in inner]
    source = _read(flow, site, -1, kernels[0].shape[0])
    for kernel in kernels:
        flow.bind(site, kernel, 0, source.ids, "consumes")
    width = sum(kernel.shape[1] for kernel in kernels)
    flow.use(site, lambda: Mixing(np.concatenate([array_of(kernel) for kernel in kernels], axis=1)[None], None, False), source, flow.fixed(width, reason))
    return Held(reason)


RULES = {
    layers.Dense: dense,
    layers.EinsumDense: einsum,
    layers.Conv1D: convolution,
    layers.Conv2D: convolution,
    layers.Conv3D: convolution,
    layers.Conv1DTranspose: transposed,
    layers.Conv2DTranspose: transposed,
    layers.Conv3DTranspose: transposed,
    layers.SeparableConv1D: separable,
    layers.SeparableConv2D: separable,
    layers.DepthwiseConv1D: depthwise,
    layers.DepthwiseConv2D: depthwise,
    layers.Embedding: embedding,
    layers.SimpleRNN: recurrent,
    layers.GRU: recurrent,
    layers.LSTM: recurrent,
    layers.Bidirectional: recurrent,
}
