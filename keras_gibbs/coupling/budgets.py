"""What a network costs by how many channels of every group it keeps, for a budget."""

import functools
from collections.abc import Callable

import keras
import numpy as np

from keras_gibbs.coupling.costs import ChannelCosts
from keras_gibbs.coupling.plan import removable_groups
from keras_gibbs.structure.copying import clone

COUNTED = {"params": "parameters", "macs": "macs"}


def measured(budget, model: keras.Model, weights: list, scores: list[np.ndarray], spend: Callable) -> tuple[Callable, list[float]]:
    """The cost of a model as a function of the counts of channels that are kept, and the price of one channel of every group in the dense network.

    Args:
        budget: The `Budget`.
        model: The model, which is not changed.
        weights: List of `CoupledPrunable`.
        scores: What their channels are worth, one array `(channels,)` a weight: the best are kept.
        spend: From a plain model without the other channels to what it costs, where that is neither parameters nor multiply-adds.
    """
    costs, paths, figure = ChannelCosts(model), [weight.path for weight in weights], COUNTED.get(budget.measure, "parameters")

    def count(counts):
        return getattr(costs(dict(zip(paths, counts, strict=True))), figure)

    whole = [weight.size for weight in weights]
    prices = [float(count(whole) - count([*whole[:index], size - 1, *whole[index + 1 :]])) for index, size in enumerate(whole)]
    return (count if budget.measure in COUNTED else _shrunken(model, paths, scores, spend)), prices


def _shrunken(model, paths, scores, spend):
    from keras_gibbs.shrink import shrink  # which strips pruned models, and so imports what imports this

    plain, _ = clone(model)
    groups, values = removable_groups(plain), plain.get_weights()

    @functools.cache
    def spent(counts):
        plain.set_weights(values)
        for path, score, kept in zip(paths, scores, counts, strict=True):
            groups[path].zero(np.argsort(-score, kind="stable")[kept:])
        return spend(shrink(plain))

    return lambda counts: spent(tuple(counts))
