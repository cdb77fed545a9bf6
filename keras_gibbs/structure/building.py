"""Build a layer, and all the layers inside it, from what is known of its calls."""

import contextlib

import keras
from keras import tree

from keras_gibbs.structure.graph import walk


def is_built(layer) -> bool:
    """Whether a layer and all layers inside it are built; of a layer without a `build` of its own Keras knows only whether it was called."""
    return all(part.built for part in walk(layer))


@contextlib.contextmanager
def zero_starts(layer):
    """While this lasts, the weights that `layer` and the layers inside it build are zeros: for a copy that gets its values anyway, random ones are waste."""
    given = [(part, name, value) for part in walk(layer) for name, value in vars(part).items() if isinstance(value, keras.initializers.Initializer)]
    for part, name, _ in given:
        setattr(part, name, keras.initializers.Zeros())
    try:
        yield
    finally:
        for part, name, value in given:
            setattr(part, name, value)


def specs_of(args, kwargs):
    """The arguments of a call with `{"shape", "dtype"}` in place of every tensor: what can be saved, and built from."""

    def spec(x):
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return {"shape": list(x.shape), "dtype": keras.backend.standardize_dtype(x.dtype)}
        return x

    return {"args": tree.map_structure(spec, list(args)), "kwargs": tree.map_structure(spec, dict(kwargs))}


def build_for(layer, call) -> None:
    """Build a layer for the arguments that `specs_of` describes, by a call without values: parts that only a call builds are built, too."""
    args, kwargs = _filled(call, lambda spec: keras.KerasTensor(tuple(spec["shape"]), dtype=spec["dtype"]))
    layer(*args, **kwargs)


def inputs_for(call):
    """Inputs of a functional model for a call that `specs_of` describes: in the structure of the first argument where there is one, and the call's own
    args and kwargs."""
    args, kwargs = _filled(call, lambda spec: keras.Input(batch_shape=tuple(spec["shape"]), dtype=spec["dtype"]))
    inputs = args[0] if len(args) == 1 and not kwargs else [x for x in tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
    return inputs, args, kwargs


def _filled(call, make):
    def fill(x):
        if isinstance(x, dict) and set(x) == {"shape", "dtype"}:
            return make(x)
        if isinstance(x, dict):
            return {key: fill(value) for key, value in x.items()}
        return [fill(part) for part in x] if isinstance(x, list) else tuple(map(fill, x)) if isinstance(x, tuple) else x

    return fill(list(call["args"])), fill(dict(call["kwargs"]))


def build_by_shape(layer, input_shape) -> None:
    """Build a layer for inputs of a shape."""
    if type(layer).build is keras.layers.Layer.build and input_shape is not None:
        build_for(layer, specs_of((keras.KerasTensor(input_shape),), {}))
    else:
        layer.build(input_shape)


def call_of(layer, dtypes=None):
    """What `specs_of` would say of the calls of a built layer or subclassed model, from what Keras notes when it builds one; None where it notes nothing.

    Args:
        layer: A built layer or model.
        dtypes: The dtypes of its inputs, in their structure; by default float32, of which Keras notes nothing.
    """
    config = layer.get_build_config() or {}

    def spec(shape, dtype="float32"):
        if _is_shape(shape):
            return {"shape": [None, *shape[1:]], "dtype": dtype if isinstance(dtype, str) else "float32"}
        if isinstance(shape, dict):
            return {key: spec(value, dtype[key] if isinstance(dtype, dict) else dtype) for key, value in shape.items()}
        inner = dtype if isinstance(dtype, (list, tuple)) else [dtype] * len(shape)
        return [spec(value, one) for value, one in zip(shape, inner, strict=True)]

    if config.get("input_shape") is not None:
        return {"args": [spec(config["input_shape"], dtypes or "float32")], "kwargs": {}}
    shapes = config.get("shapes_dict")
    if not shapes:
        return None
    named = {key.removesuffix("_shape"): value for key, value in shapes.items() if value is not None}
    return {"args": [], "kwargs": {key: spec(value, dtypes.get(key, "float32") if isinstance(dtypes, dict) else "float32") for key, value in named.items()}}


def _is_shape(value):
    return isinstance(value, (list, tuple)) and all(part is None or isinstance(part, int) for part in value)
