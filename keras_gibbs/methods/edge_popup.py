"""Edge-popup (Ramanujan et al. 2020)."""

import dataclasses

import numpy as np
from keras import ops

from keras_gibbs.budget import Budget
from keras_gibbs.configuration import register
from keras_gibbs.methods.learned import LearnedMask, straight_through
from keras_gibbs.methods.ranked import RankedMethod
from keras_gibbs.schedules import Schedule


@register
@dataclasses.dataclass(frozen=True)
class EdgePopup(LearnedMask):
    """Learn a score per group over a network whose weights stay as they are; the groups with the largest absolute scores are kept, without noise.

    The gradient of the mask passes straight through to the scores, of removed groups too.

    Args:
        sparsity: Fraction removed, in [0, 1), a `Schedule` of it, or a `Budget`; exact.
        structure, rescale, signed_constant, train_weights, logit_rate, scale_rate: As in `LearnedMask`.

    Example:

    >>> pruned = kg.prune(untrained, kg.EdgePopup(sparsity=0.5))

    Reference: Ramanujan et al. 2020, https://arxiv.org/abs/1911.13299; as coded in N0ciple/ASLP (strategies/edge-popup).
    """

    sparsity: float | Schedule | Budget
    rescale: str | None = dataclasses.field(default=None, kw_only=True)

    def initial_logits(self, shape):
        return np.random.uniform(-1.0, 1.0, shape)

    def scores(self, weight, state):
        return ops.absolute(super().scores(weight, state))

    def follow(self, weight, state, exact=False):
        return RankedMethod.follow(self, weight, state, exact)

    def sample(self, weight, state, uniform):
        return straight_through(self.mode(weight, state), ops.absolute(self.logits(state)))
