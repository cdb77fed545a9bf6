"""What the methods share that train a sparse network whose mask moves: weights are dropped and others are grown."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from keras import ops

from keras_gibbs.budget import Budget
from keras_gibbs.methods.base import PruningMethod, check_sparsity, check_structure
from keras_gibbs.methods.ranked import mean_over_groups
from keras_gibbs.methods.traits import SharesCounts
from keras_gibbs.numerics import ranking
from keras_gibbs.numerics.noise import Uniform
from keras_gibbs.schedules import Schedule
from keras_gibbs.specs import Spec
from keras_gibbs.structure.allocation import Table
from keras_gibbs.structure.groups import Structure, Unstructured
from keras_gibbs.typing import Tensor


@dataclasses.dataclass(frozen=True)
class DynamicMethod(SharesCounts, PruningMethod):
    """A method that starts from a random mask and, now and then, drops the smallest kept groups and grows as many others.

    A grown weight starts from 0, and `GibbsPruningCallback` clears what the optimizer remembers of it. A group that is dropped and grown in one update goes on
    as it was. A subclass says in `growth` which groups grow.

    Attributes:
        sparsity: Fraction of the groups that is removed at every moment, a number in [0, 1), or a `Budget`.
        structure: `Unstructured()`, `Kernel()` or `Filter()`; groups are dropped by the mean square of their weights.
        scope: `"shape"` (ERK) keeps small kernels denser; `"layer"` removes the same fraction in every layer, a `Table` what it says.
        fraction: How many of the kept groups the first update moves, in (0, 1]; it falls to 0 at `end` by a cosine.
        every: The progress of training between two updates, in (0, 1]. They come when the callback moves: with `update_freq="batch"` on time, with `"epoch"` at
            most once an epoch.
        end: The progress of training from which the mask stays, in (0, 1].
    """

    sparsity: float | Budget
    structure: Structure = dataclasses.field(default=Unstructured(), kw_only=True)
    scope: str | Table = dataclasses.field(default="shape", kw_only=True)
    fraction: float = dataclasses.field(default=0.3, kw_only=True)
    every: float = dataclasses.field(default=0.01, kw_only=True)
    end: float = dataclasses.field(default=0.75, kw_only=True)

    def __post_init__(self):
        if isinstance(self.sparsity, Schedule):
            raise TypeError(f"`sparsity` of {type(self).__name__} must be a number, the same throughout. Received: sparsity={self.sparsity!r}.")
        check_sparsity(self.sparsity)
        check_structure(self.structure)
        if not self.structure.one_contest:
            raise ValueError(f"{type(self).__name__} moves groups within one contest. Received: structure={self.structure!r}. Use `Unstructured()`.")
        if self.scope not in ("layer", "shape") and not isinstance(self.scope, Table):
            raise ValueError(f"`scope` of {type(self).__name__} must be 'shape', 'layer' or a `Table`. Received: scope={self.scope!r}.")
        for name in ("fraction", "every", "end"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must lie in (0, 1]. Received: {name}={getattr(self, name)!r}.")

    def growth(self, weight: Tensor, state: Mapping[str, Tensor], uniform) -> Tensor:
        """What groups grow by, the largest first: float32 `(1, 1, groups, contests)`. Arguments as those of `revise`."""
        raise NotImplementedError

    def schedules(self):
        return {"sparsity": check_sparsity(self.sparsity)}

    def counts(self, sparsity, shape, kept=None):
        return {"kept": ranking.count_kept(shape[2], sparsity) if kept is None else kept}

    def state(self, shape):
        return super().state(shape) | {
            "noise": Spec(np.zeros(2), "int32", seeded=True),
            "kept": Spec(self.counts(self.sparsity, shape)["kept"], "int32"),
            "held": Spec(np.zeros((1, 1, *shape[2:])), "bool"),
            "started": Spec(0, "int32"),
            "updates": Spec(0, "int32"),
        }

    def mode(self, weight, state):
        return ops.cond(state["started"] > 0, lambda: ops.cast(state["held"], "float32"), lambda: self._first(weight, state))

    def _first(self, weight, state):
        noise = Uniform(state["noise"], 0)((1, 1, *weight.shape[2:]))
        return ranking.top(ranking.to_key(noise), state["kept"])

    def is_due(self, before, after):
        # A step that stands for none costs a look at the weights; one that is left out costs an update: so what was before is taken as a little less.
        return not 0 <= before <= after or math.floor(after / self.every + 1e-9) > math.floor(before / self.every - 1e-4)

    def revise(self, weight, state, progress, uniform):
        updates = super().revise(weight, state, progress, uniform)
        number = math.floor(progress / self.every + 1e-9)
        if not _number(state["started"]):
            return updates | {"held": self._first(weight, state) > 0, "started": 1, "updates": number}
        if number <= _number(state["updates"]) or progress >= self.end:
            return updates | {"updates": number}
        share = 0.5 * self.fraction * (1.0 + math.cos(math.pi * progress / self.end))
        before = ops.convert_to_numpy(state["held"]).reshape(-1)
        worth = ops.convert_to_numpy(mean_over_groups(weight * weight, state)).reshape(-1)
        after = move(before, worth, ops.convert_to_numpy(self.growth(weight, state, uniform)).reshape(-1), share)
        grown = (after & ~before).reshape(1, 1, -1, 1)
        return updates | {"held": after.reshape(1, 1, -1, 1), "updates": number, "weight": ops.where(grown, 0.0, weight)}


def move(kept: np.ndarray, worth: np.ndarray, growth: np.ndarray, share: float) -> np.ndarray:
    """The mask after the `share` of the kept groups of least worth is dropped, and as many of the largest growth among the others are grown.

    Args:
        kept: bool `(groups,)`.
        worth, growth: float `(groups,)`; of equal groups the first is dropped and the first is grown.
        share: How many of the kept groups move, rounded down, and never more than there are removed ones.

    Returns:
        bool `(groups,)`, as many True as in `kept`.
    """
    moved = min(int(share * kept.sum()), int((~kept).sum()))
    dropped = np.argsort(np.where(kept, worth, np.inf), kind="stable")[:moved]
    after = kept.copy()
    after[dropped] = False
    after[np.argsort(np.where(after, np.inf, -growth), kind="stable")[:moved]] = True
    return after


def _number(tensor):
    return int(ops.convert_to_numpy(tensor))
