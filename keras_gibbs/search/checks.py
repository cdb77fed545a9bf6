"""What a search over subnetworks needs of a model and of its data, and the errors that say so."""

import keras
import numpy as np
from keras import ops

from keras_gibbs.structure import graph
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.structure.outputs import at_output, output_layer


def ends_in(model) -> str | None:
    """The name of the activation on the output of a model with one output; None where it cannot be told."""
    layer = output_layer(model)
    return "softmax" if is_a(layer, keras.layers.Softmax) else getattr(getattr(layer, "activation", None), "__name__", None)


def check_energy_batch(energy_batch, size):
    if energy_batch is not None and size < energy_batch:
        raise ValueError(f"`energy_batch` must not be larger than a batch. Received: energy_batch={energy_batch} with batches of {size}.")


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raise `ValueError` unless `labels` are class numbers below `classes`, or one-hot rows of that many."""
    way_out = "For other targets pass `EDropout(objective=...)` an objective of your own."
    if labels.ndim == 2 and labels.shape[1] == classes and classes > 1:
        if not (labels.min() >= 0 and np.allclose(labels.sum(axis=1), 1, atol=1e-3)):
            raise ValueError(f"Labels of the shape of the outputs must be one-hot rows, or probabilities. Received: rows such as {labels[0]}. {way_out}")
        return
    if labels.size != len(labels) or not np.equal(np.mod(labels, 1), 0).all():
        raise ValueError(f"Labels must be class numbers `(n,)` or one-hot rows `(n, {classes})`. Received: labels of shape {labels.shape}. {way_out}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"Labels must lie in 0 ... {classes - 1}, the classes of the model. Received: labels from {labels.min()} to {labels.max()}.")


def check_search(model, method) -> None:
    """Raise `ValueError` where `method` cannot search the Keras 3 `model` for a subnetwork."""
    if keras.backend.backend() not in ("tensorflow", "jax"):
        raise ValueError(f"EDropout trains on TensorFlow and JAX. Received: the {keras.backend.backend()} backend.")
    if not isinstance(model, keras.Model):
        raise ValueError(alone(model.name))
    if graph.has_graph(model):
        check_class(model, keras.Sequential, graph.FUNCTIONAL)
    if not (graph.has_graph(model) and model.built):
        return  # `prune` has words for these
    check_outputs(model, method)
    if method.population_chunk > 1 and method.structure.coupled:
        raise ValueError(
            "Candidates cannot share a forward pass where several layers make one channel. "
            f"Received: population_chunk={method.population_chunk}, structure={method.structure!r}. Use `population_chunk=1`."
        )
    if method.population_chunk > 1:
        _check_stacked(model)


def alone(name: str) -> str:
    """The message for a single layer called `name`."""
    return f"EDropout searches a whole model, and cannot prune a layer by itself. Received: layer {name!r}. Pass the model, and the layer by `where=`."


def check_class(model, *classes: type) -> None:
    """Raise `ValueError` unless `model` is of one of the `classes` themselves: the search brings a `train_step`, and a subclass may have its own."""
    if type(model) not in classes:
        raise ValueError(
            f"EDropout needs a `train_step` of its own, which the class {type(model).__name__!r} of model {model.name!r} may have, too. Pass a plain copy: "
            f"`{classes[0].__module__.partition('.')[0]}.Model(model.inputs, model.outputs)`."
        )


def check_outputs(model, method) -> None:
    """Raise `ValueError` where the objective compares class logits and `model`, of Keras 3 or 2, gives none."""
    if not getattr(method.objective, "needs_classes", False):
        return
    rule = "The energy of EDropout compares class logits: one output `(batch, classes)` of two classes or more"
    way_out = "Pass `EDropout(objective=...)` a callable from a `keras_gibbs.search.objectives.Context` to energies (S,)."
    shapes = [tuple(output.shape) for output in model.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or (shapes[0][1] or 0) < 2:
        raise ValueError(f"{rule}. Received: outputs of shape {', '.join(map(str, shapes))}. {way_out}")
    if ends_in(model) == "sigmoid":
        raise ValueError(f"{rule}, and these are sigmoids, each a decision of its own. {way_out}")


def _check_stacked(model):
    """Candidates that share a pass have their units masked on the way out: these must be 0 when removed, on the last axis, and nothing may draw noise."""
    for layer in graph.walk(model):
        if _has_seed(layer) and getattr(layer, "rate", None) != 0:
            raise ValueError(f"Candidates cannot share a forward pass where layer {layer.name!r} draws noise. Use `population_chunk=1`.")
    protected = at_output(model)
    for layer in graph.leaves(model):
        if id(layer) in protected or not hasattr(layer, "kernel"):
            continue
        activation = getattr(layer, "activation", None)
        if activation is not None and abs(float(activation(ops.zeros((1,)))[0])) > 0:
            why = f"is not 0 when it is removed, since {activation.__name__}(0) != 0"
        elif getattr(layer, "data_format", None) == "channels_first" or isinstance(layer, keras.layers.EinsumDense):
            why = "is not an entry of the last axis"
        else:
            continue
        raise ValueError(f"Candidates cannot share a forward pass where a unit of layer {layer.name!r} {why}. Use `population_chunk=1`.")


def _has_seed(layer):
    return any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())
