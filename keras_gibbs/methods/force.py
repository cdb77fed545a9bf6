"""FORCE: foresight connection sensitivity, by progressive skeletonization (de Jorge et al. 2021)."""

import dataclasses

from keras_gibbs.configuration import register
from keras_gibbs.methods.iterative_snip import IterativeSNIP


@register
@dataclasses.dataclass(frozen=True)
class FORCE(IterativeSNIP):
    """Keep the weights that the pruned network depends on most: in several steps, where a removed weight can come back.

    The score is |w dL/dw| with the gradient of the masked network and the weight as it would be: a removed weight has one too.

    Args:
        sparsity: Fraction of the groups that is removed in the end, a number in [0, 1).
        steps: In how many steps; the density falls exponentially.
        structure, scope, floor, rescale: As in `ScoredMethod`.

    Raises:
        ValueError: As `SNIP`; and for `steps` below 1.

    Example:

    >>> pruned = kg.prune(model, kg.FORCE(0.98, steps=20), data=(x[:100], y[:100]))

    Reference: de Jorge et al. 2021, Progressive skeletonization, https://arxiv.org/abs/2006.09081; 10 steps as in naver/force (pruning_algos.py), which takes
    a new batch for each, where every step here sees all of the data.
    """

    regrows = True
