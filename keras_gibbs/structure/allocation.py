"""How the layers of a network share out the groups that are kept."""

import dataclasses
import math
import re

import numpy as np

from keras_gibbs.configuration import Configuration, register
from keras_gibbs.numerics.ranking import count_kept

SCOPES = ("layer", "global", "shape", "lamp")


@register
@dataclasses.dataclass(frozen=True)
class Table(Configuration):
    """A sparsity for every weight by name, where a method takes a `scope`.

    Args:
        sparsities: Dict, or pairs, from regular expressions, searched in the paths of the weights, to sparsities in [0, 1). The first that is found counts; a
            weight without one has the sparsity of the method. With a schedule all move in proportion to it.

    Raises:
        ValueError: For a sparsity outside [0, 1) or something that is not a regular expression.

    Example:

    >>> kg.Magnitude(kg.Polynomial(0.0, 0.9), scope=kg.Table({"stem": 0.5, "block[12]/": 0.95}))
    """

    sparsities: tuple[tuple[str, float], ...]

    def __post_init__(self):
        pairs = self.sparsities.items() if isinstance(self.sparsities, dict) else self.sparsities
        object.__setattr__(self, "sparsities", tuple((pattern, float(sparsity)) for pattern, sparsity in pairs))
        for pattern, sparsity in self.sparsities:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ValueError(f"The keys of a table must be regular expressions. Received: {pattern!r} ({error}).") from error
            if not 0.0 <= sparsity < 1.0:
                raise ValueError(f"The sparsities of a table lie in [0, 1): fractions removed. Received: {{{pattern!r}: {sparsity!r}}}.")

    def brief(self):
        return repr(self) if len(self.sparsities) < 4 else f"Table({len(self.sparsities)} sparsities)"

    def sparsity(self, path: str, now: float, final: float) -> float:
        """The sparsity of the weight at `path`, where that of the method is `now`, and `final` in the end."""
        named = (sparsity for pattern, sparsity in self.sparsities if re.search(pattern, path))
        return next((sparsity * (now / final if final else 1.0) for sparsity in named), now)


def counts(
    scope, sparsity: float, final: float, weights: list, groups: list[int], scores: list[np.ndarray] | None = None, floor: float = 0.0, fewest: int = 0
) -> list[int]:
    """How many groups every weight keeps at a `sparsity` of the network.

    Args:
        scope: `"layer"`, `"shape"`, `"global"`, `"lamp"` or a `Table`.
        sparsity: The fraction that is removed, in [0, 1).
        final: The fraction that is removed in the end.
        weights: List of `Prunable`.
        groups: How many groups each weight has.
        scores: What `"global"` and `"lamp"` compare, one array `(groups,)` a weight.
        floor: With `"global"`, the least density of a weight as a fraction of that of the network.
        fewest: How many groups every weight keeps at least where all are ranked together without a floor.
    """
    if scope == "layer":
        return [count_kept(count, sparsity) for count in groups]
    if isinstance(scope, Table):
        return [count_kept(count, scope.sparsity(weight.path, sparsity, final)) for weight, count in zip(weights, groups, strict=True)]
    if scope == "shape":
        return by_shape([weight.shape for weight in weights], groups, 1.0 - sparsity)
    scores = [lamp(score) for score in scores] if scope == "lamp" else scores
    least = [max(1, int(floor * (1.0 - sparsity) * count)) if floor else fewest for count in groups]
    return by_score(scores, count_kept(sum(groups), sparsity), least)


def needs_scores(scope) -> bool:
    """Whether `counts` compares scores in this scope."""
    return scope in ("global", "lamp")


def lamp(scores: np.ndarray) -> np.ndarray:
    """Every score divided by the sum of itself and all that are larger in its layer, in float64: layer-adaptive magnitudes, of squared weights.

    The largest score of every layer becomes 1, so that none loses all before every layer is down to one; of equal scores the first counts as the larger.

    Reference: Lee et al. 2021, Layer-adaptive sparsity for the magnitude-based pruning, https://arxiv.org/abs/2010.07611, equation 1 (not checked).
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype("float64")
    shares = np.empty(len(scores))
    shares[order] = ranked / np.maximum(np.cumsum(ranked), np.finfo("float64").tiny)
    return shares


def by_score(scores: list[np.ndarray], kept: int, least: list[int] | None = None) -> list[int]:
    """How many of the `kept` largest scores of several layers, ranked together, each layer holds; of equal scores the first are kept.

    Args:
        scores: One array a layer.
        kept: How many are kept of all.
        least: How many every layer keeps at least; what that takes is missing to the others.

    Returns:
        One count a layer, `kept` in all.
    """
    least = [0] * len(scores) if least is None else [min(count, score.size) for count, score in zip(least, scores, strict=True)]
    counts, open_layers = list(least), set(range(len(scores)))
    while open_layers:
        members = sorted(open_layers)
        left = kept - sum(counts[index] for index in range(len(scores)) if index not in open_layers)
        shares = dict(zip(members, _largest([scores[index] for index in members], left), strict=True))
        short = {index for index, share in shares.items() if share < least[index]}
        if not short:
            for index, share in shares.items():
                counts[index] = share
            break
        open_layers -= short
    return counts


def _largest(scores, kept):
    if kept <= 0:
        return [0] * len(scores)
    together = np.concatenate(scores)
    threshold = np.partition(together, -kept)[-kept]
    above = [int(np.count_nonzero(score > threshold)) for score in scores]
    left = kept - sum(above)
    shares = []
    for count, score in zip(above, scores, strict=True):
        ties = min(left, int(np.count_nonzero(score == threshold)))
        left -= ties
        shares.append(count + ties)
    return shares


def by_shape(shapes: list[tuple[int, ...]], groups: list[int], kept: float) -> list[int]:
    """Counts in proportion to the sums of the kernel's dimensions instead of their product, so that small kernels stay denser: Erdos-Renyi-Kernel.

    Args:
        shapes: One kernel shape a layer.
        groups: How many groups each layer has.
        kept: The fraction of all weights that is kept, in (0, 1].

    Returns:
        One count a layer, at least 1. Layers that would keep more than all keep all, and the others share what is left.

    Reference: Evci et al. 2020, Rigging the Lottery, https://arxiv.org/abs/1911.11134, section 3, "Erdos-Renyi-Kernel".
    """
    sizes = np.array([math.prod(shape) for shape in shapes], float)
    sums = np.array([sum(shape) for shape in shapes], float)
    full = np.zeros(len(shapes), bool)
    while not full.all():
        scale = (kept * sizes.sum() - sizes[full].sum()) / sums[~full].sum()
        over = ~full & (scale * sums > sizes)
        if not over.any():
            break
        full |= over
    densities = np.where(full, 1.0, 0.0 if full.all() else scale * sums / sizes)
    return [max(1, min(count, math.floor(density * count + 0.5))) for density, count in zip(densities, groups, strict=True)]
