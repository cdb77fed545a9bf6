"""The graph of a model as a list of calls, found with public API, and a new model from such a list with some calls replaced."""

import dataclasses

import keras
from keras import tree

from keras_gibbs.structure.graph import has_graph


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        layer: The user's layer, or an operation between layers.
        args: Its positional arguments, with `keras.KerasTensor` for tensors.
        kwargs: Its other arguments.
        outputs: What it gave, a structure of tensors.
    """

    layer: keras.Operation
    args: tuple
    kwargs: dict
    outputs: object

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The tensors among the arguments."""
        return [each for each in tree.flatten((self.args, self.kwargs)) if isinstance(each, keras.KerasTensor)]

    @property
    def output(self) -> keras.KerasTensor:
        """Its first output."""
        return tree.flatten(self.outputs)[0]


class Trace:
    """The calls of a Sequential or Functional model in order, those of nested models in their place.

    Attributes:
        inputs: Tensors, as the model's `input` is structured.
        outputs: Tensors, as its outputs are structured.
        calls: The calls.
    """

    def __init__(self, model: keras.Model):
        self.calls, self._alias = [], {}
        self.inputs, self.outputs = self._follow(model)
        for call in self.calls:
            call.args, call.kwargs = tree.map_structure(self._resolved, (call.args, call.kwargs))
        self.outputs = tree.map_structure(self._resolved, self.outputs)

    def readers(self, tensor: keras.KerasTensor) -> list[Call]:
        """The calls that read a tensor."""
        return [call for call in self.calls if any(each is tensor for each in call.inputs)]

    def giver(self, tensor: keras.KerasTensor) -> Call | None:
        """The call that gave a tensor; None for an input of the model."""
        return next((call for call in self.calls if any(each is tensor for each in tree.flatten(call.outputs))), None)

    def _follow(self, model):
        originals = {}

        def copied(layer):
            copy = layer
            if isinstance(layer, keras.layers.Layer) and not isinstance(layer, keras.layers.Lambda):
                copy = keras.models.clone_model(layer) if has_graph(layer) else type(layer).from_config(layer.get_config())
            originals[id(copy)] = layer
            return copy

        def called(copy, *args, **kwargs):
            outputs, layer = copy(*args, **kwargs), originals[id(copy)]
            if has_graph(layer):
                inside, found = self._follow(layer)
                self._link(inside, args[0])
                self._link(outputs, found)
            elif not isinstance(layer, keras.layers.InputLayer):
                self.calls.append(Call(layer, args, kwargs, outputs))
            return outputs

        graph = keras.Model(model.inputs[0], model.outputs[0]) if isinstance(model, keras.Sequential) else model
        inputs = tree.map_structure(lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), graph.input)
        traced = keras.models.clone_model(graph, input_tensors=inputs, clone_function=copied, call_function=called)
        return inputs, traced.output

    def _link(self, tensors, others):
        for tensor, other in zip(tree.flatten(tensors), tree.flatten(others)):
            self._alias[id(tensor)] = other

    def _resolved(self, value):
        while id(value) in self._alias:
            value = self._alias[id(value)]
        return value
