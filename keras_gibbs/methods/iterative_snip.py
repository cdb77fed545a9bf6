"""Iterative SNIP: connection sensitivity, step by step (de Jorge et al. 2021; Verdenius et al. 2020)."""

import dataclasses

from keras_gibbs.configuration import register
from keras_gibbs.methods.snip import SNIP


@register
@dataclasses.dataclass(frozen=True)
class IterativeSNIP(SNIP):
    """`SNIP` in several steps: each scores the network that the last one has left, and what is removed stays removed.

    Args:
        sparsity: Fraction of the groups that is removed in the end, a number in [0, 1).
        steps: In how many steps; the density falls exponentially.
        structure, scope, floor, rescale: As in `ScoredMethod`.

    Raises:
        ValueError: As `SNIP`; and for `steps` below 1.

    Example:

    >>> pruned = kg.prune(model, kg.IterativeSNIP(0.98, steps=20), data=(x[:100], y[:100]))

    Reference: de Jorge et al. 2021, Progressive skeletonization, https://arxiv.org/abs/2006.09081; 10 steps as in naver/force (pruning_algos.py), which takes
    a new batch for each, where every step here sees all of the data.
    """

    steps: int = dataclasses.field(default=10, kw_only=True)
