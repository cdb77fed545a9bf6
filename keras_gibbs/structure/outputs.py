"""Which layers give a model its outputs."""

import keras

from keras_gibbs.structure.graph import FUNCTIONAL
from keras_gibbs.structure.kinds import is_a

# Layers whose every output channel depends on all input channels. What is not among them may hand channels on one by one.
MIXING = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    keras.layers.RNN,
    keras.layers.Bidirectional,
    keras.layers.Embedding,
    keras.layers.MultiHeadAttention,
)


def output_layer(model):
    """The layer, not itself a model, that gives the only output of a Sequential or Functional model of Keras 3 or 2; None where there are several."""
    while is_a(model, keras.Sequential, FUNCTIONAL):
        if is_a(model, keras.Sequential):
            model = model.layers[-1]
        else:
            names = list(_names_of_outputs(model.get_config()["output_layers"]))
            model = next((layer for layer in model.layers if layer.name == names[0]), None) if len(names) == 1 else None
    return model


def at_output(model: keras.Model) -> set[int]:
    """The ids of the layers whose output channels are the model's own, for a Sequential or Functional model of Keras 3 or 2.

    These are the layers with weights that reach an output of the model without a layer in between that mixes channels: through activations,
    normalization, pooling, reshaping, additions, depthwise convolutions, and layers that are not known to mix.
    """
    found = set()

    def visit(layer) -> bool:
        """Note `layer` if it has weights; whether the way goes on behind it."""
        if is_a(layer, keras.Sequential, FUNCTIONAL):
            return trace(layer)
        if getattr(layer, "weights", None):
            found.add(id(layer))
        return not is_a(layer.layer if is_a(layer, keras.layers.Wrapper) else layer, *MIXING)

    def trace(model) -> bool:
        """Go back from the outputs of `model`; whether one of its inputs is reached."""
        if is_a(model, keras.Sequential):
            return all(visit(layer) for layer in reversed(model.layers))
        config = model.get_config()
        before = {layer["name"]: _names_of_tensors(layer["inbound_nodes"]) for layer in config["layers"]}
        layers = {layer.name: layer for layer in model.layers}
        queue, seen, reached = list(_names_of_outputs(config["output_layers"])), set(), False
        while queue:
            name = queue.pop()
            if name in seen:
                continue
            seen.add(name)
            if is_a(layers.get(name), keras.layers.InputLayer):
                reached = True
            elif visit(layers.get(name)):
                queue += before[name]
        return reached

    trace(model)
    return found


def _names_of_tensors(node):
    """The names of the layers whose outputs enter a layer, from its serialized `inbound_nodes`."""
    if isinstance(node, dict):
        if "keras_history" in node:
            yield node["keras_history"][0]
        else:
            for value in node.values():
                yield from _names_of_tensors(value)
    elif isinstance(node, (list, tuple)):
        if len(node) > 2 and [type(part) for part in node[:3]] == [str, int, int]:  # as Keras 2 writes it
            yield node[0]
        for value in node:
            yield from _names_of_tensors(value)


def _names_of_outputs(outputs):
    """The layer names in the serialized `output_layers`: one `[name, node, tensor]`, or a structure of them."""
    if isinstance(outputs, (list, tuple)) and len(outputs) == 3 and isinstance(outputs[0], str):
        yield outputs[0]
    else:
        for value in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from _names_of_outputs(value)
