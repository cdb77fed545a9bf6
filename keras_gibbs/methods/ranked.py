"""Methods whose deterministic mask keeps exactly the groups of the highest scores."""

import copy
import math
from collections.abc import Callable, Mapping

import numpy as np
from keras import ops

from keras_gibbs.methods.base import PruningMethod, check_sparsity
from keras_gibbs.methods.traits import FollowsWeights, SharesCounts
from keras_gibbs.numerics import ranking
from keras_gibbs.numerics.rows import lengthened
from keras_gibbs.specs import Spec
from keras_gibbs.structure.groups import Unstructured
from keras_gibbs.typing import Tensor

TRACKED_SIZE = 10_000  # from so many weights on, an unstructured weight tracks its threshold instead of searching it anew at every step
TRACKED_TOLERANCE = 0.001  # of the weights


class RankedMethod(FollowsWeights, SharesCounts, PruningMethod):
    """A method whose final mask keeps exactly the groups of the highest scores in every contest.

    Of n groups `max(1, n - floor(sparsity * n + 0.5))` are kept; of equal groups the first. A large unstructured weight stores the cut between kept and
    removed groups, the smallest key that is kept and the last index among equal ones (`cut_key`, `cut_index`); any other stores the bits (`decision`).
    """

    decided = ("cut_key", "cut_index", "decision")

    def schedules(self):
        return {"sparsity": check_sparsity(self.sparsity)}

    def without_numbers(self):
        """A copy in which the scheduled fields are 0: `sample`, `mode`, `follow`, `decide` and `figures` find their values in the state."""
        return self.with_values(**{name: 0.0 for name in self.schedules() if hasattr(self, name)})

    def with_values(self, **values):
        """A copy with other values of some fields, unchecked."""
        changed = copy.copy(self)
        vars(changed).update(values)
        return changed

    def state(self, shape):
        state = super().state(shape)
        if "sparsity" in state:
            state |= {name: Spec(value, _dtype(value)) for name, value in self.counts(state["sparsity"].value, shape).items()}
            if self.tracks(shape):
                state |= {"cut_key": Spec(0, "int32"), "cut_index": Spec(-1, "int32")}
            else:
                state |= {"decision": Spec(np.ones((1, 1, *shape[2:])), "bool")}
        return state

    def tracks(self, shape: tuple[int, int, int, int]) -> bool:
        """Whether a weight is large enough that its thresholds are remembered between steps."""
        return isinstance(self.structure, Unstructured) and shape[2] >= TRACKED_SIZE

    def counts(self, sparsity, shape, kept=None):
        return {"kept": ranking.count_kept(shape[2], sparsity) if kept is None else kept}

    def revise(self, weight, state, progress, uniform):
        updates = super().revise(weight, state, progress, uniform)
        if "sparsity" in updates and self.scope == "layer":
            updates |= self.counts(updates["sparsity"], tuple(weight.shape))
        return updates

    def keys(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What ranks the groups, as int32 keys of the same order."""
        return self.keys_in(self.order(weight, state), state)

    def keys_in(self, scores: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Scores of the groups as int32 keys of the same order; what the structure or a longer row has filled in ranks last."""
        keys = self.keys_of(scores)
        if "filled" in state:
            keys = ops.where(ops.any(state["filled"], axis=(0, 1), keepdims=True), keys, ranking.LOWEST)
        if "groups" in state:
            keys = ops.where(_is_group(keys, state), keys, ranking.LOWEST)
        return keys

    def order(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What ranks the groups of one weight: like the scores, or other numbers of the same order where those leave the range of float32."""
        return self.scores(weight, state)

    def keys_of(self, scores: Tensor) -> Tensor:
        """Scores as keys: the bits themselves, where no score is negative."""
        return ops.view(ops.cast(scores, "float32"), dtype="int32")

    def track(self, keys: Callable[[], Tensor], length: int, state: Mapping[str, Tensor], below: Tensor, guess: Tensor) -> Tensor:
        """A key that has `below` of the `keys`, `length` in all, under it, to within 0.001 of the groups, found from the last step's."""
        share = state["tolerance"] if "tolerance" in state else int(TRACKED_TOLERANCE * length)
        tolerance = ops.minimum(share, state["kept"] // 20)  # where few are kept, to a twentieth of them
        return ranking.track(keys, below, guess, tolerance)

    def follow(self, weight, state, exact=False):
        """The top groups, which `sample` gives unless a subclass draws other masks: their cut, from the last step's where one is stored."""
        if exact or "cut_key" not in state:
            return self.decide(weight, state)
        length = weight.shape[2]
        key = self.track(lambda: self.keys(weight, state), length, state, length - state["kept"], state["cut_key"])
        return {"cut_key": key, "cut_index": _count_groups(weight, state) - 1}

    def decide(self, weight, state):
        keys = self.keys(weight, state)
        if "cut_key" in state:
            key, index = ranking.cut(keys, state["kept"], guess=state["cut_key"])
            return {"cut_key": key, "cut_index": ops.minimum(index, _count_groups(weight, state) - 1)}
        return {"decision": ops.cast(ranking.top(keys, state["kept"]), "bool")}

    def decide_again(self, weight, state, moved):
        if not self.structure.one_contest:
            return super().decide_again(weight, state, moved)
        keys = self.keys(weight, state)
        if "cut_key" in state:
            key, index = ranking.cut_again(keys, state["kept"], state["cut_key"], state["cut_index"], moved)
            return {"cut_key": key, "cut_index": ops.minimum(index, _count_groups(weight, state) - 1)}
        cut = ranking.cut_again(keys, state["kept"], moved, moved, moved)  # without a stored one
        return {"decision": ops.where(moved > 0, ops.cast(ranking.keep(keys, *cut), "bool"), state["decision"])}

    def mode(self, weight, state):
        if "cut_key" in state:
            return ranking.keep(self.keys(weight, state), state["cut_key"], state["cut_index"])
        return ops.cast(state["decision"], "float32")

    def lengthen(self, state: Mapping[str, Tensor], groups: int, length: int) -> dict[str, Tensor]:
        """The state for a row of `length` weights of which the first `groups` are there and the rest zeros, which rank last and never count."""
        numbers = {"groups": groups, "tolerance": int(TRACKED_TOLERANCE * groups)}
        if "quantile_rank" in state:
            numbers["quantile_rank"] = state["quantile_rank"] + (length - groups)
        rows = {name: lengthened(value, length, axis=2) if len(value.shape) == 4 else value for name, value in state.items()}
        return rows | {name: ops.cast(value, "int32") for name, value in numbers.items()}


def _is_group(x, state):
    return ops.arange(x.shape[2], dtype="int32")[:, None] < state["groups"]


def _count_groups(weight, state):
    return state["groups"] if "groups" in state else ops.shape(weight)[2]


def mean_of(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The mean of `x`, which broadcasts to the groups, over those there are."""
    if "groups" not in state:
        return ops.mean(x)
    x = ops.reshape(x, (1, 1, -1, 1))
    return ops.sum(ops.where(_is_group(x, state), x, 0.0)) / ops.cast(state["groups"], "float32")


def mean_over_groups(worth: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The mean of `worth`, in the arranged shape, over the weights of each group: float32 `(1, 1, groups, contests)`."""
    if "filled" not in state:
        return worth if math.prod(worth.shape[:2]) == 1 else ops.mean(worth, axis=(0, 1), keepdims=True)
    filled = ops.cast(state["filled"], "float32")
    count = ops.sum(filled, axis=(0, 1), keepdims=True)
    return ops.sum(worth * filled, axis=(0, 1), keepdims=True) / ops.maximum(count, 1.0)


def _dtype(value):
    return "int32" if isinstance(value, int) else "float32"
