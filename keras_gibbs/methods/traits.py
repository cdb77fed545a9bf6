"""What only some pruning methods need: small classes that a method inherits beside `PruningMethod`.

Whoever runs a method asks `isinstance(method, Trait)`. Tensors are arranged as in `PruningMethod`.
"""

from collections.abc import Mapping
from typing import Any

import keras

from keras_gibbs.schedules import Schedule
from keras_gibbs.typing import Tensor


class FollowsWeights:
    """State that follows the weights: a threshold that training refines at every step, and a decision that inference rests on.

    Attributes:
        decided: The names of the state that `decide` may give.
        sampled: The names of state that only `follow` and `sample` read: inference runs without it.
    """

    decided: tuple[str, ...] = ()
    sampled: tuple[str, ...] = ()

    def follow(self, weight: Tensor, state: Mapping[str, Tensor], exact: bool = False) -> dict[str, Tensor]:
        """The state that `sample` needs, at every training step; it may refine that of the last step unless it is to be `exact`."""
        return {}

    def decide(self, weight: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state that `mode` needs: found once after the weights have moved, exactly, and stored for every inference step until they move again."""
        return {}

    def decide_again(self, weight: Tensor, state: Mapping[str, Tensor], moved: Tensor) -> dict[str, Tensor]:
        """`decide` where `moved`, a scalar int32, is not 0, else what is stored: for small weights, where few operations count more than an idle one."""
        stored = {name: state[name] for name in self.decided if name in state}
        return keras.ops.cond(moved > 0, lambda: {name: self.decide(weight, state)[name] for name in stored}, lambda: stored)


class ObservesGradients:
    """State that follows the gradients of training."""

    @property
    def observed(self) -> tuple[str, ...]:
        """The state that `observe` gives; its specs have `overwritten`. Empty where nothing is observed."""
        raise NotImplementedError

    def observe(self, gradient: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state named in `observed`, after a step in which the loss had this gradient with respect to the masked weight: removed weights have one too."""
        raise NotImplementedError


class SharesCounts:
    """How many groups are kept is shared out among the weights of a model, unless `scope` is `"layer"`."""

    scope: Any = "layer"
    floor: float = 0.0  # the least density of a weight, as a fraction of that of the network, where all are ranked together
    settle: float | None = None  # the progress from which the mask is held, if ever: counts are then shared out a last time

    def scores(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What the groups are ranked by, float32 `(1, 1, groups, contests)`."""
        raise NotImplementedError

    def counts(self, sparsity: float, shape: tuple[int, int, int, int], kept: int | None = None) -> dict[str, Any]:
        """The state that says how many groups of a weight of arranged `shape` are kept: by the sparsity, or `kept` of them where that is given."""
        raise NotImplementedError


class LearnsMasks:
    """Masks that have trainable variables of their own."""

    @property
    def trains_weights(self) -> bool:
        """False where the weights of the model stay as they are and only masks are learned."""
        raise NotImplementedError

    def apply(self, weight: Tensor, mask: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The weight that the layer runs with; `weight` and `mask` in the weight's own shape."""
        raise NotImplementedError

    def penalty(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """A scalar that joins the loss at every training step, or None."""
        return None

    def replaces(self, weight) -> bool:
        """Whether training starts from another value of `weight`, a `Prunable`, than its own: that of `prepare`."""
        return False

    def prepare(self, value: Tensor) -> Tensor:
        """The value that a weight starts from, where `replaces`; in the weight's own shape."""
        raise NotImplementedError


class DecaysWeights:
    """An L2 penalty of the method's own, as a part of the gradient: regularizers and the optimizer's decay stay as they are."""

    def decay(self, state: Mapping[str, Tensor]) -> Tensor:
        """lambda of every weight w, whose gradient gains lambda w; float32 that broadcasts to the arranged shape."""
        raise NotImplementedError


class RemovesUnits:
    """Masks that remove whole units, each with its bias."""

    def unit_mask(self, state: Mapping[str, Tensor]) -> Tensor:
        """Which units are kept, float32 `(groups,)`."""
        raise NotImplementedError


class SearchesModel:
    """Masks that are found by a search which sees the batch and the whole model: `prune` returns a model of a class of its own."""


class FindsMasks:
    """Masks that are found before training, from the whole model and perhaps data: `prune` gives every weight a `Fixed` mask in place of the method."""

    def find(self, model, weights: list, data, loss, seed: int):
        """The `Fixed` method with the masks of `weights`, a list of `Prunable` of `model`; nothing is changed. `seed` is of what is drawn.

        Raises:
            ValueError: Where the data or the loss is missing, does not fit, or is not finite.
        """
        raise NotImplementedError

    def finish(self, masked: list) -> None:
        """Change what the method changes beside the masks, in the pruned copy; `masked` is the list of its `MaskedWeight`."""


class DiffersByWeight:
    """A method that is another one for every weight."""

    def check_weights(self, weights: list) -> None:
        """Raise `ValueError` where the method does not fit a model with these prunable weights, a list of `Prunable`."""

    def for_weight(self, weight):
        """The method as `weight`, a `Prunable`, gets it."""
        raise NotImplementedError


class ChecksTraining:
    """A method that not every optimizer can serve."""

    def check_training(self, optimizer: keras.optimizers.Optimizer, layers: list[keras.layers.Layer]) -> None:
        """Raise `ValueError` where `fit` with `optimizer` cannot serve the method; `layers` are the wrapped layers it prunes."""


def method_for(method, weight):
    """The method as `weight`, a `Prunable`, gets it."""
    return method.for_weight(weight) if isinstance(method, DiffersByWeight) else method


def trains_weights(method) -> bool:
    """Whether the weights of a model train under `method`."""
    return not isinstance(method, LearnsMasks) or method.trains_weights


def scope_of(method) -> str:
    """The scope in which `method` shares out what is kept; `"layer"` where it does not."""
    return method.scope if isinstance(method, SharesCounts) else "layer"


def waits(schedules: dict[str, Schedule], progress: float) -> bool:
    """Whether at `progress` (negative: never moved) there are schedules that no callback has moved, or a sparsity that has not come to its end."""
    spans = {name: schedule.span for name, schedule in schedules.items() if schedule.span is not None}
    return bool(spans) and (progress < 0 or ("sparsity" in spans and progress < spans["sparsity"][1]))
