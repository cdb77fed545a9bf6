"""Which layers give a model its outputs."""

import keras

from keras_gibbs.structure.graph import FUNCTIONAL
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.structure.trace import tensors, trace

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


def mixes(layer) -> bool:
    """Whether every output channel of a layer of Keras 3 or 2 depends on all input channels; one that is not known may hand channels on one by one."""
    return is_a(layer.layer if is_a(layer, keras.layers.Wrapper) else layer, *MIXING)


def at_output(model: keras.Model) -> set[int]:
    """The ids of the layers, without the wrappers of keras_gibbs, whose output channels are those of a built Sequential or Functional model.

    These are the layers with weights that reach an output of the model without a layer in between that mixes channels: through activations,
    normalization, pooling, reshaping, additions, depthwise convolutions, and layers that are not known to mix.
    """
    calls = trace(model)
    found, reached = set(), set(map(id, calls.outputs))
    for call in reversed(calls.calls):
        if reached.isdisjoint(map(id, tensors(call.outputs))):
            continue
        if getattr(call.operation, "weights", None):
            found.add(id(call.operation))
        if not mixes(call.operation):
            reached.update(map(id, call.inputs))
    return found


def output_layer(model):
    """The layer, not itself a model, that gives the only output of a Sequential or Functional model of Keras 3 or 2; None where there are several."""
    while is_a(model, keras.Sequential, FUNCTIONAL):
        if is_a(model, keras.Sequential):
            model = model.layers[-1]
        else:
            names = list(names_of_outputs(model.get_config()["output_layers"]))
            model = next((layer for layer in model.layers if layer.name == names[0]), None) if len(names) == 1 else None
    return model


def names_of_outputs(outputs):
    """The layer names in the serialized `output_layers`: one `[name, node, tensor]`, or a structure of them."""
    if isinstance(outputs, (list, tuple)) and len(outputs) == 3 and isinstance(outputs[0], str):
        yield outputs[0]
    else:
        for value in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from names_of_outputs(value)
