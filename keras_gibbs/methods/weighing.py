"""What the methods share that look at the weights to decide what stays."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_gibbs.arguments import require_number
from keras_gibbs.budget import Budget
from keras_gibbs.methods.base import check_sparsity, check_structure
from keras_gibbs.methods.ranked import RankedMethod, mean_over_groups
from keras_gibbs.methods.traits import ChecksTraining, ObservesGradients
from keras_gibbs.numerics.ranking import to_scale
from keras_gibbs.schedules import Schedule
from keras_gibbs.scores.criteria import Criterion, SquaredWeight
from keras_gibbs.specs import Spec
from keras_gibbs.structure.allocation import SCOPES, Table
from keras_gibbs.structure.groups import Structure, Unstructured
from keras_gibbs.typing import Tensor


@dataclasses.dataclass(frozen=True)
class WeighingMethod(ObservesGradients, ChecksTraining, RankedMethod):
    """A method whose final mask keeps exactly the groups of the highest mean worth: the base of `Gibbs` and `Magnitude`.

    Attributes:
        sparsity: Fraction of the groups that is removed, in [0, 1), a `Schedule` of it, or a `Budget`.
        structure: `Unstructured()`, `Kernel()` or `Filter()`.
        criterion: What a weight is worth.
        scope: `"layer"`, `"global"`, `"shape"`, `"lamp"` or a `Table`.
        floor: The least density of a layer with `scope="global"`, as a fraction of that of the network.
        settle: The progress of training from which the mask is held as it is, in (0, 1]; None for never.
    """

    sampled = ("sparsity",)

    sparsity: float | Schedule | Budget
    structure: Structure = dataclasses.field(default=Unstructured(), kw_only=True)
    criterion: Criterion = dataclasses.field(default=SquaredWeight(), kw_only=True)
    scope: str | Table = dataclasses.field(default="layer", kw_only=True)
    floor: float = dataclasses.field(default=0.0, kw_only=True)
    settle: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        sparsity = check_sparsity(self.sparsity)
        check_structure(self.structure)
        self.structure.check_sparsity(sparsity)
        if not isinstance(self.criterion, Criterion):
            raise TypeError(f"`criterion` must be an object such as `CurvatureEnergy()`. Received: criterion={self.criterion!r}.")
        check_scope(self.scope, self.structure)
        check_floor(self.floor, self.scope)
        if self.settle is not None:
            require_number(settle=self.settle)
        if self.settle is not None and not 0.0 < self.settle <= 1.0:
            raise ValueError(
                f"`settle` is a fraction of training, in (0, 1]: from there on the mask is held. Received: settle={self.settle!r}. None never holds it."
            )

    def state(self, shape):
        state = super().state(shape) | self.criterion.state(shape)
        if self.settle is not None:
            state |= {"settled_mask": Spec(np.zeros((1, 1, *shape[2:])), "bool"), "settled": Spec(0, "int32")}
        return state

    def without_numbers(self):
        return super().without_numbers().with_values(scope="layer", floor=0.0, settle=None if self.settle is None else 1.0)

    @property
    def lengthens(self):
        """Only where every number about a weight is its own: a subclass may look at all of them together."""
        known = type(self.criterion).__module__ == SquaredWeight.__module__
        return known and type(self).__module__.startswith("keras_gibbs.") and type(self.structure) is Unstructured

    @property
    def observed(self):
        return tuple(self.criterion.state((1, 1, 1, 1)))

    def observe(self, gradient, state):
        return self.criterion.observe(gradient, state)

    def check_training(self, optimizer, layers):
        if self.observed and getattr(getattr(optimizer, "inner_optimizer", optimizer), "use_ema", False):
            raise ValueError(
                f"Keras cannot average the weights of a model while {self.criterion.brief()} observes its gradients: it keeps no average of what that "
                "remembers, and fails when it writes the averages. Received: an optimizer with `use_ema=True`. Leave it out, or use another criterion."
            )

    def worth(self, weight: Tensor, state) -> Tensor:
        """What every weight is worth, in the shape of `weight`."""
        return self.criterion.worth(weight, state)

    def scores(self, weight, state):
        return mean_over_groups(self.worth(weight, state), state)

    def order(self, weight, state):
        if math.prod(weight.shape[:2]) == 1:
            return self.criterion.order(weight, state)
        return mean_over_groups(self.worth(to_scale(weight), state), state) if self.criterion.squares else self.scores(weight, state)

    def sample(self, weight, state, uniform):
        return self._unless_settled(state, lambda: self.draw(weight, state, uniform))

    def draw(self, weight: Tensor, state, uniform) -> Tensor:
        """`sample` for as long as the mask has not settled."""
        raise NotImplementedError

    def mode(self, weight, state):
        return self._unless_settled(state, lambda: self.top(weight, state))

    def top(self, weight: Tensor, state) -> Tensor:
        """The mask of the groups of the highest scores."""
        return super().mode(weight, state)

    def reads_weight(self, progress):
        return type(self).revise is not WeighingMethod.revise or (self.settle is not None and progress >= self.settle)

    def revise(self, weight, state, progress, uniform):
        """Anneal; and from the progress `settle` on, hold the deterministic mask of that moment."""
        updates = super().revise(weight, state, progress, uniform)
        if self.settle is None:
            return updates
        if progress < self.settle:
            return updates | {"settled": 0}
        if not int(ops.convert_to_numpy(state["settled"])):
            state = {**state, **updates}
            mask = self.top(weight, state | self.decide(weight, state))
            updates |= {"settled_mask": ops.cast(mask, "bool"), "settled": 1}
        return updates

    def _unless_settled(self, state, find):
        if self.settle is None:
            return find()
        return ops.cond(state["settled"] > 0, lambda: ops.cast(state["settled_mask"], "float32"), find)


def check_scope(scope, structure: Structure) -> None:
    """Raise `ValueError` unless `scope` is one, and one in which groups of `structure` can be shared out."""
    if not isinstance(scope, Table) and not (isinstance(scope, str) and scope in SCOPES):
        raise ValueError(f"`scope` must be one of {SCOPES} or a `Table`. Received: scope={scope!r}.")
    if scope != "layer" and not structure.one_contest:
        raise ValueError(
            f"{structure.brief()} fixes how many are kept of every few weights, so nothing can be shared out. Received: scope={scope!r}. Use `scope='layer'`."
        )


def check_floor(floor, scope) -> None:
    """Raise `ValueError` unless `floor` is one that goes with the scope."""
    require_number(floor=floor)
    if not 0.0 <= floor <= 1.0 or (floor and scope != "global"):
        raise ValueError(
            "`floor`, the least density of a layer as a fraction of that of the network, lies in [0, 1] and goes with `scope='global'`. "
            f"Received: floor={floor!r}, scope={scope!r}."
        )
