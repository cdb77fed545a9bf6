"""Copy a model with some of its layers replaced."""

import collections
import contextlib
import functools
import inspect
import tempfile
import warnings
from collections.abc import Callable

import keras
from keras import tree

from keras_gibbs.structure.building import zero_starts
from keras_gibbs.structure.graph import has_graph, named_walk, unwrapped


class Plain:
    """While one of its scopes is open, the wrappers of keras_gibbs are not made: their constructors give the layer itself."""

    is_on = False

    @classmethod
    @contextlib.contextmanager
    def scope(cls):
        """Make layers without their wrappers, also those that a constructor or a configuration would wrap."""
        before, cls.is_on = cls.is_on, True
        try:
            yield
        finally:
            cls.is_on = before


def clone(
    model: keras.Model,
    wrap: Callable | None = None,
    *,
    replace: Callable | None = None,
    reform: Callable | None = None,
    input_shapes: Callable | None = None,
) -> tuple[keras.Model, list[tuple]]:
    """A new, uncompiled model of the same architecture with the same weights, names and `trainable` flags, without the wrappers of keras_gibbs.

    Args:
        model: A built Sequential or Functional model. Nested ones are entered, shared layers stay shared, operations between layers are kept.
        wrap: From a layer of `model` and its copy, which is not built, to what takes its place: the copy itself or a wrapper around it. None wraps nothing.
        replace: From a layer of `model` to the built layer that takes its place with weights of its own, or None for a copy.
        reform: From a model, outer or nested, to the one whose graph is copied in its place, and whether that, a chain of layers, becomes a Sequential.
        input_shapes: From a model, outer or nested, to the shapes of its flat inputs in the copy, or None for those it has.

    Returns:
        The model, and the list of (layer, copy). A subclass of `keras.Model` keeps its class where its constructor is the functional one, a subclass of
        Sequential becomes a plain Sequential.
    """
    copies, models, flags, pairs = {}, [], [], []

    def visit(layer):
        if id(layer) not in copies:
            copies[id(layer)] = build(layer) if has_graph(layer) else copy(layer)
        return copies[id(layer)]

    def copy(layer):
        layer = unwrapped(layer)
        # An operation of the graph, or a function wrapped as a layer, has nothing to copy.
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.layers.Lambda):
            return layer
        if replace and (replacement := replace(layer)) is not None:
            flags.append((replacement, layer.trainable))
            return replacement
        copied = from_config(layer)
        building.enter_context(zero_starts(copied))
        pairs.append((layer, copied))
        return wrap(layer, copied) if wrap else copied

    def build(part):
        shapes = input_shapes(part) if input_shapes else None
        part, chain = reform(part) if reform else (part, False)
        if chain or isinstance(part, keras.Sequential):
            # A Sequential does not list its InputLayer.
            config, layers = (part.layers[0].get_config(), part.layers[1:]) if chain else (part.get_config()["layers"][0]["config"], part.layers)
            names = ("batch_shape", "dtype", "sparse", "optional", "name")
            config = config | ({"batch_shape": shapes[0]} if shapes else {})
            inputs = keras.Input(**{name: config[name] for name in names if name in config})
            built = _chain_class(part)([inputs] + [visit(layer) for layer in layers], name=part.name)
        else:
            inputs = {id(layer.output): layer for layer in part.layers if isinstance(layer, keras.layers.InputLayer)}
            shapes = iter(shapes or [tensor.shape for tensor in part.inputs])
            tensors = tree.map_structure(lambda x: _input_like(inputs.get(id(x)), x, next(shapes)), part.input)
            built = keras.models.clone_model(_uncompiled(part), input_tensors=tensors, clone_function=visit)
        models.append((built, part.trainable))
        if type(built) is not type(part) and not chain:
            _warn_of_lost_class(part, built)
        carry_attributes(part, built)
        return built

    with contextlib.ExitStack() as building:
        result = visit(model)
    # Setting the flag of a model sets those of its layers: models first, the outermost one before those in it.
    for part, trainable in models[::-1] + flags:
        set_trainable(part, trainable)
    for layer, copied in pairs:
        transfer(layer, copied)
    return result, pairs


def _chain_class(model):
    """The class of a copy of a Sequential: its own where the constructor is that of `keras.Sequential`."""
    return type(model) if isinstance(model, keras.Sequential) and type(model).__init__ is keras.Sequential.__init__ else keras.Sequential


def _warn_of_lost_class(model, built):
    base = keras.Sequential if isinstance(model, keras.Sequential) else keras.Model
    own = [name for cls in type(model).__mro__ if cls not in type(built).__mro__ for name, part in vars(cls).items() if callable(part)]
    own = [name for name in dict.fromkeys(own) if not name.startswith("__") and name not in ("get_config", "from_config")]
    if own:
        warnings.warn(
            f"The copy of model {model.name!r} is a {type(built).__name__}: the class {type(model).__name__!r} has a constructor of its own, by which a "
            f"copy cannot be made, so its {', '.join(own)} are lost. Give it the constructor of keras.{base.__name__}, or prune the parts it is made of.",
            stacklevel=5,
        )


def from_config(layer):
    """A copy of `layer` that is not built, without the wrappers of keras_gibbs in it."""
    with Plain.scope():
        return type(layer).from_config(layer.get_config())


def built_copy(layer):
    """A copy of a built `layer` with what it has learned, without the wrappers of keras_gibbs in it."""
    copied = from_config(layer)
    with zero_starts(copied):
        copied.build_from_config(layer.get_build_config())
    transfer(layer, copied)
    return copied


def transfer(source, target) -> None:
    """Give `target` what `source` has learned, its own weights and what it keeps beside them, and its `trainable` flags; likewise their parts.

    Both are built, of one architecture; wrappers of keras_gibbs in `source` do not count.
    """
    for (_, part), (_, copied) in zip(named_walk(source), named_walk(target), strict=True):
        set_trainable(copied, part.trainable)
        if has_graph(part) and type(part) is not type(copied):
            continue  # a class that was left out; what it holds beside its layers is its own affair
        store = {}
        part.save_own_variables(store)
        if store or part.weights:
            copied.load_own_variables(_Copies(store))
        if hasattr(part, "load_assets"):  # a vocabulary, say
            with tempfile.TemporaryDirectory() as folder:
                part.save_assets(folder)
                copied.load_assets(folder)


class _Copies(collections.UserDict):
    """What a layer has saved, each value copied as it is read, so that there is one copy at a time.

    On JAX two variables would share one buffer, which training of one model takes from the other; TensorFlow shares it until one of them is written.
    """

    def __getitem__(self, name):
        value = super().__getitem__(name)
        return keras.ops.copy(value) if isinstance(value, keras.Variable) else keras.ops.convert_to_numpy(value)


def carry_attributes(source, target) -> None:
    """Give `target`, a copy of the model `source`, the attributes that a user has set on that; warn of those that hold variables and were left behind."""
    left, missing = [], object()
    for name, value in vars(source).items():
        if name.startswith("_") or name in _names_of_keras() or getattr(target, name, missing) is value:
            continue
        if isinstance(value, keras.layers.Layer) and name in vars(target):
            continue  # a part of the architecture
        if isinstance(value, keras.layers.Layer) and not hasattr(target, name) and value.built:
            setattr(target, name, _beside(value))
        elif _holds_state(value):
            if name not in vars(target):
                left.append(name)
        elif isinstance(getattr(type(source), name, None), property):
            continue
        else:
            setattr(target, name, value)
    if left:
        warnings.warn(
            f"What model {source.name!r} holds in the attributes {left} has variables of its own and is not carried over to its copy. Set them on the copy.",
            stacklevel=4,
        )


def _beside(layer):
    """A copy of a layer that stands beside the graph of a model."""
    return clone(layer)[0] if has_graph(layer) else built_copy(layer)


def _holds_state(value):
    kinds = (keras.layers.Layer, keras.Variable, keras.metrics.Metric, keras.optimizers.Optimizer, keras.random.SeedGenerator)
    return any(isinstance(part, kinds) for part in tree.flatten(value))


def set_trainable(layer, trainable: bool) -> None:
    """Set the flag where it differs: setting it reaches the layers inside."""
    if layer.trainable != trainable:
        layer.trainable = trainable


@functools.cache  # not found on import, which leaves the devices of TensorFlow to be configured
def _names_of_keras():
    """The attributes that every functional model has once it is compiled and trained."""
    model = keras.Model(*[keras.Input((1,), name="probe")] * 2)
    model.compile("sgd", "mse")
    return set(vars(model)) | {"history", "stop_training", "callbacks", "autocast", "built", "name"}


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
