"""GraSP: pruning at initialization that keeps the gradient's flow (Wang et al. 2020)."""

import dataclasses

from keras_gibbs.configuration import register
from keras_gibbs.methods.scored import ScoredMethod
from keras_gibbs.scores.batches import batches
from keras_gibbs.scores.losses import ModelLoss
from keras_gibbs.scores.on_data import gradient_flow


@register
@dataclasses.dataclass(frozen=True)
class GraSP(ScoredMethod):
    """Keep the weights that the squared norm of the gradient gains by, before training: the largest w (H g), by a Hessian-vector product.

    Args:
        sparsity: Fraction of the groups that is removed, a number in [0, 1).
        temperature: What the outputs of the model, which should be logits, are divided by; 1 leaves them as they are.
        structure, scope, floor, rescale: As in `ScoredMethod`. Scores may be negative, so there is no `scope="lamp"`.

    Raises:
        ValueError: As `SNIP`; and for a temperature that is not positive.

    Example:

    >>> pruned = kg.prune(model, kg.GraSP(0.95), data=(x[:100], y[:100]), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    Reference: Wang, Zhang & Grosse 2020, Picking winning tickets before training by preserving gradient flow, https://arxiv.org/abs/2002.07376. They write S
    for minus this score and remove the largest S; the temperature of 200 is that of their code, as read in Synaptic-Flow's Pruners/pruners.py.
    """

    temperature: float = dataclasses.field(default=200.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"`temperature` must be positive. Received: temperature={self.temperature!r}. 1 leaves the outputs as they are.")
        if self.scope == "lamp":
            raise ValueError("`scope='lamp'` needs scores that are not negative, which GraSP's may be. Received: scope='lamp'. Use `'global'` or `'shape'`.")

    def scorer(self, model, weights, data, loss):
        loss = ModelLoss(model, [weight.variable for weight in weights], batches(data), loss, self.temperature)
        return lambda masks: gradient_flow(loss, loss.values(), masks)
