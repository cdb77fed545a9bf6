"""Dense and EinsumDense, Embedding, recurrent layers."""

import numpy as np
from keras import layers

from keras_gibbs.structure.constants import array_of
from keras_gibbs.structure.mixing import Mixing, mixing_of
from keras_gibbs.structure.rules.pointwise import activate
from keras_gibbs.structure.states import Channels, Held


def read(flow, site, axis, size):
    """The channels along an axis of a layer's input."""
    reason = f"{site.describe()} reads another axis than its channels'"
    return flow.along(site.states[0], axis, size, reason)


def give(flow, site, axis, outputs, values):
    """The output of a layer after its own activation."""
    return activate(flow, site, Channels(axis, outputs, values), site.layer.activation)


def dense(flow, site):
    layer = site.layer
    source = read(flow, site, -1, layer.kernel.shape[0])
    outputs = flow.made_by(layer, layer.units)
    flow.bind(site, layer.kernel, 0, source.ids, "consumes")
    flow.bind(site, layer.kernel, 1, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    flow.resize(layer, ("units",), outputs)
    values = flow.use(site, lambda: mixing_of(layer, array_of(layer.kernel)[None], True), source, outputs)
    return give(flow, site, -1, outputs, values)


def einsum(flow, site):
    """An EinsumDense that is a Dense: one axis in, one out."""
    layer, kernel = site.layer, site.layer.kernel
    left, right, out = layer.equation.replace(" ", "").replace(",", "->").split("->")
    summed, made = set(left) - set(out), set(out) - set(left)
    if len(summed) != 1 or len(made) != 1 or set(right) != summed | made or (layer.bias is not None and {*layer.bias_axes} != made):
        return flow.stop(site, f"{site.describe()} has several axes of inputs or outputs, or a bias along other ones")
    (summed,), (made,) = summed, made
    into, onto = right.index(summed), right.index(made)
    axis = _place(out, made, len(site.output_shape))
    source = read(flow, site, _place(left, summed, len(site.shapes[0])), kernel.shape[into])
    outputs = flow.made_by(layer, kernel.shape[onto])
    flow.bind(site, kernel, into, source.ids, "consumes")
    flow.bind(site, kernel, onto, outputs, "produces")
    if layer.bias is not None:
        flow.bind(site, layer.bias, 0, outputs, "follows")
    # The config names the output's axes without the batch, and without those of an ellipsis.
    named = out.replace("...", "") if "..." in out else out[1:]
    flow.resize(layer, ("output_shape", named.index(made) - len(named)), outputs)
    values = flow.use(site, lambda: mixing_of(layer, np.moveaxis(array_of(kernel), into, 0)[None], True), source, outputs)
    return give(flow, site, axis, outputs, values)


def _place(letters, letter, rank):
    """The axis of a letter of an einsum term, counted from the last."""
    before, _, after = letters.partition("...")
    letters = before + " " * (rank - len(before) - len(after)) + after
    return letters.index(letter) - rank


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
        return flow.stop(site, f"{site.describe()} is not followed")
    kernels = [layer.cell.kernel for layer in inner]
    source = read(flow, site, -1, kernels[0].shape[0])
    for kernel in kernels:
        flow.bind(site, kernel, 0, source.ids, "consumes")
    width = sum(kernel.shape[1] for kernel in kernels)
    flow.use(site, lambda: Mixing(np.concatenate([array_of(kernel) for kernel in kernels], axis=1)[None], None, False), source, flow.fixed(width, reason))
    return Held(reason)


RULES = {
    layers.Dense: dense,
    layers.EinsumDense: einsum,
    layers.Embedding: embedding,
    **dict.fromkeys((layers.SimpleRNN, layers.GRU, layers.LSTM, layers.Bidirectional), recurrent),
}
