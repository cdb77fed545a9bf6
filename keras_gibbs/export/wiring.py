"""Who gives and who reads the tensors of a model."""

import keras
from keras import tree

from keras_gibbs.structure.graph import has_graph
from keras_gibbs.structure.trace import Call, tensors, trace


class Wiring:
    """The calls of the layers and operations of a Sequential or Functional model, those of nested models in their place.

    Attributes:
        inputs: Tensors, as the model's inputs are structured.
        outputs: Tensors, as its outputs are structured.
        calls: The calls, in an order in which every tensor is made before it is read.
    """

    def __init__(self, model: keras.Model):
        traced = trace(model)
        single = isinstance(model, keras.Sequential)  # one that was never called has no `input` and `output`
        self.inputs = traced.inputs[0] if single else tree.pack_sequence_as(model.input, traced.inputs)
        self.outputs = traced.outputs[0] if single else tree.pack_sequence_as(model.output, traced.outputs)
        self.calls = [call for call in traced.calls if not has_graph(call.operation) and not isinstance(call.operation, keras.layers.InputLayer)]

    def readers(self, tensor: keras.KerasTensor) -> list[Call]:
        """The calls that read a tensor."""
        return [call for call in self.calls if any(each is tensor for each in call.inputs)]

    def giver(self, tensor: keras.KerasTensor) -> Call | None:
        """The call that gave a tensor; None for an input of the model."""
        return next((call for call in self.calls if any(each is tensor for each in tensors(call.outputs))), None)


def output_of(call: Call) -> keras.KerasTensor:
    """The first output of a call."""
    return tensors(call.outputs)[0]
