"""SynFlow: pruning at initialization without data (Tanaka et al. 2020)."""

import dataclasses

from keras_gibbs.configuration import register
from keras_gibbs.methods.scored import ScoredMethod
from keras_gibbs.scores.synaptic_flow import SynapticFlow


@register
@dataclasses.dataclass(frozen=True)
class SynFlow(ScoredMethod):
    """Keep the weights through which most of the signal of an input of ones flows, in many steps, without data or loss.

    In a network without biases every layer has the same sum of scores, so that a layer that has lost many weights values those that are left: none is lost
    before all are nearly gone. Bounded activations count as linear, see `SynapticFlow`.

    Args:
        sparsity: Fraction of the groups that is removed in the end, a number in [0, 1).
        steps: In how many steps; the density falls exponentially.
        structure, scope, floor, rescale: As in `ScoredMethod`.

    Raises:
        ValueError: From `prune`, for a model whose inputs have no known size.

    Example:

    >>> pruned = kg.prune(model, kg.SynFlow(0.95))

    Reference: Tanaka et al. 2020, Pruning neural networks without any data by iteratively conserving synaptic flow, https://arxiv.org/abs/2006.05467. 100 steps
    are the paper's (from memory); their code defaults to one.
    """

    steps: int = dataclasses.field(default=100, kw_only=True)

    def scorer(self, model, weights, data, loss):
        return SynapticFlow(model, weights).scores
