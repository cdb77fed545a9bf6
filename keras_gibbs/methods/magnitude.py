"""Magnitude pruning, at once or by a schedule (Zhu & Gupta 2017)."""

import dataclasses

from keras_gibbs.configuration import register
from keras_gibbs.methods.weighing import WeighingMethod


@register
@dataclasses.dataclass(frozen=True)
class Magnitude(WeighingMethod):
    """Keep the largest weights. The mask follows the weights at every training step, and removed weights are kept under it and can return.

    TF-MOT's `prune_low_magnitude` differs: it overwrites the weights with the masked ones every 100 steps, lets the gradient of removed weights
    through, and rounds the number of kept weights otherwise.

    Args:
        sparsity: Fraction of the groups that is removed, in [0, 1), a `Budget`, or a `Schedule` of it: `Polynomial(0.0, 0.9, end=0.5)` is gradual pruning.
        structure: `Unstructured()`, `Kernel()` or `Filter()`; groups are ranked by the mean worth of their weights.
        criterion: What a weight is worth: `SquaredWeight()`, or `CurvatureEnergy()` for what the loss would lose with it.
        scope: `"layer"` removes the same fraction in every layer. `"global"` ranks the groups of all wrapped layers together: how many each layer keeps
            is decided by `prune`, and again by `GibbsPruningCallback` while it moves, before validation and at the end of `fit`. A layer may lose all.
            `"shape"` fixes the counts by the shapes of the kernels, in proportion to the sums of their dimensions, so that small ones stay denser.
            `"lamp"` ranks all together by their worth over the worth of all that is larger in their layer, so that no layer is lost.
            A `Table` gives weights sparsities of their own by name.
        floor: With `scope="global"`, the least density of a layer as a fraction of that of the network, in [0, 1].
        settle: The progress of training, in (0, 1], from which the mask is held as it is and only the kept weights train on; None for never.

    Raises:
        ValueError: For a sparsity, a floor or a `settle` outside its range, or an unknown scope.

    Example:

    >>> pruned = kg.prune(model, kg.Magnitude(kg.Polynomial(0.0, 0.9, end=0.5)))

    Reference: Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878.
    """

    def draw(self, weight, state, uniform):
        return self.top(weight, state)
