"""The heads of attention: each is made by its queries, keys and values, and read by the projection behind."""

import dataclasses

import numpy as np
from keras import layers

from keras_gibbs.structure.constants import array_of
from keras_gibbs.structure.graph import children
from keras_gibbs.structure.mixing import Mixing
from keras_gibbs.structure.states import Channels

PARTS = ("query", "key", "value", "attention_output")


def attention(flow, site):
    """What attention reads and gives stays as it is; of its heads every one can go, one that shares keys and values with its whole group."""
    layer = site.layer
    held = flow.stop(site, f"{site.describe()} reads it, and is not known to keep channels apart")
    parts = {part.name: part for part in children(layer) if part.weights}
    plain = not any(getattr(part, "quantization_mode", None) or getattr(part, "lora_enabled", False) for part in parts.values())
    if set(parts) != set(PARTS) or not plain or max(map(len, site.shapes)) > len(site.shapes[0]):  # a gate, or a mask with an entry for each head
        return held
    query, key, value, output = (parts[name] for name in PARTS)
    heads = flow.made_by(layer, key.kernel.shape[1])
    queries = np.repeat(heads, query.kernel.shape[1] // len(heads))
    sites = {name: dataclasses.replace(site, path=f"{site.path}/{name}") for name in PARTS}
    for part, ids in ((query, queries), (key, heads), (value, heads)):
        flow.bind(sites[part.name], part.kernel, 1, ids, "produces")
        if part.bias is not None:
            flow.bind(sites[part.name], part.bias, 0, ids, "follows")
    flow.bind(sites["attention_output"], output.kernel, 0, queries, "consumes")
    for name, ids in (("num_heads", heads), ("num_query_heads", queries), ("num_key_value_heads", heads)):
        if hasattr(layer, name):
            flow.resize(layer, (name,), ids)

    def mixing():
        kernel = array_of(output.kernel)
        return Mixing(kernel.reshape(*kernel.shape[:2], -1).swapaxes(0, 1), None, False)

    fixed = flow.fixed(int(np.prod(output.kernel.shape[2:])), held.reason)
    flow.use(site, mixing, _heads(flow, value, queries), fixed)
    return held


def _heads(flow, value, ids):
    """The heads as `Channels`: zero where their values are."""
    if flow.imagined:
        return Channels(-2, ids, flow.emptied(ids))
    parts = [np.moveaxis(array_of(value.kernel), 1, 0).reshape(value.kernel.shape[1], -1)]
    if value.bias is not None:
        parts.append(array_of(value.bias).reshape(value.kernel.shape[1], -1))
    silent = ~np.concatenate(parts, axis=1).any(1)
    return Channels(-2, ids, np.repeat(np.where(silent, 0.0, np.nan), len(ids) // len(silent)))


RULES = {layers.MultiHeadAttention: attention, layers.GroupQueryAttention: attention}
