"""SNIP: pruning at initialization by connection sensitivity (Lee et al. 2019)."""

import dataclasses

from keras_gibbs.configuration import register
from keras_gibbs.methods.scored import ScoredMethod
from keras_gibbs.scores.batches import batches
from keras_gibbs.scores.losses import ModelLoss
from keras_gibbs.scores.on_data import connection_sensitivity


@register
@dataclasses.dataclass(frozen=True)
class SNIP(ScoredMethod):
    """Keep the weights whose masks the loss depends on most, before training: the largest |w dL/dw| of the network.

    `prune` scores the model that it is given on `data`, about ten samples of each class, and wraps every layer with a `Fixed` mask. The model runs in
    inference mode, regularizers do not count, and gradients are averaged over all of the data before their absolute value.

    Args:
        sparsity: Fraction of the groups that is removed, a number in [0, 1).
        structure, scope, floor, rescale: As in `ScoredMethod`: single weights of the whole network together by default.

    Raises:
        ValueError: From `prune`, where the data or the loss is missing, does not fit the model or is not finite.

    Example:

    >>> pruned = kg.prune(model, kg.SNIP(0.95), data=(x[:100], y[:100]), loss="sparse_categorical_crossentropy")

    Reference: Lee, Ajanthan & Torr 2019, https://arxiv.org/abs/1810.02340; inference mode as in Synaptic-Flow's Pruners/pruners.py.
    """

    def scorer(self, model, weights, data, loss):
        loss = ModelLoss(model, [weight.variable for weight in weights], batches(data), loss)
        return lambda masks: connection_sensitivity(loss, loss.values(), masks)
