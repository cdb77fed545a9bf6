"""A smaller model: channels that are zero leave the network."""

import keras
import numpy as np

from keras_gibbs.checks import describe_foreign
from keras_gibbs.layers import pruned_layers
from keras_gibbs.model import strip_pruning
from keras_gibbs.shrink_report import ShrinkReport, report
from keras_gibbs.structure import graph
from keras_gibbs.structure.channels import follow
from keras_gibbs.structure.constants import array_of
from keras_gibbs.structure.copying import clone
from keras_gibbs.structure.removal import Removal, removable
from keras_gibbs.structure.states import Channels
from keras_gibbs.structure.trace import trace


def shrink(model: keras.Model, *, round_to: int = 1, plan_only: bool = False) -> keras.Model | ShrinkReport:
    """A new plain Keras model without the channels that are zero, with the same predictions.

    A channel goes where the model's outputs do not depend on it: every layer that adds up channels finds it zero, has zero weights for it, or finds it
    constant and can take the constant into its bias. Channels that live and die together (through additions, shared layers, BatchNorm ...) go together.
    A layer keeps at least one channel, the model's outputs keep all of theirs, and channels that a layer reads of which nothing is known stay.

    Args:
        model: A built Sequential or Functional model, nested models and shared layers included. A pruned one is stripped first. It is not changed.
        round_to: Int of at least 1. Every layer keeps a multiple of this many channels, or all it has; of the channels that could go, those with the
            largest weights stay. 8 suits vector instructions.
        plan_only: Return the report of what would go and what could not and why, and build nothing. It is also the report of the model that the same call
            without `plan_only` returns.

    Returns:
        An uncompiled model with the same layers and names and smaller weights; with `plan_only` a `ShrinkReport`, which prints and has `.rows`.

    Raises:
        TypeError: For something that is not a Keras 3 model.
        ValueError: For a model that is subclassed or not built, or a `round_to` below 1.

    Example:

    >>> final = kg.strip_pruning(pruned)
    >>> print(kg.shrink(final, plan_only=True))
    >>> small = kg.shrink(final)
    """
    _check(model, round_to)
    plain = strip_pruning(model) if pruned_layers(model) else model
    _check_calls(plain)
    calls = trace(plain)
    removal = removable(follow(calls), round_to)
    return report(plain.name, calls, removal) if plan_only else _without(plain, removal)


def _check(model, round_to):
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    if not isinstance(round_to, (int, np.integer)) or isinstance(round_to, bool) or round_to < 1:
        raise ValueError(f"`round_to` must be an int of at least 1. Received: round_to={round_to!r}. 8 suits vector instructions, 1 removes all that can go.")
    if not graph.has_graph(model):
        raise ValueError(
            f"`shrink` rebuilds a model from its graph. Received: model={model.name!r} of class {type(model).__name__}, which has none. Build it as a "
            "Functional or Sequential model, or shrink those parts of it that are."
        )
    if not model.built:
        raise ValueError(f"`shrink` needs weights. Received: model={model.name!r}, which is not built. Build it first: `model.build((None, *shape))`.")


def _check_calls(model):
    for part in graph.walk(model):
        if graph.has_graph(part) and type(part).call not in (keras.Sequential.call, graph.FUNCTIONAL.call):
            raise ValueError(
                f"`shrink` rebuilds models from their graphs. Received: model={part.name!r} of class {type(part).__name__}, whose own `call` need not follow "
                "its graph. Move what it does into layers."
            )


def _without(model, removal):
    """A copy of `model` without the removed channels."""
    flow, changed = removal.flow, set()
    kept, added = {}, {}
    for axis in flow.axes.values():
        if not (keeps := removal.kept(axis.ids)).all():
            kept.setdefault(id(axis.variable), []).append((axis.axis, keeps))
            changed.add(id(axis.layer))
    sizes = {}
    for size in flow.sizes.values():
        if not (keeps := removal.kept(size.ids)).all():
            sizes.setdefault(id(size.layer), []).append((size.keys, int(keeps.sum())))
            changed.add(id(size.layer))
    for use in flow.uses.values():
        if use.mixing.folds and (sums := removal.added_to_bias(use)).any():
            added[id(use.mixing.variable)] = sums

    def values(variable):
        value = keras.ops.convert_to_numpy(variable)
        if id(variable) in added:
            value = (array_of(variable) + added[id(variable)].reshape(value.shape)).astype(value.dtype)
        for axis, keeps in kept.get(id(variable), ()):
            value = np.compress(keeps, value, axis)
        return value

    def replace(layer):
        owners = [layer] + graph.children(layer)
        if not any(id(owner) in changed for owner in owners):
            return None
        copy = type(layer).from_config(_resized(layer, sizes))
        if isinstance(layer, (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)):
            copy.build_from_config(layer.get_build_config())  # it reads several tensors, whose channels stay
        else:
            copy.build(input_shapes(layer)[0])
        copy.set_weights([values(variable) for variable in layer.weights])
        return copy

    def input_shapes(layer):
        return [_smaller(removal, shape, state) for shape, state in flow.inputs[id(layer)]] if id(layer) in flow.inputs else None

    return clone(model, replace=replace, input_shapes=input_shapes)[0]


def _smaller(removal: Removal, shape, state):
    """The shape of a tensor without the removed channels."""
    shape = list(shape)
    if isinstance(state, Channels):
        shape[state.axis] = int(removal.kept(state.ids).sum())
    return tuple(shape)


def _resized(layer, sizes):
    """The config of `layer` with the numbers of channels that are left, in the layer that it wraps too."""
    config = layer.get_config()
    for (key, *place), count in sizes.get(id(layer), ()):
        if place and isinstance(config[key], (list, tuple)):
            config[key] = list(config[key])
            config[key][place[0]] = count
        else:
            config[key] = count
    for key in config:
        if isinstance(start := getattr(layer, key, None), keras.initializers.Constant) and np.ndim(start.value):
            config[key] = "zeros"  # an array, of the old shape
    for key in {"layer", "backward_layer"} & set(config):
        config[key] = {name: part for name, part in config[key].items() if name != "build_config"}  # which would build it for the old shapes
    if isinstance(layer, keras.layers.TimeDistributed):
        config["layer"]["config"] = _resized(layer.layer, sizes)
    return config
