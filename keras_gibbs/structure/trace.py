"""Every call of every layer and operation in the graph of a model."""

import dataclasses
from typing import Any

import keras
from keras import tree

from keras_gibbs.structure.graph import has_graph, unwrapped


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer or operation.

    Attributes:
        operation: The layer, without the wrappers of keras_gibbs, or `keras.Operation`. The call of a nested model stands before those of its layers, and
            gives no tensors of its own.
        path: The names on the way from the root model to the operation, such as `"encoder/dense"`.
        args: Positional arguments, with a `KerasTensor` wherever a tensor is passed.
        kwargs: Keyword arguments, likewise.
        outputs: The `KerasTensor`s it gives, in their structure.
    """

    operation: keras.Operation
    path: str
    args: tuple
    kwargs: dict
    outputs: Any

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The tensors among the arguments, in order."""
        return tensors((self.args, self.kwargs))


@dataclasses.dataclass(frozen=True)
class Trace:
    """The calls of a model in an order in which every tensor is made before it is used, and its inputs and outputs."""

    calls: list[Call]
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]


def trace(model: keras.Model) -> Trace:
    """Follow tensors without values through a Sequential or Functional model, nested ones entered; nothing is added to its layers.

    A layer that is called several times, or is inside a nested model that is, gives several calls.
    """
    tracer = _Tracer()
    inputs = tree.map_structure(_like, _inputs(model))
    outputs = tracer.run(model, inputs, ())
    return Trace(tracer.calls, tensors(inputs), tensors(outputs))


def tensors(structure) -> list[keras.KerasTensor]:
    """The `KerasTensor`s in a structure, in order."""
    return [leaf for leaf in tree.flatten(structure) if isinstance(leaf, keras.KerasTensor)]


class _Tracer:
    """Lists calls. A tensor that crosses the border of a nested model stands for the one it is made of."""

    def __init__(self):
        self.calls = []
        self._origins = {}  # id of a tensor: the tensor it stands for, and itself, so that the id stays its own

    def run(self, model, inputs, names):
        """The outputs of `model` on `inputs`, and its calls noted."""
        given = tensors(inputs)
        if isinstance(model, keras.Sequential):
            for layer in model.layers:
                given = tensors(self.call(layer, (*names, layer.name), (given[0],), {}))
            return given[0]
        inner = tree.map_structure(_like, _inputs(model))
        for tensor, origin in zip(tensors(inner), given):
            self._stand_for(tensor, origin)
        plain = keras.Model(model.input, model.output)  # neither the class nor the compilation of `model` is of use here
        clone = keras.models.clone_model(plain, input_tensors=inner, clone_function=lambda operation: _Probe(self, operation, (*names, operation.name)))
        return tree.map_structure(self._origin, clone.output)

    def call(self, operation, names, args, kwargs):
        """The outputs of one operation, and its call noted."""
        args, kwargs, operation = *tree.map_structure(self._origin, (args, kwargs)), unwrapped(operation)
        if has_graph(operation):
            inputs = args[0] if args else kwargs["inputs"]
            if isinstance(inputs, dict) and not isinstance(operation.input, dict):
                inputs = [inputs[own.name] for own in operation.inputs]
            inputs = self._of_rank(operation, inputs, names)
            self.calls.append(Call(operation, "/".join(names), (inputs,), {}, ()))
            return self.run(operation, inputs, names)
        outputs = output_spec(operation, args, kwargs)
        self.calls.append(Call(operation, "/".join(names), args, kwargs, outputs))
        return outputs

    def _of_rank(self, model, inputs, names):
        """Inputs of a nested model in the ranks that it takes. Keras reshapes those of another rank; here a layer does."""
        others = {id(given): own for given, own in zip(tensors(inputs), model.inputs, strict=True) if len(given.shape) != len(own.shape)}

        def reshaped(leaf):
            if id(leaf) not in others:
                return leaf
            shape = tuple(-1 if size is None else size for size in others[id(leaf)].shape[1:])
            if shape.count(-1) > 1:
                raise ValueError(
                    f"Model {'/'.join(names)!r} is called on tensors of another rank than that of its inputs, which Keras reshapes without a trace. "
                    f"Received: shape {tuple(leaf.shape)}, and several sizes left open. Reshape it by a layer in front of the model."
                )
            return self.call(keras.layers.Reshape(shape, name="reshaped"), (*names, "reshaped"), (leaf,), {})

        return tree.map_structure(reshaped, inputs)

    def hand_out(self, outputs):
        """New tensors that stand for `outputs`."""
        fresh = tree.map_structure(lambda leaf: keras.KerasTensor(leaf.shape, leaf.dtype) if isinstance(leaf, keras.KerasTensor) else leaf, outputs)
        for tensor, origin in zip(tensors(fresh), tensors(outputs)):
            self._stand_for(tensor, origin)
        return fresh

    def _stand_for(self, tensor, origin):
        self._origins[id(tensor)] = (self._origin(origin), tensor)

    def _origin(self, leaf):
        return self._origins[id(leaf)][0] if id(leaf) in self._origins else leaf


def output_spec(operation, args, kwargs):
    """What an operation gives on `KerasTensor`s when it is called: a layer casts its inputs first, which `compute_output_spec` alone does not."""

    def cast(x):
        if not isinstance(x, keras.KerasTensor) or not getattr(operation, "autocast", False) or not x.dtype.startswith(("float", "bfloat")):
            return x
        return keras.KerasTensor(x.shape, dtype=operation.input_dtype, name=x.name)

    args, kwargs = tree.map_structure(cast, (args, kwargs))
    return operation.compute_output_spec(*args, **kwargs)


class _Probe(keras.Operation):
    """Takes the place of an operation in a graph and tells a tracer of its calls."""

    def __init__(self, tracer, operation, names):
        super().__init__(name=operation.name)
        self.tracer, self.operation, self.names = tracer, operation, names

    def compute_output_spec(self, *args, **kwargs):
        # A graph wires its outputs to the operation that made them, so an operation must not return a tensor of another one.
        return self.tracer.hand_out(self.tracer.call(self.operation, self.names, args, kwargs))


def _inputs(model):
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input  # a Sequential that was never called has no `input`


def _like(tensor):
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
