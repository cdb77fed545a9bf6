"""A budget becomes sparsities: the counts of groups that meet it."""

import dataclasses
import re

import numpy as np
from keras import ops

from keras_gibbs.budget import budget_of
from keras_gibbs.methods.ranked import mean_over_groups
from keras_gibbs.pricing import measure
from keras_gibbs.schedules import Schedule
from keras_gibbs.structure import allocation
from keras_gibbs.structure.graph import has_graph
from keras_gibbs.structure.shares import Shares, largest, searched

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
    cost, prices = measure(budget, model, weights, method.structure, scores)
    ceiling = _ceiling(budget, shares, cost)
    tolerance = TOLERANCES[budget.measure]
    if prices is None and shares.by_price:
        counts = searched(shares, cost, ceiling, tolerance, seed)
    else:
        counts = largest(shares, prices or shares.even_prices, cost, ceiling, tolerance)
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


def _ceiling(budget, shares, cost):
    """The largest cost allowed; raises where it is out of reach."""
    least, dense = (cost(shares.counts(share, shares.even_prices)) for share in (0.0, 1.0))
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
