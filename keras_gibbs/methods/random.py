"""Random pruning: the baseline that any criterion has to beat."""

import dataclasses

import numpy as np

from keras_gibbs.budget import Budget
from keras_gibbs.configuration import register
from keras_gibbs.methods.base import check_sparsity, check_structure
from keras_gibbs.methods.ranked import RankedMethod
from keras_gibbs.methods.weighing import check_scope
from keras_gibbs.numerics.noise import Uniform
from keras_gibbs.schedules import Schedule
from keras_gibbs.specs import Spec
from keras_gibbs.structure.allocation import Table
from keras_gibbs.structure.groups import Structure, Unstructured


@register
@dataclasses.dataclass(frozen=True)
class Random(RankedMethod):
    """Keep groups at random, always the same ones: the baseline that any criterion has to beat.

    Every group has a score drawn once from the uniform distribution, by the `seed` of `prune`. With a scheduled sparsity a group that is removed stays removed.

    Args:
        sparsity: Fraction of the groups that is removed, in [0, 1), a `Schedule` of it, or a `Budget`.
        structure: `Unstructured()`, `Kernel()`, `Filter()` or another structure.
        scope: `"layer"` removes the same fraction in every layer, `"shape"` (ERK) keeps small kernels denser, `"global"` draws from all layers together.

    Raises:
        ValueError: For a sparsity outside its range, or an unknown scope.

    Example:

    >>> pruned = kg.prune(model, kg.Random(0.9, scope="shape"), seed=1)
    """

    sparsity: float | Schedule | Budget
    structure: Structure = dataclasses.field(default=Unstructured(), kw_only=True)
    scope: str | Table = dataclasses.field(default="layer", kw_only=True)

    def __post_init__(self):
        sparsity = check_sparsity(self.sparsity)
        check_structure(self.structure)
        self.structure.check_sparsity(sparsity)
        check_scope(self.scope, self.structure)

    def state(self, shape):
        return super().state(shape) | {"noise": Spec(np.zeros(2), "int32", seeded=True)}

    def scores(self, weight, state):
        return Uniform(state["noise"], 0)((1, 1, *weight.shape[2:]))
