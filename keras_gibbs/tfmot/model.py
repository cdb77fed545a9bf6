"""Prune a tf_keras model."""

import random
import warnings

import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper
from tensorflow_model_optimization.python.core.sparsity.keras.prune import prune_low_magnitude as tfmot_prune_low_magnitude

from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.methods.traits import DiffersByWeight, SearchesModel, method_for, trains_weights
from keras_gibbs.model import selector
from keras_gibbs.numerics.noise import split
from keras_gibbs.search.checks import alone
from keras_gibbs.structure import graph
from keras_gibbs.tfmot.outputs import at_output
from keras_gibbs.tfmot.search import SearchedModel, check_search
from keras_gibbs.tfmot.weights import prunable_weights
from keras_gibbs.tfmot.wrapper import DEFAULT_SCHEDULE, Pruned, check_method, pruned_layers


def prune(model, method: PruningMethod, where=None, seed: int | None = None):
    """Wrap the layers of a tf_keras model, so that `fit` prunes them and TF-MOT's `strip_pruning` unwraps them.

    Args:
        model: A built tf_keras Sequential or Functional model, nested models included. It is not changed.
        method: What to prune by, such as `kg.Gibbs(sparsity=0.9)`.
        where: Which layers: a regular expression or a list of them, searched in the layer names, or a callable from a layer to bool. By default every
            layer that TF-MOT can prune; others stay as they are.
        seed: Int, the seed of the masks; each layer's noise is its own.

    Returns:
        A new, uncompiled model of the same architecture with copies of the weights. The chosen layers are `Pruned`, named `prune_low_magnitude_<name>`.
        A method that only learns masks wraps all layers with weights, to hold them still. `EDropout` gives a functional model of a class of its own, whose
        `train_step` searches.

    Raises:
        TypeError: For something that is not a tf_keras model, or not a method.
        ValueError: For a model that is not built, subclassed or already pruned; for one that the method cannot search; when `where` matches nothing that
            can be pruned.

    Example:

    >>> pruned = kg_tfmot.prune(model, kg.Gibbs(sparsity=0.9), where="conv")
    >>> pruned.compile("adam", loss)
    >>> pruned.fit(x, y, epochs=60, callbacks=[kg_tfmot.GibbsPruningCallback()])
    >>> final = tfmot.sparsity.keras.strip_pruning(pruned)
    """
    check_method(method)
    if not isinstance(model, tf_keras.Model):
        raise TypeError(
            f"`keras_gibbs.tfmot.prune` takes a tf_keras model. Received: {model!r} of type {type(model).__name__}. A Keras 3 model is pruned by "
            "`keras_gibbs.prune`, a single tf_keras layer by `keras_gibbs.tfmot.Pruned(layer, method=...)`."
        )
    if not graph.has_graph(model):
        raise ValueError(
            f"`prune` rebuilds a model from its graph, and the subclassed model {type(model).__name__!r} has none. Wrap its layers where its constructor "
            "makes them:\n\n    self.dense = keras_gibbs.tfmot.Pruned(tf_keras.layers.Dense(128), method=keras_gibbs.Gibbs(sparsity=0.9))\n"
        )
    _check_built(model)
    if pruning_wrapper.collect_prunable_layers(model):
        raise ValueError(f"Model {model.name!r} is already pruned. Strip it first with TF-MOT's `strip_pruning(model)`.")
    if isinstance(method, SearchesModel):
        check_search(model, method)
    seed = random.randrange(2**63) if seed is None else int(seed) % 2**64
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    chosen = _choose(copy, method, where)
    paths, positions = paths_in(copy), {id(layer): position for position, layer in enumerate(graph.leaves(copy))}

    def wrap(layer):
        if id(layer) in chosen:
            return Pruned(layer, method=method, seed=split(seed, positions[id(layer)]), path=paths[id(layer)])
        return Pruned(layer, method=method, prunable=False) if not trains_weights(method) and layer.trainable_weights else layer

    return _searched(rebuild(copy, wrap), method)


def prune_low_magnitude(
    to_prune,
    pruning_schedule=DEFAULT_SCHEDULE,
    block_size=(1, 1),
    block_pooling_type="AVG",
    pruning_policy=None,
    sparsity_m_by_n=None,
    method: PruningMethod | None = None,
    **kwargs,
):
    """TF-MOT's function of this name, and one argument more.

    Without `method` it does what TF-MOT does, by TF-MOT's own code. With one, the layers are pruned by it; what else TF-MOT's function does stays as it is:
    the layers are wrapped, not copied, and a layer that TF-MOT does not know raises. Layers that feed the model's output are left out where the method's
    structure removes outputs. `EDropout` takes a built model, and leaves out what has no single kernel, too.

    Args:
        to_prune: A tf_keras model, layer or list of layers.
        pruning_schedule, block_size, block_pooling_type, pruning_policy, sparsity_m_by_n: As in TF-MOT. A method has a sparsity of its own, which a
            schedule given beside it does not change.
        method: A pruning method, such as `kg.Gibbs(0.9)`.
        **kwargs: Arguments of the layer, where one is given.

    Returns:
        The model, layer or list with its layers wrapped in `Pruned`.

    Raises:
        TypeError: For something that is not a method.
        ValueError: As TF-MOT, for blocks or m by n sparsity beside a method, and for `EDropout` on a layer or a list of them.

    Example:

    >>> pruned = kg_tfmot.prune_low_magnitude(model, method=kg.Gibbs(0.9))
    """
    if method is not None:
        check_method(method)
        if pruning_schedule is not DEFAULT_SCHEDULE:
            warnings.warn(f"`pruning_schedule` has no effect beside `method`, which has a sparsity of its own: {method!r}.", stacklevel=2)
    params = {
        "pruning_schedule": pruning_schedule,
        "block_size": block_size,
        "block_pooling_type": block_pooling_type,
        "sparsity_m_by_n": sparsity_m_by_n,
    }
    protected, paths = set(), paths_in(to_prune) if graph.has_graph(to_prune) else {}
    if isinstance(method, SearchesModel):
        protected = _left_out_of_search(to_prune, method)
    elif method is not None and graph.has_graph(to_prune):
        protected = _protected(to_prune, method)

    def wrap(layer, **arguments):
        return Pruned(layer, **{**params, **arguments}, method=method, path=paths.get(id(layer)))

    def visit(layer):
        if isinstance(layer, tf_keras.layers.InputLayer):  # in a list of layers
            return type(layer).from_config(layer.get_config())
        left_out = id(layer) in protected or (pruning_policy and not pruning_policy.allow_pruning(layer))
        return layer if left_out or isinstance(layer, pruning_wrapper.PruneLowMagnitude) else wrap(layer)

    if graph.has_graph(to_prune):
        if pruning_policy:
            pruning_policy.ensure_model_supports_pruning(to_prune)
        return _searched(rebuild(to_prune, visit), method)
    if isinstance(to_prune, list):
        pruning_policy = None  # TF-MOT asks it about models only
        return [visit(layer) for layer in to_prune]
    if isinstance(to_prune, tf_keras.layers.Layer) and not isinstance(to_prune, tf_keras.Model):
        return wrap(to_prune, **kwargs)
    return tfmot_prune_low_magnitude(to_prune)  # raises, and says what it takes


def fold(model) -> None:
    """Write the deterministic masks into the weights of a pruned model, so that TF-MOT's `strip_pruning` finds them.

    `GibbsPruningCallback` does this at the end of every epoch and of `fit`. What was saved in the midst of an epoch needs it after loading. The dense
    weights are kept, and training goes on from them.

    Args:
        model: A model from `prune` or `prune_low_magnitude(..., method=...)`. Its weights change.

    Raises:
        ValueError: When no layer is pruned by a method.

    Example:

    >>> model = tf_keras.models.load_model("batch_700.h5")
    >>> kg_tfmot.fold(model)
    >>> final = tfmot.sparsity.keras.strip_pruning(model)
    """
    layers = pruned_layers(model)
    if not layers:
        raise ValueError(
            f"No layer of model {model.name!r} is pruned by a method. Received: {model!r}. Wrap it first: `keras_gibbs.tfmot.prune(model, method)`."
        )
    waiting = [layer.name for layer in layers if layer.waits()]
    if waiting:
        warnings.warn(
            f"The schedules of {waiting} have not come to their end: the masks are those of that moment. Train with `GibbsPruningCallback()`.", stacklevel=2
        )
    for layer in layers:
        layer.fold()


def _check_built(model):
    if not model.built:
        raise ValueError(f"Model {model.name!r} is not built, so its layers have no kernels yet. Give its first layer an `input_shape`.")


def _searched(model, method):
    return SearchedModel(model) if isinstance(method, SearchesModel) else model


def _left_out_of_search(to_prune, method):
    if not graph.has_graph(to_prune):
        names = [getattr(layer, "name", layer) for layer in (to_prune if isinstance(to_prune, list) else [to_prune])]
        raise ValueError(alone(", ".join(map(str, names))))
    _check_built(to_prune)
    check_search(to_prune, method)
    return {id(layer) for layer in graph.leaves(to_prune)} - _choose(to_prune, method, None)


def _protected(model, method):
    return at_output(model) if method.structure.removes_outputs else set()


def _choose(model, method, where) -> set[int]:
    """The ids of the layers to wrap; raises where there are none, or `where` names one that the method cannot prune."""
    selected, outputs, paths = selector(where), _protected(model, method), paths_in(model)
    weights = {layer: own for layer in graph.leaves(model) if (own := prunable_weights(layer, paths[id(layer)]))}
    if isinstance(method, DiffersByWeight):
        method.check_weights([weight for own in weights.values() for weight in own])
    chosen, reasons, unfit = set(), [], []
    for layer, own in weights.items():
        if not any(selected(weight.path, weight.owner) for weight in own):
            continue
        if id(layer) in outputs:
            reasons.append(f"{layer.name}: feeds an output of the model, which would lose a unit")
            continue
        if isinstance(method, SearchesModel) and len(own) > 1:
            reasons.append(f"{layer.name}: {type(layer).__name__} has several weights, whose units are tied")
            continue
        try:
            for weight in own:
                method_for(method, weight).check(weight)
        except ValueError as error:
            if where is not None:
                raise
            reasons.append(f"{layer.name}: {error}")
            unfit.append(str(error).split(" Received: ")[0])
        else:
            chosen.add(id(layer))
    if not chosen:
        why = "; ".join(reasons) or f"no layer matches where={where!r}"
        names = [layer.name for layer in weights]
        raise ValueError(f"There is nothing to prune in model {model.name!r} ({why}). The layers that TF-MOT can prune are {names}.")
    if unfit:
        warnings.warn(f"{len(unfit)} layers stay dense: {' '.join(unfit)}", stacklevel=3)
    return chosen


def paths_in(model) -> dict[int, str]:
    """Where the layers of a model stand in it, by their ids."""
    return {id(layer): path for path, layer in graph.named_walk(model)}


def rebuild(model, replace):
    """The same graph with every layer replaced by `replace(layer)`, nested models entered. What `replace` returns unchanged is shared."""

    def visit(layer):
        return rebuild(layer, replace) if graph.has_graph(layer) else replace(layer)

    return tf_keras.models.clone_model(model, clone_function=visit)
