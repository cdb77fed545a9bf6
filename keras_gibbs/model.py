"""Prune a model, strip it, and count."""

import random
import re
import warnings

import keras
import numpy as np

from keras_gibbs.frozen import Frozen
from keras_gibbs.layers import SUPPORTED, Pruned, check_finite, check_layer, describe_foreign, pruned_layers, why_unsupported
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.numerics import ranking
from keras_gibbs.numerics.noise import split
from keras_gibbs.search.checks import check_search
from keras_gibbs.search.model import SearchedModel
from keras_gibbs.structure import allocation as sharing
from keras_gibbs.structure import graph


def prune(model, method: PruningMethod, *, where=None, seed: int | None = None):
    """Wrap the layers of a model, so that `fit` prunes them.

    Args:
        model: A built Keras 3 Sequential or Functional model (nested models and shared layers included), or one layer. It is not changed.
        method: What to prune by, such as `kg.Gibbs(sparsity=0.9)`.
        where: Which layers: a regular expression or a list of them, searched in the layer names, or a callable from a layer to bool. By default every
            layer that can be pruned.
        seed: Int, the seed of the masks; each layer's noise is its own. By default one is drawn from Python's `random`, which
            `keras.utils.set_random_seed` fixes.

    Returns:
        A new, uncompiled model of the same architecture with copies of the weights, in which the chosen layers are `Pruned`, under their own names.
        What was left out, and why, is in `kg.summary(pruned)`.

    Raises:
        TypeError: For something that is not a Keras 3 model or layer, or not a method.
        ValueError: For a model that is not built, subclassed, already pruned, or holds weights that are not finite; when `where` matches nothing that
            can be pruned.

    Example:

    >>> pruned = kg.prune(model, kg.Gibbs(sparsity=0.9), where="conv")
    """
    if not isinstance(method, PruningMethod):
        raise TypeError(f"`method` must be a pruning method such as `keras_gibbs.Gibbs(sparsity=0.9)`. Received: method={method!r}.")
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    seed = random.randrange(2**63) if seed is None else int(seed) % 2**64
    if method.searches_model:
        check_search(model, method)
    if not isinstance(model, keras.Model):
        check_layer(model)
        return _wrap(model, method, split(seed, 0))
    _check_model(model)
    check_finite(model)
    chosen = _choose(model, method, where)
    _warn_if_overwritten(model, method, chosen)
    positions = {id(layer): position for position, layer in enumerate(graph.leaves(model))}

    def replace(layer):
        if id(layer) in chosen:
            return _wrap(layer, method, split(seed, positions[id(layer)]))
        return Frozen(_copy(layer)) if not method.trains_weights and layer.trainable_variables else None

    pruned = graph.clone(model, replace)
    for layer in graph.walk(pruned):
        if isinstance(layer, (Frozen, Pruned)):
            layer.freeze()  # once more: `clone` sets the flags of whole models
    distribute(pruned)
    return SearchedModel.of(pruned) if method.searches_model else pruned


def _check_model(model):
    if any(isinstance(layer, Pruned) for layer in graph.walk(model)):
        raise ValueError(f"Model {model.name!r} is already pruned. Strip it first with `keras_gibbs.strip_pruning(model)`.")
    if not graph.has_graph(model):
        raise ValueError(
            f"`prune` rebuilds a model from its graph, and the subclassed model {type(model).__name__!r} has none. Wrap its layers where its "
            "constructor makes them:\n\n    self.dense = keras_gibbs.Pruned(keras.layers.Dense(128), keras_gibbs.Gibbs(sparsity=0.9))\n"
        )
    if not model.built:
        raise ValueError(
            f"Model {model.name!r} is not built, so its layers have no kernels yet. Give it an input first: `keras.Input(shape)` as its first "
            "layer, or `model.build((None, *shape))`."
        )


def _warn_if_overwritten(model, method, chosen):
    """Warn where `method` replaces kernels of a model that looks trained."""
    layers = [layer for layer in graph.leaves(model) if id(layer) in chosen]
    optimizer = getattr(model, "optimizer", None)
    stepped = optimizer is not None and int(optimizer.iterations) > 0
    biased = any(layer.bias is not None and np.any(keras.ops.convert_to_numpy(layer.bias)) for layer in layers)
    if any(map(method.replaces_kernel, layers)) and (stepped or biased):
        warnings.warn(
            f"{type(method).__name__} replaces the kernels of a random network by signed constants, and model {model.name!r} looks trained: its weights are "
            "lost in the pruned copy. Keep them with `signed_constant=False`, or train them along with `train_weights=True`.",
            stacklevel=3,
        )


def selector(where):
    """`where` as a predicate on layers."""
    if where is None:
        return lambda layer: True
    if callable(where):
        return where
    patterns = [where] if isinstance(where, (str, re.Pattern)) else list(where)
    return lambda layer: any(re.search(pattern, layer.name) for pattern in patterns)


def _choose(model, method, where) -> set[int]:
    """The ids of the layers to wrap; raises where there are none, or `where` names one that the method cannot prune."""
    selected, outputs = selector(where), _protected(model, method)
    everything = graph.leaves(model)
    names = [layer.name for layer in everything if isinstance(layer, SUPPORTED)]
    method.check_names(names)
    leaves = [layer for layer in everything if selected(layer)]
    reasons = [(layer, why_skipped(layer, method, outputs)) for layer in leaves if layer.weights]
    chosen = [layer for layer, reason in reasons if reason is None]
    if where is not None and chosen:
        for layer in leaves:
            if isinstance(layer, SUPPORTED):
                method.for_layer(layer).check(layer, layer.kernel.shape)
    if not chosen:
        why = "; ".join(f"{layer.name}: {reason}" for layer, reason in reasons) or f"no layer matches where={where!r}"
        raise ValueError(f"There is nothing to prune in model {model.name!r} ({why}). Its layers with a kernel are {names}.")
    return {id(layer) for layer in chosen}


def _protected(model, method) -> set[int]:
    return graph.at_output(model) if method.structure.removes_outputs else set()


def why_skipped(layer, method: PruningMethod, outputs: set[int]) -> str | None:
    """Why `method` leaves `layer` as it is; None where it can prune it. `outputs` are the layers that feed an output of the model."""
    if why_unsupported(layer):
        return why_unsupported(layer)
    if id(layer) in outputs:
        return "feeds an output of the model, which would lose a unit"
    try:
        method.for_layer(layer).check(layer, layer.kernel.shape)
    except ValueError as error:
        return str(error).split(" Received: ")[0]
    return None


def _copy(layer):
    """A built copy of `layer` with its weights."""
    copy = type(layer).from_config(layer.get_config())
    if layer.built:
        copy.build_from_config(layer.get_build_config())
        copy.set_weights(layer.get_weights())
    return copy


def _wrap(layer, method, seed):
    return Pruned(_copy(layer), method.for_layer(layer), seed=seed)


def distribute(model, layers: list[Pruned] | None = None) -> None:
    """Let the layers of a method with another `scope` than `"layer"` share out what is kept.

    Each layer is told how many groups it keeps; which ones, it finds itself, so that the total stays exact while the weights move on.
    """
    layers = pruned_layers(model) if layers is None else layers
    layers = [layer for layer in layers if layer.built and layer.method.scope != "layer" and not layer.settled]
    for method in {layer.method for layer in layers}:
        members = [layer for layer in layers if layer.method == method]
        sparsity = method.anneal(max(0.0, members[0].progress))["sparsity"]
        for layer, count in zip(members, _shares(method, members, sparsity), strict=True):
            layer.set_kept(count)


def _shares(method, layers, sparsity):
    if method.scope == "shape":
        return sharing.by_shape([layer.kernel_shape for layer in layers], [layer.groups for layer in layers], 1.0 - sparsity)
    scores = [layer.scores() for layer in layers]
    least = [max(1, int(method.floor * (1.0 - sparsity) * score.size)) if method.floor else 0 for score in scores]
    return sharing.by_score(scores, ranking.count_kept(sum(map(len, scores)), sparsity), least)


def strip_pruning(model):
    """The plain Keras model that a pruned one stands for.

    Args:
        model: A model from `prune`, or one `Pruned` layer. It is not changed.

    Returns:
        A new, uncompiled model with the layers, names and `trainable` flags that the model had before it was pruned, whose kernels are multiplied by
        their deterministic masks. It predicts what the pruned model predicts, and needs keras_gibbs no more. A plain model gives a plain copy.

    Raises:
        ValueError: For a subclassed model.

    Example:

    >>> final = kg.strip_pruning(pruned)
    >>> final.save("model.keras")
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    waiting = [layer.name for layer in pruned_layers(model) if layer.waits()]
    if waiting:
        warnings.warn(
            f"The schedules of {waiting} have not come to their end: the model was not trained with `GibbsPruningCallback()`, or these are weights from the "
            "midst of training, restored. Its masks are those of that moment. Pass the callback to `fit`; with a scheduled sparsity, restore later weights.",
            stacklevel=2,
        )
    if isinstance(model, Pruned):
        return _strip(model)
    if not graph.has_graph(model):
        raise ValueError(
            f"`strip_pruning` rebuilds a model from its graph, and the subclassed model {type(model).__name__!r} has none. Build it once more "
            "without the wrappers, and give each layer the weights of `keras_gibbs.strip_pruning(wrapped_layer)`."
        )

    def reform(part):
        return (part.plain(), part.sequential) if isinstance(part, SearchedModel) else (part, False)

    return graph.clone(model, lambda layer: _strip(layer) if isinstance(layer, (Frozen, Pruned)) else None, reform)


def _strip(wrapper):
    plain = _copy(wrapper.layer)
    if isinstance(wrapper, Pruned) and wrapper.built:
        plain.kernel.assign(masked_kernel(wrapper))
        if (units := wrapper.unit_mask()) is not None and plain.bias is not None:
            plain.bias.assign(plain.bias * keras.ops.cast(keras.ops.reshape(units, plain.bias.shape), plain.bias.dtype))
    plain.trainable = wrapper.layer.trainable
    return plain


def sparsity(model, where=None) -> float:
    """Fraction of zeros over all kernels that could be pruned, wrapped or not.

    Args:
        model: A pruned, stripped or plain model, or a layer. A pruned model counts with its deterministic masks, and has the sparsity of its stripped
            form.
        where: Narrows the layers that count, as in `prune`.

    Returns:
        Float in [0, 1].

    Example:

    >>> kg.sparsity(pruned) == kg.sparsity(kg.strip_pruning(pruned))
    True
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    selected = selector(where)
    kernels = [masked_kernel(layer) for layer in kernel_layers(model) if selected(layer)]
    total = sum(kernel.size for kernel in kernels)
    if not total:
        raise ValueError(f"No layer with a kernel counts. Received: where={where!r} for model {model.name!r}.")
    return 1.0 - sum(int(np.count_nonzero(kernel)) for kernel in kernels) / total


def kernel_layers(model) -> list[keras.layers.Layer]:
    """The built layers with a kernel that could be pruned: wrappers for the wrapped ones, the layers themselves for the rest."""
    layers = list(graph.walk(model))
    wrapped = {id(layer.layer) for layer in layers if isinstance(layer, Pruned)}
    return [layer for layer in layers if layer.built and isinstance(layer, (Pruned, *SUPPORTED)) and id(layer) not in wrapped]


def masked_kernel(layer) -> np.ndarray:
    """The kernel as inference uses it."""
    if not isinstance(layer, Pruned):
        return keras.ops.convert_to_numpy(layer.kernel)
    masked = keras.ops.convert_to_numpy(layer.masked_kernel())
    return masked + masked.dtype.type(0)  # -0 becomes 0: files with zeros of one kind compress better
