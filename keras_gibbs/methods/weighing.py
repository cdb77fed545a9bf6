"""What the methods share that look at the weights to decide what stays."""

import dataclasses

import numpy as np
from keras import ops

from keras_gibbs.methods.base import RankedMethod, check_sparsity, check_structure
from keras_gibbs.schedules import Schedule
from keras_gibbs.scores.criteria import Criterion, SquaredWeight
from keras_gibbs.specs import Spec
from keras_gibbs.structure.allocation import SCOPES
from keras_gibbs.structure.groups import Structure, Unstructured
from keras_gibbs.typing import Tensor


@dataclasses.dataclass(frozen=True)
class WeighingMethod(RankedMethod):
    """A method whose final mask keeps exactly the groups of the highest mean worth: the base of `Gibbs` and `Magnitude`.

    Attributes:
        sparsity: Fraction of the groups that is removed, in [0, 1), or a `Schedule` of it.
        structure: `Unstructured()`, `Kernel()` or `Filter()`.
        criterion: What a weight is worth.
        scope: `"layer"`, `"global"` or `"shape"`.
        floor: The least density of a layer with `scope="global"`, as a fraction of that of the network.
        settle: The progress of training from which the mask is held as it is, in (0, 1]; None for never.
    """

    sparsity: float | Schedule
    structure: Structure = dataclasses.field(default=Unstructured(), kw_only=True)
    criterion: Criterion = dataclasses.field(default=SquaredWeight(), kw_only=True)
    scope: str = dataclasses.field(default="layer", kw_only=True)
    floor: float = dataclasses.field(default=0.0, kw_only=True)
    settle: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        check_sparsity(self.sparsity)
        check_structure(self.structure)
        if not isinstance(self.criterion, Criterion):
            raise TypeError(f"`criterion` must be an object such as `CurvatureEnergy()`. Received: criterion={self.criterion!r}.")
        if self.scope not in SCOPES:
            raise ValueError(f"`scope` must be one of {SCOPES}. Received: scope={self.scope!r}.")
        if not 0.0 <= self.floor <= 1.0 or (self.floor and self.scope != "global"):
            raise ValueError(
                "`floor`, the least density of a layer as a fraction of that of the network, lies in [0, 1] and goes with `scope='global'`. "
                f"Received: floor={self.floor!r}, scope={self.scope!r}."
            )
        if self.settle is not None and not 0.0 < self.settle <= 1.0:
            raise ValueError(
                f"`settle` is a fraction of training, in (0, 1]: from there on the mask is held. Received: settle={self.settle!r}. None never holds it."
            )

    def state(self, shape):
        state = super().state(shape) | self.criterion.state(shape)
        if self.settle is not None:
            state |= {"held": Spec(np.zeros((1, 1, shape[2])), "uint8"), "settled": Spec(0, "uint8")}
        return state

    @property
    def observes(self):
        return tuple(self.criterion.state((1, 1, 1)))

    def observe(self, gradient, state):
        return self.criterion.observe(gradient, state)

    def worth(self, kernel: Tensor, state) -> Tensor:
        """What every weight is worth, in the shape of `kernel`."""
        return self.criterion.worth(kernel, state)

    def scores(self, kernel, state):
        return ops.mean(self.worth(kernel, state), axis=(0, 1), keepdims=True)

    def sample(self, kernel, state, uniform):
        return self._unless_held(state, lambda: self.draw(kernel, state, uniform))

    def draw(self, kernel: Tensor, state, uniform) -> Tensor:
        """`sample` for as long as the mask is not held."""
        raise NotImplementedError

    def mode(self, kernel, state):
        return self._unless_held(state, lambda: self.top(kernel, state))

    def top(self, kernel: Tensor, state) -> Tensor:
        """The mask of the groups of the highest scores."""
        return super().mode(kernel, state)

    def _unless_held(self, state, find):
        if self.settle is None:
            return find()
        return ops.cond(state["settled"] > 0, lambda: ops.cast(state["held"], "float32"), find)
