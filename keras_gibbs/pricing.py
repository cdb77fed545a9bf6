"""What a network costs with so many groups of every weight, by the measure of a budget."""

import functools
import math
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_gibbs.budget import Budget
from keras_gibbs.coupling.costs import ChannelCosts
from keras_gibbs.coupling.plan import removable_groups
from keras_gibbs.numerics import ranking
from keras_gibbs.structure.copying import clone
from keras_gibbs.structure.costs import applications
from keras_gibbs.structure.prunable import prunable_weights
from keras_gibbs.structure.shares import Cost
from keras_gibbs.structure.trace import trace


def measure(budget: Budget, model: keras.Model, weights: list, structure, scores: list[np.ndarray]) -> tuple[Cost, list[float] | None]:
    """What counts cost, as a function of one count a weight, and what a group of every weight does; None in place of these where they depend on the counts.

    Args:
        budget: Says what is measured.
        model: The model; it is not changed.
        weights: List of its `Prunable`.
        structure: How these fall into groups.
        scores: What the groups are worth, one array `(groups,)` a weight: those of the largest are kept in what is built to be measured.
    """
    if budget.measure in ("params", "macs"):
        return (_channels if structure.coupled else _weights)(budget, model, weights, structure)
    each = _group_sizes(weights, structure)
    build = _shrunken(model, weights, scores) if structure.coupled else _masked(model, weights, structure, scores)

    @functools.cache
    def spent(counts):
        built = build(counts)
        return _file_size(built, budget.encoding) if budget.measure == "tflite_bytes" else _number(budget.cost(built))

    return lambda counts: spent(tuple(counts)), None if structure.coupled or budget.measure == "cost" else each


def _group_sizes(weights, structure):
    return [math.prod(structure.shape(weight.shape, weight.layout)[:2]) for weight in weights]


def _weights(budget, model, weights, structure):
    """Every weight that is kept costs the same wherever it is used the same number of times."""
    times = dict.fromkeys(map(id, model.weights), 1) if budget.measure == "params" else applications(trace(model).calls)
    each = _group_sizes(weights, structure)
    sizes, rates = [math.prod(weight.shape) for weight in weights], [times.get(id(weight.variable), 0) for weight in weights]
    whole = sum(times.get(id(variable), 0) * math.prod(variable.shape) for variable in model.weights)
    others = whole - sum(rate * size for rate, size in zip(rates, sizes, strict=True))

    def cost(counts):  # a smaller block at an edge counts as a whole one
        return others + sum(rate * min(count * own, size) for rate, count, own, size in zip(rates, counts, each, sizes, strict=True))

    return cost, [rate * own for rate, own in zip(rates, each, strict=True)]


def _channels(budget, model, weights, structure):
    """A channel costs by those that it is made of, and those that are made of it."""
    costs = ChannelCosts(model)

    def cost(counts):
        found = costs({weight.path: count for weight, count in zip(weights, counts, strict=True)})
        return found.parameters if budget.measure == "params" else found.macs

    return cost, None


def _masked(model, weights, structure, scores):
    """From counts to the model with the weights of the other groups set to 0."""
    plain, _ = clone(model)
    variables = {weight.path: weight.variable for weight in prunable_weights(plain)}
    values = [ops.convert_to_numpy(weight.variable) for weight in weights]

    def build(counts):
        for weight, score, value, count in zip(weights, scores, values, counts, strict=True):
            mask = ranking.top(ranking.to_key(ops.reshape(score.astype("float32"), (1, 1, -1, 1))), count)
            variables[weight.path].assign(value * ops.convert_to_numpy(structure.restore(mask, weight.shape, weight.layout)))
        return plain

    return build


def _shrunken(model, weights, scores):
    """From counts to the model without the other channels."""
    from keras_gibbs.shrink import shrink  # which strips pruned models, and so imports what imports this

    plain, _ = clone(model)
    groups, values = removable_groups(plain), model.get_weights()

    def build(counts):
        plain.set_weights(values)
        for weight, score, count in zip(weights, scores, counts, strict=True):
            groups[weight.path].zero(np.argsort(-score, kind="stable")[count:])
        return shrink(plain)

    return build


def _file_size(model: keras.Model, encoding: str) -> int:
    from keras_gibbs.export import export_tflite  # likewise

    with tempfile.TemporaryDirectory() as folder:
        return export_tflite(model, Path(folder) / "model.tflite", encoding=encoding, verbose=0).chosen["raw_bytes"]


def _number(cost):
    value = float(cost)
    if math.isnan(value):
        raise ValueError("`cost` must give a number. Received: NaN.")
    return value
