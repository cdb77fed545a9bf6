"""A budget becomes sparsities: what a network costs with so many groups of every weight, and the counts that meet it."""

import dataclasses
import functools
import math
import re
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_gibbs.budget import budget_of
from keras_gibbs.coupling.budgets import measured
from keras_gibbs.methods.ranked import mean_over_groups
from keras_gibbs.numerics import ranking
from keras_gibbs.schedules import Schedule
from keras_gibbs.structure import allocation
from keras_gibbs.structure.copying import clone
from keras_gibbs.structure.costs import applications
from keras_gibbs.structure.graph import has_graph
from keras_gibbs.structure.prunable import prunable_weights
from keras_gibbs.structure.shares import Shares, largest, searched
from keras_gibbs.structure.trace import trace

TOLERANCES = {"params": 0.0, "macs": 0.0, "tflite_bytes": 0.03, "cost": 0.01}


def meet(method, model, weights: list, seed: int, scores: list[np.ndarray] | None = None):
    """`method` with numbers in place of its budget, or itself where it has none.

    Args:
        method: The pruning method.
        model: The model that is to be pruned; it is not changed.
        weights: List of its `Prunable` that the method prunes.
        seed: Of the search where prices are measured.
        scores: What the groups are worth, one array `(groups,)` a weight; by default what the method says of the weights as they are.

    Raises:
        ValueError: Where the budget cannot be met, or the method leaves nothing open.
    """
    budget = budget_of(getattr(method, "sparsity", None))
    if budget is None:
        return method
    _check(method, budget, model)
    unpruned = _with_sparsity(method, 0.0)
    scope = getattr(method, "scope", "layer")
    scores = scores or [_scores(unpruned, weight, scope) for weight in weights]
    compared = [allocation.lamp(score) for score in scores] if scope == "lamp" else scores
    shares = Shares(scope, weights, [len(score) for score in scores], compared, getattr(method, "floor", 0.0))
    cost, prices = _measure(budget, model, weights, method.structure, scores)
    ceiling = _ceiling(budget, shares, cost)
    tolerance = TOLERANCES[budget.measure]
    if budget.measure == "cost" and shares.by_price:
        counts = searched(shares, cost, ceiling, tolerance, seed)
    else:
        counts = largest(shares, prices, cost, ceiling, tolerance)
    return _solved(method, weights, shares.groups, counts)


def _check(method, budget, model):
    scope = getattr(method, "scope", "layer")
    if isinstance(scope, allocation.Table):
        raise ValueError(f"A `Table` says how much of every weight goes, and leaves a budget nothing to find. Received: {scope!r} and {budget.brief()}.")
    if not method.structure.one_contest:
        raise ValueError(
            f"{method.structure.brief()} fixes how many are kept of every few weights, which leaves a budget nothing to find. Received: {budget.brief()}."
        )
    if budget.measure != "params" and not has_graph(model):
        raise ValueError(
            f"Multiply-adds, files and costs are those of a graph, and the subclassed model {model.name!r} has none. Received: {budget.brief()}. "
            "Use `Budget(params=...)`, or build the model as a Functional one."
        )


def _with_sparsity(method, sparsity, **changes):
    given = method.sparsity
    end = "value" if hasattr(given, "value") else "stop"
    return dataclasses.replace(method, sparsity=dataclasses.replace(given, **{end: sparsity}) if isinstance(given, Schedule) else sparsity, **changes)


def _scores(method, weight, scope):
    """What the groups of a weight are worth as it is: by the method where it compares them, else by magnitude."""
    structure, shape = method.structure, method.structure.shape(weight.shape, weight.layout)
    filled = structure.filled(weight.shape, weight.layout)
    state = {} if filled is None else {"filled": ops.convert_to_tensor(filled)}
    value = structure.arrange(ops.cast(weight.value(), "float32"), weight.layout)
    if allocation.needs_scores(scope):
        state |= {name: ops.convert_to_tensor(spec.value, spec.dtype) for name, spec in method.state(shape).items()}
        return ops.convert_to_numpy(method.scores(value, state)).reshape(-1)
    return ops.convert_to_numpy(mean_over_groups(ops.square(value), state)).reshape(-1)


def _measure(budget, model, weights, structure, scores):
    """What counts cost, and what one group of every weight does."""

    def spend(plain):
        return _file_size(plain, budget.encoding) if budget.measure == "tflite_bytes" else _number(budget.cost(plain))

    if structure.coupled:
        return measured(budget, model, weights, scores, spend)
    each = [math.prod(structure.shape(weight.shape, weight.layout)[:2]) for weight in weights]
    if budget.measure == "params":
        return _sum(model, weights, each, {id(variable): 1 for variable in model.weights})
    if budget.measure == "macs":
        return _sum(model, weights, each, applications(trace(model).calls))
    plain, _ = clone(model)
    variables = {weight.path: weight.variable for weight in prunable_weights(plain)}
    values = [ops.convert_to_numpy(weight.variable) for weight in weights]

    @functools.cache
    def spent(counts):
        for weight, score, value, count in zip(weights, scores, values, counts, strict=True):
            mask = ranking.top(ranking.to_key(ops.reshape(score.astype("float32"), (1, 1, -1, 1))), count)
            variables[weight.path].assign(value * ops.convert_to_numpy(structure.restore(mask, weight.shape, weight.layout)))
        return spend(plain)

    return lambda counts: spent(tuple(counts)), each


def _sum(model, weights, each, times):
    """`_measure` of a cost to which every weight that is kept adds as much as it is used `times`, by the id of its variable."""
    sizes, rates = [math.prod(weight.shape) for weight in weights], [times.get(id(weight.variable), 0) for weight in weights]
    whole = sum(times.get(id(variable), 0) * math.prod(variable.shape) for variable in model.weights)
    others = whole - sum(rate * size for rate, size in zip(rates, sizes, strict=True))

    def cost(counts):  # a smaller block at an edge counts as a whole one
        return others + sum(rate * min(count * own, size) for rate, count, own, size in zip(rates, counts, each, sizes, strict=True))

    return cost, [rate * own for rate, own in zip(rates, each, strict=True)]


def _file_size(model: keras.Model, encoding: str) -> int:
    from keras_gibbs.export import export_tflite  # which reads pruned models, and so imports what imports this

    with tempfile.TemporaryDirectory() as folder:
        return export_tflite(model, Path(folder) / "model.tflite", encoding=encoding, verbose=0).chosen["raw_bytes"]


def _number(cost):
    value = float(cost)
    if math.isnan(value):
        raise ValueError("`cost` must give a number. Received: NaN.")
    return value


def _ceiling(budget, shares, cost):
    """The largest cost allowed; raises where it is out of reach."""
    ones = [1.0] * len(shares.groups)
    least, dense = cost(shares.counts(0.0, ones)), cost(shares.counts(1.0, ones))
    ceiling = budget.ceiling(dense)
    if not least <= ceiling <= dense:
        unit = "" if budget.measure == "cost" else f" {budget.measure}"
        way = "Prune more of the weights, or allow more." if ceiling < least else "The network costs no more than the budget as it is."
        raise ValueError(
            f"With the weights that are pruned between {least:,.6g} and {dense:,.6g}{unit} can be reached: one group of each, or all. "
            f"Received: {budget.brief()}, which is {ceiling:,.6g}. {way}"
        )
    return ceiling


def _solved(method, weights, groups, counts):
    """The method with the sparsities that give these counts."""
    sparsities = [(count - kept) / count for count, kept in zip(groups, counts, strict=True)]
    overall = 1.0 - sum(counts) / sum(groups)
    if "scope" not in {field.name for field in dataclasses.fields(method)}:
        return _with_sparsity(method, sparsities[0] if len(set(sparsities)) == 1 else overall)
    table = allocation.Table(tuple((f"^{re.escape(weight.path)}$", sparsity) for weight, sparsity in zip(weights, sparsities, strict=True)))
    changes = {"scope": table} | ({"floor": 0.0} if getattr(method, "floor", 0.0) else {})
    return _with_sparsity(method, overall, **changes)
