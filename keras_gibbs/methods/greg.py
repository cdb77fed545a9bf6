"""GReg: growing regularization, then removal (Wang et al. 2021)."""

import dataclasses

import numpy as np
from keras import ops

from keras_gibbs.budget import Budget
from keras_gibbs.configuration import register
from keras_gibbs.methods.base import PruningMethod, check_sparsity, check_structure
from keras_gibbs.methods.ranked import mean_over_groups
from keras_gibbs.methods.traits import DecaysWeights
from keras_gibbs.numerics import ranking
from keras_gibbs.schedules import Linear, Schedule, as_schedule
from keras_gibbs.specs import Spec
from keras_gibbs.structure.groups import Structure, Unstructured


@register
@dataclasses.dataclass(frozen=True)
class GReg(DecaysWeights, PruningMethod):
    """Push the weights that are to go towards 0 by an L2 penalty that grows, and remove them once they hardly matter.

    For a trained model. The groups of the smallest mean absolute weight are chosen in every layer; the penalty adds lambda w to their gradients, and nothing
    to those of the others. At the progress `remove` they are removed, and the rest is fine-tuned. Until then the network runs with all its weights.

    GReg-1 chooses at the beginning. GReg-2, `choose=0.1`, lets the penalty grow on all weights first, so that weights separate by how much the loss holds them.

    The penalty is part of the gradient: an optimizer that scales gradients (Adam) scales it too. The authors train with SGD and raise lambda by 1e-4 every five
    steps; here it follows a schedule.

    Args:
        sparsity: Fraction of the groups that is removed in every layer, a number in [0, 1), or a `Budget`.
        structure: `Unstructured()`, `Kernel()`, `Filter()` or another structure.
        penalty_factor: lambda, a number of at least 0 or a `Schedule` of it.
        choose: The progress of training at which the groups to remove are chosen, in [0, 1).
        remove: The progress at which they are removed, in (choose, 1].

    Raises:
        TypeError: For a schedule as the sparsity.
        ValueError: For a number outside its range.

    Example:

    >>> pruned = kg.prune(trained, kg.GReg(0.5, structure=kg.Filter(), choose=0.1))

    Reference: Wang et al. 2021, Neural pruning via growing regularization, https://arxiv.org/abs/2012.09243; as in the authors' reg_pruner.py, where in GReg-2
    the kept weights lose their weight decay, which is left as it is here.
    """

    sparsity: float | Budget
    structure: Structure = dataclasses.field(default=Unstructured(), kw_only=True)
    penalty_factor: float | Schedule = dataclasses.field(default=Linear(0.0, 1.0, end=0.5), kw_only=True)
    choose: float = dataclasses.field(default=0.0, kw_only=True)
    remove: float = dataclasses.field(default=0.6, kw_only=True)

    def __post_init__(self):
        if isinstance(self.sparsity, Schedule):
            raise TypeError(f"`sparsity` of GReg must be a number: groups are removed at once. Received: sparsity={self.sparsity!r}.")
        check_structure(self.structure)
        self.structure.check_sparsity(check_sparsity(self.sparsity))
        if as_schedule(self.penalty_factor).bounds[0] < 0:
            raise ValueError(f"`penalty_factor` must not be negative. Received: penalty_factor={self.penalty_factor!r}.")
        if not 0.0 <= self.choose < self.remove <= 1.0:
            raise ValueError(
                "Groups are chosen before they are removed, both in fractions of training: 0 <= choose < remove <= 1. "
                f"Received: choose={self.choose!r}, remove={self.remove!r}."
            )

    def schedules(self):
        removal = Linear(0.0, self.sparsity, begin=self.remove, end=self.remove)
        return {"sparsity": removal, "factor": as_schedule(self.penalty_factor)}

    def state(self, shape):
        flags = {"chosen": Spec(0, "int32"), "removed": Spec(0, "int32")}
        return super().state(shape) | flags | {"keeps": Spec(np.zeros((1, 1, *shape[2:])), "bool")}

    def mode(self, weight, state):
        return ops.where(state["removed"] > 0, ops.cast(state["keeps"], "float32"), 1.0)

    def decay(self, state):
        return ops.where(state["removed"] > 0, 0.0, state["factor"] * (1.0 - ops.cast(state["keeps"], "float32")))

    def revise(self, weight, state, progress, uniform):
        updates = super().revise(weight, state, progress, uniform)
        if progress >= self.choose and not int(ops.convert_to_numpy(state["chosen"])):
            keys = ranking.to_key(mean_over_groups(ops.absolute(weight), state))
            if "filled" in state:
                keys = ops.where(ops.any(state["filled"], axis=(0, 1), keepdims=True), keys, ranking.LOWEST)
            keeps = ranking.top(keys, ranking.count_kept(weight.shape[2], self.sparsity))
            updates |= {"keeps": keeps > 0, "chosen": 1}
        return updates | ({"removed": 1} if progress >= self.remove else {})
