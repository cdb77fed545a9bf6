"""How many groups every weight keeps so that a cost is met: one number for all, or the Lagrangian of scores and prices."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from keras_gibbs.numerics.ranking import count_kept
from keras_gibbs.structure import allocation

FINEST = 2.0**-40  # the smallest step of a share
TRIES = 12  # random changes of measured prices
STEP = 0.5  # of the logarithm of a price

Cost = Callable[[list[int]], float]


@dataclasses.dataclass(frozen=True)
class Shares:
    """Counts of kept groups that grow with one number, the share, from one group of every weight at 0 to all at 1.

    Attributes:
        scope: `"layer"`, `"shape"`, `"global"` or `"lamp"`.
        weights: List of `Prunable`.
        groups: How many groups each weight has.
        scores: What `"global"` and `"lamp"` compare, one array `(groups,)` a weight; lamp's are those of `allocation.lamp` already.
        floor: With `"global"`, the least density of a weight as a fraction of the share.
    """

    scope: str
    weights: list
    groups: list[int]
    scores: list[np.ndarray]
    floor: float = 0.0

    @property
    def by_price(self) -> bool:
        """Whether groups of different weights are compared by score and price."""
        return allocation.needs_scores(self.scope)

    @property
    def even_prices(self) -> list[float]:
        """Prices that make no difference."""
        return [1.0] * len(self.groups)

    def counts(self, share: float, prices: list[float]) -> list[int]:
        """One count a weight, at least 1; `prices` are what a group of each weight costs."""
        if self.scope == "layer":
            return [count_kept(count, 1.0 - share) for count in self.groups]
        if self.scope == "shape":
            return allocation.by_shape([weight.shape for weight in self.weights], self.groups, share)
        tiny = max(max(prices), 1e-30) * 1e-9  # what costs nothing stays
        worth = [score / max(price, tiny) for score, price in zip(self.scores, prices, strict=True)]
        least = [max(1, int(self.floor * share * count)) for count in self.groups]
        return allocation.by_score(worth, round(share * sum(self.groups)), least)

    def kept_score(self, counts: list[int]) -> float:
        """The sum of the scores that are kept."""
        largest = (np.sort(score)[::-1][:count] for score, count in zip(self.scores, counts, strict=True))
        return float(sum(score.sum(dtype="float64") for score in largest))


def largest(shares: Shares, prices: list[float], cost: Cost, ceiling: float, tolerance: float) -> list[int]:
    """The counts of the largest share that costs no more than `ceiling`.

    Args:
        shares: The shares; that of 0 must be within the ceiling.
        prices: What a group of each weight costs.
        cost: From counts to what they cost.
        ceiling: The largest cost allowed.
        tolerance: The search ends at a cost of at least `(1 - tolerance) * ceiling`; 0 ends where hardly a group more fits.
    """
    low, high, counts, above = 0.0, 1.0, shares.counts(0.0, prices), shares.counts(1.0, prices)
    least, most, aim = cost(counts), cost(above), (1.0 - 0.5 * tolerance) * ceiling
    if most <= ceiling:
        return above
    guesses = itertools.cycle((True, False) if tolerance else (False,))  # every second step by a straight line, where steps are dear
    while high - low > FINEST and counts != above:
        line = min(0.95, max(0.05, (aim - least) / (most - least))) if next(guesses) and most > least else 0.5
        middle = low + line * (high - low)
        found = shares.counts(middle, prices)
        spent = cost(found)
        if spent > ceiling:
            high, above, most = middle, found, spent
            continue
        low, counts, least = middle, found, spent
        if tolerance and spent >= (1.0 - tolerance) * ceiling:
            return counts
    counts = _filled(counts, above, cost, ceiling)
    more = [min(count + 1, whole) for count, whole in zip(counts, shares.groups, strict=True)]
    return counts if tolerance else _filled(counts, more, cost, ceiling)


def _filled(counts, above, cost, ceiling):
    """`counts` with as many of the steps to `above` as the ceiling allows, weight by weight."""
    for index, count in enumerate(above):
        if count > counts[index]:
            more = [*counts[:index], count, *counts[index + 1 :]]
            counts = more if cost(more) <= ceiling else counts
    return counts


def searched(shares: Shares, cost: Cost, ceiling: float, tolerance: float, seed: int) -> list[int]:
    """As `largest` for a cost of which nothing is known: prices are measured, and then changed at random for as long as that keeps a larger sum of scores.

    The price of a layer is what the dense network saves with half of the layer's groups, by group. Where a cost is not a sum over layers, or jumps, that is a
    beginning; each of `TRIES` trials multiplies every price by a random factor, meets the ceiling again, and stays if more of the scores is kept.
    """
    whole = list(shares.groups)
    dense, prices = cost(whole), []
    for index, count in enumerate(whole):
        half = count // 2
        saved = dense - cost([*whole[:index], max(1, count - half), *whole[index + 1 :]])
        prices.append(max(0.0, saved) / max(1, half))
    best = largest(shares, prices, cost, ceiling, tolerance)
    rng = np.random.default_rng(seed)
    for _ in range(TRIES if len(whole) > 1 else 0):
        changed = list(np.array(prices) * np.exp(STEP * rng.standard_normal(len(prices))))
        found = largest(shares, changed, cost, ceiling, tolerance)
        if shares.kept_score(found) > shares.kept_score(best):
            best, prices = found, changed
    return best
