"""What a layer and a method must be to be wrapped, and the errors that say so."""

import keras
import numpy as np

from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.structure.building import is_built
from keras_gibbs.structure.graph import children, walk
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.structure.prunable import ATTENTION, TABLE, prunable_weights, rows_of, why_not


def check_method(method) -> None:
    """Raise `TypeError` unless `method` is a pruning method."""
    if not isinstance(method, PruningMethod):
        raise TypeError(f"`method` must be a pruning method such as `keras_gibbs.Gibbs(sparsity=0.9)`. Received: method={method!r}.")


def check_layer(layer) -> None:
    """Raise unless `layer` is a Keras 3 layer that can be wrapped."""
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(describe_foreign(layer))
    if any(getattr(type(part), "masks_weights", False) for part in walk(layer)):
        raise ValueError(f"Layer {layer.name!r} is already wrapped, or has wrapped layers inside. Received: {layer!r}. Strip it first: `strip_pruning(...)`.")
    reason = why_unsupported(layer)
    if reason:
        raise ValueError(f"Layer {layer.name!r} cannot be pruned: {reason}. {supported()}")


def why_unsupported(layer) -> str | None:
    """Why a layer has no weights that `Pruned` could mask, in a few words; None where it has, or where that shows only once it is built."""
    if is_built(layer):
        if prunable_weights(layer):
            return None
        reasons = [reason for part in walk(layer) if rows_of(part) and (reason := why_not(part))]
        return reasons[0] if reasons else f"{type(layer).__name__} has no weights that can be pruned"
    known = rows_of(layer) or children(layer) or is_a(layer, *ATTENTION) or hasattr(layer, "get_prunable_weights") or isinstance(layer, keras.Model)
    return None if known or type(layer).__module__.partition(".")[0] != "keras" else f"{type(layer).__name__} has no weights that can be pruned"


def supported() -> str:
    """The sentence that names what can be pruned."""
    return f"Supported are {', '.join(TABLE)}, layers made of them, and layers with a method `get_prunable_weights()`."


def check_finite(layer) -> None:
    """Raise `ValueError` where a weight of `layer` is NaN or infinite."""
    for weight in layer.weights:
        if not np.isfinite(weight.numpy()).all():
            name = getattr(weight, "path", weight.name)
            raise ValueError(f"Weight {name!r} holds NaN or infinite values, which have no rank. Prune the model from a healthy checkpoint.")


def describe_foreign(thing) -> str:
    """The message for an object that is not of Keras 3: which Keras it is, and the way out."""
    module = type(thing).__module__
    if module.startswith(("tf_keras", "keras.engine", "keras.src.engine", "tensorflow.python.keras")):
        return (
            f"keras_gibbs prunes Keras 3 models; this is a Keras 2 object. Received: {type(thing).__name__} of {module.split('.')[0]}. "
            "Use `keras_gibbs.tfmot.prune` for tf_keras, or build the model with `import keras` (Keras 3)."
        )
    return f"Expected a Keras 3 model or layer. Received: {thing!r} of type {type(thing).__name__}."
