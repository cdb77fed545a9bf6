"""Walk the layers of a model, and name them."""

import re
from collections.abc import Iterator

import keras

from keras_gibbs.structure.kinds import is_a

FUNCTIONAL = type(keras.Model(*[keras.Input((1,), name="probe")] * 2))  # the class of a functional model is not public


def has_graph(layer) -> bool:
    """Whether `layer` is a model, of Keras 3 or 2, whose graph Keras knows and can rebuild: Sequential or Functional."""
    return is_a(layer, keras.Sequential, FUNCTIONAL)


def unwrapped(layer):
    """The layer that a wrapper of keras_gibbs runs, or the model that one of its holders holds; any other layer itself."""
    while True:
        if getattr(type(layer), "wraps_for_pruning", False):
            layer = layer.layer
        elif getattr(type(layer), "holds_one_model", False):
            layer = layer.held
        else:
            return layer


def children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside `layer`, of Keras 3 or 2: those of a model, or those another layer holds as attributes, alone or in lists and dicts."""
    if is_a(layer, keras.Model):
        return layer.layers
    return list({id(child): child for child in _held(vars(layer))}.values())


def _held(value):
    if is_a(value, keras.layers.Layer):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _held(part)


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


def named_walk(layer: keras.layers.Layer, root: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """The walk through `layer` as it is without the wrappers of keras_gibbs, each layer with its path.

    A path is the names of the layers from below the root to the layer, `"encoder/block/dense"`. It is the same before a model is pruned and after, once it
    is loaded, and when it is stripped: in a graph names are kept, and below a layer that makes its own parts the number that Keras appends to a name of
    its own making, which differs from copy to copy, is left out. Of siblings of one name the second gets `_1`, and so on in the order of the walk.
    """
    seen = set()

    def visit(path, layer, named):
        seen.add(id(layer))
        yield path, layer
        named, taken = named and has_graph(layer), set()
        for child in map(unwrapped, children(layer)):
            if id(child) in seen:
                continue
            name = unique(child.name if named else lasting_name(child), taken)
            yield from visit(f"{path}/{name}" if path else name, child, named)

    yield from visit(root, unwrapped(layer), True)


def lasting_name(layer) -> str:
    """The name of a layer, less the number that Keras appends where it makes the name itself."""
    words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", type(layer).__name__))
    made = re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()
    found = re.fullmatch(rf"((forward_|backward_)?{made})(_\d+)?", layer.name)  # Bidirectional puts its word before the name
    return found[1] if found else layer.name


def unique(name: str, taken: set[str]) -> str:
    """`name`, or with `_1`, `_2`, ... behind it the first that is not among `taken`; added to them."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a Sequential or Functional model that a copy can replace, in order, nested models entered, each once."""
    found = {}
    for layer in model.layers:
        for leaf in leaves(layer) if has_graph(layer) else [layer]:
            found.setdefault(id(leaf), leaf)
    return list(found.values())
