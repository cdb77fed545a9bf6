"""Walk the layers of a model, and copy a model with some of its layers replaced."""

import inspect
from collections.abc import Callable, Iterator

import keras
from keras import tree

from keras_gibbs.structure.layouts import is_a

FUNCTIONAL = type(keras.Model(*[keras.Input((1,), name="probe")] * 2))  # the class of a functional model is not public
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


def has_graph(layer) -> bool:
    """Whether `layer` is a model whose graph Keras knows and can rebuild: Sequential or Functional."""
    return isinstance(layer, (keras.Sequential, FUNCTIONAL))


def walk(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """`layer` and all layers inside it, outermost first, each once: nested models, subclassed ones, and layers held as attributes."""
    seen = set()

    def visit(layer):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer
            for child in children(layer):
                yield from visit(child)

    yield from visit(layer)


def children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside `layer`: those of a model, or those another layer holds as attributes, alone or in lists and dicts."""
    if isinstance(layer, keras.Model):
        return layer.layers
    return list(_held(vars(layer)))


def _held(value):
    if isinstance(value, keras.layers.Layer):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _held(part)


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a Sequential or Functional model that `clone` can replace, in order, nested models entered, each once."""
    found = {}
    for layer in model.layers:
        for leaf in leaves(layer) if has_graph(layer) else [layer]:
            found.setdefault(id(leaf), leaf)
    return list(found.values())


def clone(
    model: keras.Model,
    replace: Callable[[keras.layers.Layer], keras.layers.Layer | None],
    reform: Callable | None = None,
    input_shapes: Callable | None = None,
) -> keras.Model:
    """A new, uncompiled model of the same architecture with the same weights, names and `trainable` flags.

    Args:
        model: A built Sequential or Functional model. Nested ones are entered, shared layers stay shared, operations between layers are kept.
        replace: Gives the built layer that takes the place of `layer`, or None for a plain copy.
        reform: From a model, outer or nested, to the one whose graph is copied in its place, and whether that, a chain of layers, becomes a Sequential.
        input_shapes: Gives the shapes of a model's flat inputs in its copy, or None for those it has.

    Returns:
        A model of the same class; a subclass of `keras.Model` keeps its class where its constructor is the functional one, a subclass of Sequential becomes
        a plain Sequential.
    """
    copies, models, originals = {}, [], []

    def visit(layer):
        if id(layer) not in copies:
            copies[id(layer)] = build(layer) if has_graph(layer) else copy(layer)
        return copies[id(layer)]

    def copy(layer):
        # An operation of the graph, or a function wrapped as a layer, has nothing to copy.
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.layers.Lambda):
            return layer
        copied = replace(layer)
        if copied is None:
            copied = type(layer).from_config(layer.get_config())
            originals.append((layer, copied))
        flags.append((copied, copied.trainable))
        return copied

    def build(part):
        shapes = input_shapes(part) if input_shapes else None
        part, chain = reform(part) if reform else (part, False)
        if chain or isinstance(part, keras.Sequential):
            # A Sequential does not list its InputLayer.
            config, layers = (part.layers[0].get_config(), part.layers[1:]) if chain else (part.get_config()["layers"][0]["config"], part.layers)
            names = ("batch_shape", "dtype", "sparse", "optional", "name")
            config = config | ({"batch_shape": shapes[0]} if shapes else {})
            inputs = keras.Input(**{name: config[name] for name in names if name in config})
            built = keras.Sequential([inputs] + [visit(layer) for layer in layers], name=part.name)
        else:
            inputs = {id(layer.output): layer for layer in part.layers if isinstance(layer, keras.layers.InputLayer)}
            shapes = iter(shapes or [tensor.shape for tensor in part.inputs])
            tensors = tree.map_structure(lambda x: _input_like(inputs.get(id(x)), x, next(shapes)), part.input)
            built = keras.models.clone_model(_uncompiled(part), input_tensors=tensors, clone_function=visit)
        models.append((built, part.trainable))
        return built

    flags = []
    result = visit(model)
    for layer, copied in originals:
        if layer.weights:
            copied.set_weights(layer.get_weights())
        if hasattr(copied, "finalize_state"):  # Normalization keeps figures beside its weights
            copied.finalize_state()
    # Setting the flag of a model sets those of its layers: models first, the outermost one before those in it.
    for part, trainable in models[::-1] + flags:
        if part.trainable != trainable:
            part.trainable = trainable
    return result


def _input_like(layer, tensor, shape):
    if layer is None:
        return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)
    return keras.Input(batch_shape=shape, dtype=layer.dtype, sparse=layer.sparse, optional=layer.optional, name=layer.name)


def _uncompiled(model):
    """The same functional model without its compilation, which `clone_model` would copy. The layers are shared."""
    if not model.compiled:
        return model
    arguments = inspect.getfullargspec(type(model).__init__).args[1:3]
    cls = type(model) if arguments == ["inputs", "outputs"] else keras.Model
    return cls(model.input, model.output, name=model.name)


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
