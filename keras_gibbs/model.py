"""Prune a model, strip it, and count."""

import collections
import math
import random
import re
import warnings
from collections.abc import Callable

import keras
import numpy as np

from keras_gibbs.arguments import require_seed
from keras_gibbs.budgeting import meet
from keras_gibbs.checks import check_finite, check_layer, check_method, describe_foreign
from keras_gibbs.coupling.check import check_coupled, tell_of_kept
from keras_gibbs.coupling.layers import CoupledLayer
from keras_gibbs.coupling.model import CoupledModel, coupled_layers
from keras_gibbs.coupling.plan import NOT_SELECTED, Plan, plan
from keras_gibbs.coupling.weights import running_with
from keras_gibbs.frozen import Frozen
from keras_gibbs.holder import Holder, hold, strip_subclassed
from keras_gibbs.layers import Pruned, pruned_layers
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.methods.traits import DiffersByWeight, FindsMasks, LearnsMasks, SearchesModel, method_for, scope_of, trains_weights
from keras_gibbs.numerics.noise import split
from keras_gibbs.search.checks import check_search
from keras_gibbs.search.model import SearchedModel
from keras_gibbs.structure import allocation, graph
from keras_gibbs.structure.copying import built_copy, clone, from_config
from keras_gibbs.structure.outputs import at_output
from keras_gibbs.structure.prunable import Prunable, prunable_weights, rows_of, why_not
from keras_gibbs.structure.trace import trace
from keras_gibbs.weights import MaskedWeight, common_scale


def prune(model, method: PruningMethod, *, where=None, seed: int | None = None, data=None, loss=None):
    """Wrap the layers of a model, so that `fit` prunes them.

    Args:
        model: A built Keras 3 model or one layer. Sequential and Functional models keep their class, their attributes and their `train_step` (a warning
            names what cannot be kept); nested models and shared layers are entered. A subclassed model, called on data once, is wrapped as a whole in a
            functional one, and `strip_pruning` gives back its class. The model is not changed.
        method: What to prune by, such as `kg.Gibbs(sparsity=0.9)`.
        where: Which weights: a regular expression or a list of them, searched in their paths, in the name of the layer that owns a weight and in those of
            the layers around it; or a callable from the innermost layer that owns a weight to bool. By default every weight that can be pruned.
        seed: Int, the seed of the masks; each weight's noise is its own. By default one is drawn from Python's `random`, which
            `keras.utils.set_random_seed` fixes.
        data: For methods that find their masks on data, such as `SNIP`: a tuple of arrays `(x, y)` or a data set of such batches. For a subclassed model a
            batch `x`, or `(x, y)`, that tells the dtypes of its inputs, which are float32 by default. Others ignore it.
        loss: The loss that methods take which find their masks on data: a Keras loss, its name or a function `(y_true, y_pred)`. By default the one that
            `model` is compiled with.

    Returns:
        A new, uncompiled model of the same architecture with copies of the weights and of what else its layers have learned, in which the chosen layers are
        `Pruned`, under their own names. What was left out, and why, is in `kg.summary(pruned)`; where less than half of the weights are pruned, a warning
        says so.

    Raises:
        TypeError: For something that is not a Keras 3 model or layer, or not a method.
        ValueError: For a model that is not built, already pruned, or holds weights that are not finite; for a subclassed one with training steps of its own,
            or that cannot be copied from its configuration; when `where` matches nothing that can be pruned; for a method that needs data or a loss that
            is missing, does not fit, or is not finite; for a `Budget` that cannot be met.

    Example:

    >>> pruned = kg.prune(model, kg.Gibbs(sparsity=0.9), where="conv")
    """
    check_method(method)
    require_seed(seed)
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    seed = random.randrange(2**63) if seed is None else int(seed) % 2**64
    if isinstance(method, SearchesModel):
        check_search(model, method)
    if not isinstance(model, keras.Model):
        check_layer(model)
        copy = built_copy(model) if model.built else from_config(model)
        return Pruned(copy, method, seed=split(seed, 0))
    _check_model(model)
    check_finite(model)
    coupling = _couple(model, method, where) if method.structure.coupled else None
    chosen = _choose(model, method, where) if coupling is None else {key: layer.owned for key, layer in coupling.layers.items()}
    weights = [weight for own in chosen.values() for weight in own]
    _warn_if_overwritten(model, method, weights)
    finder = method if isinstance(method, FindsMasks) else None
    method = meet(method, model, weights, seed) if finder is None else finder.find(model, weights, data, loss, seed)
    if coupling is not None:
        pruned = (SearchedModel if isinstance(method, SearchesModel) else CoupledModel).of(clone(model, _coupler_of(model, method, coupling, seed))[0])
        tell_of_kept(model, coupling)
    elif graph.has_graph(model):
        pruned, _ = clone(model, _wrapper_of(model, method, chosen, seed))
    else:
        only = [weight.path for weight in chosen[id(model)]]
        pruned = hold(model, lambda copy: Pruned(copy, method, seed=split(seed, 0), path="", only=only), data)
    for layer in graph.walk(pruned):
        if isinstance(layer, Pruned):
            layer.prepare()
        if isinstance(layer, (Frozen, Pruned)):
            layer.freeze()  # once more: `clone` sets the flags of whole models
    distribute(pruned)
    if where is None:
        _warn_if_mostly_dense(model, chosen)
    if finder is not None:
        finder.finish([masked for layer in pruned_layers(pruned) for masked in layer.masked_weights])
    return SearchedModel.of(pruned) if isinstance(method, SearchesModel) and coupling is None else pruned


def _wrapper_of(model, method, chosen, seed):
    """From a layer of `model` and its copy to the wrapper in its place, or the copy itself."""
    paths = {id(layer): path for path, layer in graph.named_walk(model)}
    positions = {id(layer): position for position, layer in enumerate(graph.leaves(model))}
    sites = _call_sites(model)

    def wrap(layer, copy):
        if weights := chosen.get(id(layer)):
            path = paths[id(layer)]
            only = [weight.path[len(path) + 1 :] for weight in weights]
            everything = len(only) == len(prunable_weights(layer))
            key = split(seed, positions[id(layer)])
            return Pruned(copy, method, seed=key, path=path, only=None if everything else only, sites=sites.get(id(layer), 1))
        return Frozen(copy) if not trains_weights(method) and layer.trainable_variables else copy

    return wrap


def _couple(model, method, where) -> Plan:
    """How the channels of a model are pruned; raises where none can be."""
    check_coupled(model, method)
    selected = selector(where)
    coupling = plan(model, selected, method.structure.of_heads)
    for weight in coupling.weights:
        method.check(weight)
    if not coupling.weights:
        raise ValueError(_nothing(model, prunable_weights(model), {path: why for path, why in coupling.skipped.items() if why != NOT_SELECTED}, where))
    return coupling


def _coupler_of(model, method, coupling, seed):
    """From a layer of `model` and its copy to the wrapper in its place, which goes with the channels of the model, or the copy itself."""
    positions = {id(layer): position for position, layer in enumerate(graph.leaves(model))}

    def wrap(layer, copy):
        if own := coupling.layers.get(id(layer)):
            return CoupledLayer(copy, method, seed=split(seed, positions[id(layer)]), path=own.path, **own.arguments())
        return Frozen(copy) if not trains_weights(method) and layer.trainable_variables else copy

    return wrap


def _call_sites(model):
    """At how many places of the graph each layer is called, by its id."""
    try:
        return collections.Counter(id(call.operation) for call in trace(model).calls)
    except ValueError:  # a graph that cannot be followed: every call draws a mask of its own
        return {}


def _warn_if_mostly_dense(model, chosen):
    """Warn where less than half of the trained weights of a model are reached."""
    reached = sum(math.prod(weight.shape) for weights in chosen.values() for weight in weights)
    total = sum(math.prod(weight.shape) for weight in model.trainable_weights) or reached
    if 2 * reached < total:
        warnings.warn(
            f"Only {reached / total:.0%} of the {total:,} weights of model {model.name!r} are pruned: `keras_gibbs.summary(pruned)` names the rest, and why. "
            "A layer of your own joins by a method `get_prunable_weights()`.",
            stacklevel=3,
        )


def _check_model(model):
    if any(isinstance(layer, Pruned) for layer in graph.walk(model)):
        raise ValueError(f"Model {model.name!r} is already pruned. Strip it first with `keras_gibbs.strip_pruning(model)`.")
    if not model.built:
        raise ValueError(
            f"Model {model.name!r} is not built, so its layers have no kernels yet. Give it an input first: `keras.Input(shape)` as its first "
            "layer, `model.build((None, *shape))`, or, where it is subclassed, a call on a batch of data."
        )


def _warn_if_overwritten(model, method, weights):
    """Warn where `method` replaces weights of a model that looks trained."""
    optimizer = getattr(model, "optimizer", None)
    stepped = optimizer is not None and int(optimizer.iterations) > 0
    biases = [bias for weight in weights if (bias := getattr(weight.owner, "bias", None)) is not None]
    biased = any(np.any(keras.ops.convert_to_numpy(bias)) for bias in biases)
    if isinstance(method, LearnsMasks) and any(map(method.replaces, weights)) and (stepped or biased):
        warnings.warn(
            f"{type(method).__name__} replaces the kernels of a random network by signed constants, and model {model.name!r} looks trained: its weights are "
            "lost in the pruned copy. Keep them with `signed_constant=False`, or train them along with `train_weights=True`.",
            stacklevel=3,
        )


def selector(where) -> Callable[[str, keras.layers.Layer], bool]:
    """`where` as a predicate on a path and the innermost layer there."""
    if where is None:
        return lambda path, layer: True
    if callable(where):
        return lambda path, layer: where(layer)
    patterns = [where] if isinstance(where, (str, re.Pattern)) else where
    if not isinstance(patterns, (list, tuple, set, frozenset)) or not all(isinstance(pattern, (str, re.Pattern)) for pattern in patterns):
        raise TypeError(f"`where` must be a regular expression, a list of them, a callable from a layer to bool, or None. Received: where={where!r}.")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"`where` must hold regular expressions. Received: where={where!r} ({error}).") from error

    def selected(path, layer):
        names = [path, layer.name, *path.split("/")[:-1]]  # the last are those of the layers that it stands in
        return any(re.search(pattern, name) for pattern in patterns for name in names)

    return selected


def _choose(model, method, where) -> dict[int, list[Prunable]]:
    """The weights to prune, by the id of the layer that is wrapped; raises where there are none, or `where` names one that the method cannot prune."""
    weights = prunable_weights(model)
    if isinstance(method, DiffersByWeight):
        method.check_weights(weights)
    selected, outputs = selector(where), protected(model, [method])
    picked = [weight for weight in weights if selected(weight.path, weight.owner)]
    if where is None and method.structure.removes_outputs and not graph.has_graph(model):
        raise ValueError(
            f"The subclassed model {model.name!r} has no graph that tells which outputs may go. Name the weights whose outputs {method.structure.brief()} may "
            f"remove with `where=`. Received: where=None. Its prunable weights are {[weight.path for weight in weights]}."
        )
    reasons = {weight.path: why_skipped(weight, method, outputs) for weight in picked}
    chosen = [weight for weight in picked if reasons[weight.path] is None]
    if where is not None and chosen:
        for weight in picked:
            method_for(method, weight).check(weight)
    if not chosen:
        raise ValueError(_nothing(model, weights, reasons, where))
    leaves = graph.leaves(model) if graph.has_graph(model) else [model]
    holders = {id(weight.variable): leaf for leaf in leaves for weight in prunable_weights(leaf)}
    by_holder = {}
    for weight in chosen:
        by_holder.setdefault(id(holders[id(weight.variable)]), []).append(weight)
    return by_holder


def _nothing(model, weights, reasons, where):
    selected, owners = selector(where), {id(weight.owner) for weight in weights}
    why = [f"{path}: {reason}" for path, reason in reasons.items()]
    for path, layer in graph.named_walk(model):
        if layer.weights and not graph.children(layer) and id(layer) not in owners and selected(path, layer):
            why.append(f"{path}: {why_none(layer)}")
    why = "; ".join(why) or f"no weight matches where={where!r}"
    return f"There is nothing to prune in model {model.name!r} ({why}). Its prunable weights are {[weight.path for weight in weights]}."


def why_none(layer) -> str:
    """Why a built layer has no weights that can be pruned, in a few words."""
    return (why_not(layer) if rows_of(layer) else None) or f"{type(layer).__name__} has no weights that can be pruned"


def protected(model, methods: list[PruningMethod]) -> set[int]:
    """The ids of the layers that feed an output of the model, and of those inside them, where one of `methods` removes outputs."""
    if not any(method.structure.removes_outputs and not method.structure.coupled for method in methods) or not graph.has_graph(model):
        return set()
    outputs = at_output(model)
    return {id(part) for leaf in graph.leaves(model) if id(graph.unwrapped(leaf)) in outputs for part in graph.walk(leaf)}


def why_skipped(weight: Prunable, method: PruningMethod, outputs: set[int]) -> str | None:
    """Why `method` leaves `weight` as it is; None where it can prune it. `outputs` are the ids of the layers that feed an output of the model."""
    if id(weight.owner) in outputs:
        return "feeds an output of the model, which would lose a unit"
    try:
        method_for(method, weight).check(weight)
    except ValueError as error:
        return str(error).split(" Received: ")[0]
    return None


def masked_weights(model) -> dict[str, MaskedWeight]:
    """The pruned weights of a model or layer, by path."""
    by_variable = _masked_by_variable(model)
    return {weight.path: by_variable[id(weight.variable)] for weight in prunable_weights(model) if id(weight.variable) in by_variable}


def distribute(model, layers: list | None = None, progress: float | None = None) -> None:
    """Let the weights of a method with another `scope` than `"layer"` share out what is kept.

    Each weight is told how many groups it keeps; which ones, it finds itself, so that the total stays exact while the weights move on.

    Args:
        model: A pruned model.
        layers: Its wrapped layers; all of them by default.
        progress: How far training has come; as far as the layers say by default.
    """
    layers = [layer for layer in (pruned_layers(model) if layers is None else layers) if layer.built and scope_of(layer.method) != "layer"]
    for method in {layer.method for layer in layers}:
        members = [layer for layer in layers if layer.method == method]
        now = max(0.0, members[0].progress if progress is None else progress)
        holds = method.settle is not None and now >= method.settle
        weights = [masked for layer in members for masked in layer.masked_weights if not (holds and masked.settled)]
        sparsity = method.schedules()["sparsity"](now)
        for masked, count in zip(weights, _shares(method, weights, sparsity), strict=True):
            masked.set_kept(count)
        for layer in members:
            layer.note_change()


def _shares(method, weights, sparsity):
    if not weights:
        return []
    scale = common_scale(weights) if getattr(getattr(method, "criterion", None), "squares", False) else 1.0
    scores = [masked.scores(scale) for masked in weights] if allocation.needs_scores(method.scope) else None
    members, groups = [masked.weight for masked in weights], [masked.groups for masked in weights]
    final, least = method.schedules()["sparsity"](1.0), int(method.structure.coupled)
    return allocation.counts(method.scope, sparsity, final, members, groups, scores, method.floor, least)


def strip_pruning(model):
    """The plain Keras model that a pruned one stands for.

    Args:
        model: A model from `prune`, one whose constructor wraps its layers, or one `Pruned` layer. It is not changed.

    Returns:
        A new, uncompiled model with the layers, names and `trainable` flags that the model had before it was pruned, whose kernels are multiplied by
        their deterministic masks. It predicts what the pruned model predicts, and needs keras_gibbs no more. A plain model gives a plain copy.

        Its zeros stay under `quantize("int8")`. Training goes on over all weights; with `enable_lora` the base kernel keeps its zeros, and the sum that the
        layer runs with, which a merge writes, is dense.

    Raises:
        ValueError: For a subclassed model that cannot be copied from its configuration.

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
    _warn_of_nan(model)
    if not isinstance(model, keras.Model):
        return _strip_layer(model)
    if isinstance(model, Holder) or not graph.has_graph(model):
        masked = _masked_by_variable(model)
        inner, plain = strip_subclassed(model)
        _write_masks(inner, plain, masked)
        return plain

    def reform(part):
        return (part.plain(), part.sequential) if isinstance(part, CoupledModel) else (part, False)

    plain, pairs = clone(model, reform=reform)
    masked, coupled = _masked_by_variable(model), _coupled_as_used(model)
    for layer, copy in pairs:
        if isinstance(layer, keras.layers.Layer):
            _write_masks(layer, copy, masked)
            for variable, copied in zip(layer.weights, copy.weights, strict=True):
                if id(variable) in coupled:
                    copied.assign(coupled[id(variable)])
    return plain


def _warn_of_nan(model):
    weights = [masked for layer in pruned_layers(model) if layer.built for masked in layer.masked_weights]
    broken = [masked.path for masked in weights if not np.isfinite(keras.ops.convert_to_numpy(masked.value())).all()]
    if broken:
        warnings.warn(
            f"Weights {broken} hold NaN or infinite values: training has diverged, and which of them stay says nothing. Their masks keep as many as the "
            "method says. Go back to an earlier checkpoint, and train with a smaller learning rate or `clipnorm`.",
            stacklevel=3,
        )


def _masked_by_variable(layer):
    return {id(masked.variable): masked for wrapper in pruned_layers(layer) if wrapper.built for masked in wrapper.members}


def _coupled_as_used(model):
    """What inference runs with of the variables that go with channels, by their ids."""
    layers = coupled_layers(model)
    with running_with({id(masked): masked.final() for layer in layers for masked in layer.masked_weights}):
        return {id(part.variable): part.masked() for layer in layers for part in layer.parts}


def _strip_layer(layer):
    inner = graph.unwrapped(layer)
    if not inner.built:
        return from_config(inner)
    plain = built_copy(inner)
    _write_masks(inner, plain, _masked_by_variable(layer))
    return plain


def _write_masks(layer, copy, masked):
    """Multiply the weights of `copy`, a plain layer, by the masks of those of `layer`."""
    for weight, plain in zip(prunable_weights(layer), prunable_weights(copy), strict=True):
        own = masked.get(id(weight.variable))
        if own and not own.method.structure.coupled:
            plain.variable.assign(own.masked())
            if own.bias is not None:
                plain.owner.bias.assign(own.bias * own.bias_mask())


def sparsity(model, where=None) -> float:
    """Fraction of zeros over all weights that could be pruned, wrapped or not.

    Args:
        model: A pruned, stripped or plain model, or a layer. A pruned model counts with its deterministic masks, and has the sparsity of its stripped
            form.
        where: Narrows the weights that count, as in `prune`.

    Returns:
        Float in [0, 1].

    Example:

    >>> kg.sparsity(pruned) == kg.sparsity(kg.strip_pruning(pruned))
    True
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    selected = selector(where)
    counted = [(weight, kept) for weight, kept, _ in counted_weights(model) if selected(weight.path, weight.owner)]
    total = sum(math.prod(weight.shape) for weight, _ in counted)
    if not total:
        raise ValueError(f"No prunable weight counts. Received: where={where!r} for model {model.name!r}.")
    return 1.0 - sum(kept for _, kept in counted) / total


def counted_weights(model) -> list[tuple[Prunable, int, MaskedWeight | None]]:
    """Every weight of a built model that could be pruned, how many of it are not 0 as inference uses it, and what masks it; None where nothing does."""
    masked, coupled = _masked_by_variable(model), _coupled_as_used(model)
    root = model.name if not isinstance(model, keras.Model) else ""
    found = []
    for weight in prunable_weights(model, root):
        own, key = masked.get(id(weight.variable)), id(weight.variable)
        kept = own.count() if own and key not in coupled else int(np.count_nonzero(keras.ops.convert_to_numpy(coupled.get(key, weight.variable))))
        found.append((weight, kept, own))
    return found
