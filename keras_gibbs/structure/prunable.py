"""The table of prunable weights: which variables of a layer can be pruned, and how their axes read.

A layer of the user's own joins by a method `get_prunable_weights()` that returns variables, or pairs of a variable and its `Layout`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_gibbs.structure.graph import named_walk
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.structure.layouts import Layout, depthwise_layout, einsum_layout, standard_layout, transposed_layout
from keras_gibbs.typing import Tensor


@dataclasses.dataclass(frozen=True)
class Prunable:
    """A weight that can be pruned.

    Attributes:
        path: The names of the layers down to it and its own, such as `"encoder/block/dense/kernel"`: the key of everything that is said about weights.
        owner: The innermost layer that owns it.
        name: Its own name, such as `"kernel"` or `"recurrent_kernel"`.
        variable: The variable.
        layout: How its axes read.
    """

    path: str
    owner: Any
    name: str
    variable: Any
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(self.variable.shape)

    def value(self) -> Tensor:
        """The weight, in its shape."""
        return ops.convert_to_tensor(self.variable)


def _standard(layer, ndim):
    return standard_layout(ndim)


def _transposed(layer, ndim):
    return transposed_layout(ndim)


def _depthwise(layer, ndim):
    return depthwise_layout(ndim)


def _einsum(layer, ndim):
    return einsum_layout(layer.equation, ndim)


def _tied(layer, ndim):  # outputs that are bound to those of other weights
    return dataclasses.replace(standard_layout(ndim), filters=False)


_RECURRENT = {"kernel": _tied, "recurrent_kernel": _tied}
# By class name, so that a layer of Keras 2 is found by that of Keras 3; subclasses count as their base.
TABLE: dict[str, dict[str, Callable[[Any, int], Layout]]] = {
    "Dense": {"kernel": _standard},
    "EinsumDense": {"kernel": _einsum},
    "DepthwiseConv1D": {"kernel": _depthwise},
    "DepthwiseConv2D": {"kernel": _depthwise},
    "SeparableConv1D": {"depthwise_kernel": _depthwise, "pointwise_kernel": _standard},
    "SeparableConv2D": {"depthwise_kernel": _depthwise, "pointwise_kernel": _standard},
    "Conv1DTranspose": {"kernel": _transposed},
    "Conv2DTranspose": {"kernel": _transposed},
    "Conv3DTranspose": {"kernel": _transposed},
    "Conv1D": {"kernel": _standard},
    "Conv2D": {"kernel": _standard},
    "Conv3D": {"kernel": _standard},
    "ReversibleEmbedding": {"embeddings": _tied, "reverse_embeddings": _tied},
    "Embedding": {"embeddings": _tied},
    "SimpleRNNCell": _RECURRENT,
    "GRUCell": _RECURRENT,
    "LSTMCell": _RECURRENT,
    "ConvLSTMCell": _RECURRENT,
}
ATTENTION = ("MultiHeadAttention", "GroupedQueryAttention")


def rows_of(layer) -> dict[str, Callable[[Any, int], Layout]]:
    """The row of the table for a layer: from the name of a prunable attribute to the function that gives its layout. Empty where there is none."""
    return next((TABLE[base.__name__] for base in type(layer).__mro__ if base.__name__ in TABLE), {})


def prunable_weights(layer, root: str = "") -> list[Prunable]:
    """The weights that can be pruned in a built layer or model, at any depth, each once.

    Args:
        layer: A built layer or model.
        root: What their paths begin with; `""` for a whole model, whose own name is not part of them.

    Returns:
        One `Prunable` a weight, in the order of the walk.
    """
    found, seen, tied, done = [], set(), set(), set()
    for path, part in named_walk(layer, root):
        if id(part) in done:
            continue
        if is_a(part, *ATTENTION):
            tied |= {id(inner) for _, inner in named_walk(part)}
        if callable(getattr(part, "get_prunable_weights", None)):
            own = list(_by_hook(part))
            done |= {id(inner) for _, inner in named_walk(part)}
        else:
            own = list(_by_table(part))
        for name, variable, layout in own:
            if id(variable) not in seen:
                seen.add(id(variable))
                layout = dataclasses.replace(layout, filters=False) if id(part) in tied else layout
                found.append(Prunable(f"{path}/{name}" if path else name, part, name, variable, layout))
    return found


def _by_table(layer):
    for name, layout in rows_of(layer).items():
        variable = getattr(layer, name, None)
        if is_variable(variable):
            yield name, variable, layout(layer, len(variable.shape))


def _by_hook(layer):
    known = {id(variable): layout for _, part in named_walk(layer) for _, variable, layout in _by_table(part)}
    names = {}
    for entry in layer.get_prunable_weights():
        variable, layout = entry if isinstance(entry, tuple) else (entry, None)
        if not is_variable(variable) or (layout is not None and not isinstance(layout, Layout)):
            raise TypeError(
                f"`get_prunable_weights` of layer {layer.name!r} must return variables, or pairs of a variable and its `Layout`. Received: {entry!r}."
            )
        count = names[variable.name] = names.get(variable.name, -1) + 1
        name = f"{variable.name}_{count}" if count else variable.name
        yield name, variable, layout or known.get(id(variable)) or standard_layout(len(variable.shape))


def is_variable(thing) -> bool:
    """Whether `thing` is a variable of one Keras or another, and not, say, a quantized kernel's tensor."""
    return hasattr(thing, "assign") and hasattr(thing, "shape") and hasattr(thing, "trainable")


def why_not(layer) -> str | None:
    """Why a layer of a kind in the table has no weights to prune as it is, in a few words; None where it has."""
    if getattr(layer, "quantization_mode", None):
        return "its weights are quantized; prune first"
    if getattr(layer, "lora_enabled", False):
        return "it has LoRA weights; prune first"
    if not layer.built:
        return "it is not built"
    return None
