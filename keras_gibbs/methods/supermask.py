"""Supermasks (Zhou et al. 2019)."""

import dataclasses

from keras import ops

from keras_gibbs.configuration import register
from keras_gibbs.methods.learned import LearnedMask, straight_through


@register
@dataclasses.dataclass(frozen=True)
class Supermask(LearnedMask):
    """Learn Bernoulli masks over a network whose weights stay as they are; each is kept with probability sigmoid(m).

    The gradient passes the draw straight through to sigmoid(m). `GumbelSoftmax` has the same law of masks and another gradient. Where the authors
    average the predictions of ten samples, the mask with every sigmoid(m) >= 1/2 is used here.

    Args:
        structure, rescale, signed_constant, train_weights, logit_rate, scale_rate: As in `LearnedMask`; `rescale` is `"dynamic"` in the paper.

    Example:

    >>> pruned = kg.prune(untrained, kg.Supermask())

    Reference: Zhou, Lan, Liu, Yosinski 2019, https://arxiv.org/abs/1905.01067; as coded in N0ciple/ASLP (strategies/supermask).
    """

    rescale: str | None = dataclasses.field(default="dynamic", kw_only=True)

    def sample(self, weight, state, uniform):
        probability = ops.sigmoid(self.logits(state))
        drawn = ops.cast(1.0 - uniform((1, 1, *weight.shape[2:])) <= probability, "float32")
        return straight_through(drawn, probability)
