"""SET: sparse evolutionary training (Mocanu et al. 2018)."""

import dataclasses

from keras_gibbs.configuration import register
from keras_gibbs.methods.dynamic import DynamicMethod


@register
@dataclasses.dataclass(frozen=True)
class SET(DynamicMethod):
    """Train a sparse network whose smallest weights are dropped now and then, while random others grow.

    Args:
        sparsity: Fraction of the groups that is removed at every moment, a number in [0, 1).
        structure, scope, fraction, every, end: As in `DynamicMethod`. Mocanu et al. move a constant fraction once an epoch; the falling one and the end are
            those of Evci et al., whom comparisons follow.

    Raises:
        TypeError: For a schedule in place of a number.
        ValueError: For a number outside its range, another scope, or a structure of several contests.

    Example:

    >>> pruned = kg.prune(model, kg.SET(0.9))
    >>> pruned.compile("sgd", loss)
    >>> pruned.fit(x, y, epochs=60, callbacks=[kg.GibbsPruningCallback(update_freq="batch")])

    Reference: Mocanu et al. 2018, https://arxiv.org/abs/1707.04780.
    """

    def growth(self, weight, state, uniform):
        return uniform((1, 1, *weight.shape[2:]))
