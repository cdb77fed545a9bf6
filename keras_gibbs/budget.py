"""What a pruned network may cost, in place of a sparsity."""

import dataclasses
import math
import numbers
from collections.abc import Callable

import numpy as np

from keras_gibbs.configuration import Configuration, register

MEASURES = ("params", "macs", "tflite_bytes", "cost")


@register
@dataclasses.dataclass(frozen=True)
class Budget(Configuration):
    """What the pruned network may cost, where a method takes a `sparsity`, or as the `stop` of a schedule of it.

    `prune` finds the largest share of every weight with which the network costs no more, and at least 99 % of that or all but one group (97 % with
    `tflite_bytes`), and puts these numbers in place of the budget: the method that is saved with the model has a `Table` of sparsities.

    How the weights share is the method's `scope`. `"layer"` finds one sparsity for all, `"shape"` (ERK) one density of the network. `"global"` and `"lamp"`
    keep the groups of the largest score by their price, what the budget gains without them: the Lagrangian of the sum of scores. With `cost`, and where
    channels are coupled, the price of a layer is measured, and then changed at random (by the `seed` of `prune`) for as long as a few trials find a larger
    sum of scores at the same cost. Scores are those of the moment of `prune`.

    With `Filter(coupled=True)` it is the model that `shrink` makes which costs no more; with other structures zeros do not count, wherever they are.

    Exactly one measure is given:

    Args:
        cost: Function of a plain Keras model, pruned, to what it costs: any number that does not grow as weights are removed. It need not be differentiable.
        limit: The largest `cost` allowed, in its own unit.
        params: Weights that are left, biases and statistics counted: a fraction of all, in (0, 1), or an int.
        macs: Multiply-adds of one sample that are left, those with removed weights not counted: a fraction of all, in (0, 1), or an int.
        tflite_bytes: Size of the file that `export_tflite` writes, which is built to measure it: a fraction of that of the dense network, in (0, 1), or an int.
        encoding: With `tflite_bytes`, that of the file, as in `export_tflite`.

    Raises:
        TypeError: For a measure that is no number, or a cost that is not callable.
        ValueError: For no measure or several, a number outside its range, or a `limit` without `cost`. From `prune`: where the budget cannot be met, with what
            can be; for a method that is given a `Table`, or a structure that fixes its sparsity.

    Example:

    >>> pruned = kg.prune(model, kg.Magnitude(kg.Polynomial(0.0, kg.Budget(macs=0.3), end=0.5), scope="global"))
    >>> pruned = kg.prune(model, kg.SNIP(kg.Budget(tflite_bytes=200_000)), data=(x, y))

    Reference: the setting, any cost that can be measured, is that of Pruning through constrained reinforcement learning, https://arxiv.org/abs/2110.08558
    (abstract only); in place of a learned controller, the search above.
    """

    cost: Callable | None = None
    limit: float | None = dataclasses.field(default=None, kw_only=True)
    params: float | int | None = dataclasses.field(default=None, kw_only=True)
    macs: float | int | None = dataclasses.field(default=None, kw_only=True)
    tflite_bytes: float | int | None = dataclasses.field(default=None, kw_only=True)
    encoding: str = dataclasses.field(default="auto", kw_only=True)

    def __post_init__(self):
        given = [name for name in MEASURES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"A budget has one measure: `params=`, `macs=`, `tflite_bytes=`, or `cost=` with `limit=`. Received: {given or 'none'}.")
        if (self.limit is None) != (self.cost is None):
            raise ValueError(f"`limit` is the largest `cost` allowed: both are given, or neither. Received: cost={self.cost!r}, limit={self.limit!r}.")
        if self.cost is not None and not callable(self.cost):
            raise TypeError(f"`cost` must be a function of a Keras model to a number. Received: cost={self.cost!r}.")
        name, value = ("limit", self.limit) if self.cost is not None else (self.measure, getattr(self, self.measure))
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}.")
        if not math.isfinite(value) or value <= 0 or (self.cost is None and value >= 1 and not isinstance(value, numbers.Integral)):
            hint = "" if self.cost is not None else ", or as a fraction of the dense network's lie in (0, 1)"
            raise ValueError(f"`{name}` must be positive: a count as an int{hint}. Received: {name}={value!r}.")

    @property
    def measure(self) -> str:
        """The name of what is measured."""
        return next(name for name in MEASURES if getattr(self, name) is not None)

    def ceiling(self, dense: float) -> float:
        """The largest cost allowed, where the dense network costs `dense`."""
        if self.cost is not None:
            return self.limit
        value = getattr(self, self.measure)
        return value * dense if value < 1 else value

    def __float__(self):
        raise ValueError(
            f"A budget is met over a whole model: `keras_gibbs.prune(model, method)` finds the sparsities. Received: {self.brief()} in place of a number."
        )


def budget_of(sparsity) -> Budget | None:
    """The budget that a `sparsity` argument is, or ends in; None where it is a number or a schedule of numbers."""
    found = getattr(sparsity, "stop", getattr(sparsity, "value", sparsity))
    return found if isinstance(found, Budget) else None


def check_met(method) -> None:
    """Raise `ValueError` where the sparsity of `method` is a budget that nothing has met yet."""
    budget = budget_of(getattr(method, "sparsity", None))
    if budget is not None:
        float(budget)
