"""Magnitude pruning, at once or by a schedule (Zhu & Gupta 2017)."""

import dataclasses

from keras_gibbs.configuration import register
from keras_gibbs.methods.base import RankedMethod, check_sparsity, check_structure
from keras_gibbs.schedules import Schedule
from keras_gibbs.structures import Structure, Unstructured


@register
@dataclasses.dataclass(frozen=True)
class Magnitude(RankedMethod):
    """Keep the largest weights. The mask follows the weights at every training step, and removed weights are kept under it and can return.

    TF-MOT's `prune_low_magnitude` differs: it overwrites the weights with the masked ones every 100 steps, lets the gradient of removed weights
    through, and rounds the number of kept weights otherwise.

    Args:
        sparsity: Fraction of the groups that is removed, in [0, 1), or a `Schedule` of it: `Polynomial(0.0, 0.9, end=0.5)` is gradual pruning.
        structure: `Unstructured()`, `Kernel()` or `Filter()`; groups are ranked by their mean squared weight.
        scope: `"layer"` removes the same fraction in every layer. `"global"` ranks the groups of all wrapped layers together: how many each layer keeps
            is decided by `prune`, and again whenever `GibbsPruningCallback` moves, before validation and at the end of `fit`. A layer may lose all.

    Raises:
        ValueError: For a sparsity outside [0, 1) or an unknown scope.

    Example:

    >>> pruned = kg.prune(model, kg.Magnitude(kg.Polynomial(0.0, 0.9, end=0.5)))

    Reference: Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878.
    """

    sparsity: float | Schedule
    structure: Structure = dataclasses.field(default=Unstructured(), kw_only=True)
    scope: str = dataclasses.field(default="layer", kw_only=True)

    def __post_init__(self):
        check_sparsity(self.sparsity)
        check_structure(self.structure)
        if self.scope not in ("layer", "global"):
            raise ValueError(f"`scope` must be 'layer' or 'global'. Received: scope={self.scope!r}.")

    def measure(self, kernel, state, exact):
        return self.measure_cut(kernel, state, exact)

    def sample(self, kernel, state, uniform):
        return self.mode(kernel, state)
