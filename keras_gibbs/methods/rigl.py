"""RigL: sparse training whose weights grow where the gradient is largest (Evci et al. 2020)."""

import dataclasses

import numpy as np
from keras import ops

from keras_gibbs.configuration import register
from keras_gibbs.methods.dynamic import DynamicMethod
from keras_gibbs.methods.ranked import mean_over_groups
from keras_gibbs.methods.traits import ObservesGradients
from keras_gibbs.specs import Spec


@register
@dataclasses.dataclass(frozen=True)
class RigL(ObservesGradients, DynamicMethod):
    """Train a sparse network whose smallest weights are dropped now and then, while those grow that the loss has the largest gradient for.

    The gradient is that of the last training step with respect to the masked weight, which removed weights have too. It is kept in one float32 a weight.

    Args:
        sparsity: Fraction of the groups that is removed at every moment, a number in [0, 1).
        structure, scope, fraction, every, end: As in `DynamicMethod`. The authors update every 100 steps.

    Raises:
        TypeError: For a schedule in place of a number.
        ValueError: For a number outside its range, another scope, or a structure of several contests.

    Example:

    >>> pruned = kg.prune(model, kg.RigL(0.9))
    >>> pruned.compile("sgd", loss)
    >>> pruned.fit(x, y, epochs=60, callbacks=[kg.GibbsPruningCallback(update_freq="batch")])

    Reference: Evci et al. 2020, Rigging the Lottery, https://arxiv.org/abs/1911.11134, algorithm 1. As in their code, a weight that is dropped and grown in one
    update keeps its value.
    """

    observed = ("gradient",)

    def state(self, shape):
        return super().state(shape) | {"gradient": Spec(np.zeros(shape), overwritten=True)}

    def observe(self, gradient, state):
        return {"gradient": gradient}

    def growth(self, weight, state, uniform):
        return mean_over_groups(ops.absolute(state["gradient"]), state)
