"""The masks of one weight: pure functions from the weight and a method's state to a mask and to what training runs with."""

import dataclasses
import functools
from typing import Any

import keras
from keras import ops

from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.methods.traits import FollowsWeights, LearnsMasks
from keras_gibbs.numerics.noise import Uniform
from keras_gibbs.structure.layouts import Layout
from keras_gibbs.typing import State, Tensor

REVISING = 2**20  # the streams of noise from here on are those of `revise`


@dataclasses.dataclass(frozen=True)
class Masks:
    """The masks of a weight of one shape under one method, as pure functions.

    Every function takes the weight in its own shape and the method's state as tensors. Masks have the weight's shape and are float32, 1 where a weight is
    kept. A mask is a constant to the weight: the gradient of a masked weight is the mask's times what comes from above, 0 where it removes.

    Attributes:
        method: The pruning method.
        shape: Shape of the weight.
        layout: Which of its axes are which.
    """

    method: PruningMethod
    shape: tuple[int, ...]
    layout: Layout

    @property
    def arranged_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight as the method sees it: (channels, positions, groups, contests)."""
        return self.method.structure.shape(self.shape, self.layout)

    @functools.cached_property
    def _filled(self):
        filled = self.method.structure.filled(self.shape, self.layout)
        return {} if filled is None else {"filled": filled}

    @property
    def _follows(self):
        return isinstance(self.method, FollowsWeights)

    def arrange(self, weight: Tensor) -> Tensor:
        """The weight as methods see it."""
        return self.method.structure.arrange(ops.cast(ops.stop_gradient(weight), "float32"), self.layout)

    def restore(self, arranged: Tensor) -> Tensor:
        """What is arranged, or broadcasts to that, in the shape of the weight."""
        return self.method.structure.restore(arranged, self.shape, self.layout)

    def apply(self, weight: Tensor, mask: Tensor, state: State) -> Tensor:
        """The weight that the layer runs with, under an arranged `mask`."""
        mask = ops.cast(self.restore(mask), weight.dtype)
        return self.method.apply(weight, mask, state) if isinstance(self.method, LearnsMasks) else weight * mask

    def train(self, weight: Tensor, state: State, key: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, State]:
        """The masked weight of one training step, its mask, arranged, and the state that follows from the weight; gradients reach state that is learned."""
        mask, updates = self.step(weight, state, key, draw)
        return self.apply(weight, mask, state), mask, updates

    def step(self, weight: Tensor, state: State, key: Tensor, draw: Tensor) -> tuple[Tensor, State]:
        """The mask of one training step, arranged, and the state that follows from the weight."""
        arranged, state = self.arrange(weight), state | self._filled
        updates = self.method.follow(arranged, state) if self._follows else {}
        return self.method.sample(arranged, state | updates, Uniform(key, draw)), updates

    def fused_step(self, weight: Tensor, state: State, key: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, State]:
        """`step` and what it masks in one pass over memory: the masked weight, the mask in the weight's shape as bool, and the state."""
        mask, updates = self.step(weight, state, key, draw)
        mask = self.restore(mask)
        return weight * ops.cast(mask, weight.dtype), ops.cast(mask, "bool"), updates

    def mask_gradient(self, gradient: Tensor, state: State, keeps: Tensor) -> Tensor:
        """The gradient with respect to the weight, from that with respect to the masked one; `keeps` is a mask as bool."""
        return gradient * ops.cast(ops.reshape(keeps, gradient.shape), gradient.dtype)

    def observe(self, gradient: Tensor, state: State) -> State:
        """The state that follows from the gradient of the loss with respect to the masked weight."""
        return self.method.observe(self.arrange(gradient), state)

    def decide(self, weight: Tensor, state: State) -> State:
        """The decision that the deterministic mask rests on, found anew: those of its parts that are stored."""
        arranged, state = self.arrange(weight), state | self._filled
        return {name: value for name, value in self.method.decide(arranged, state).items() if name in state} if self._follows else {}

    def refresh(self, weight: Tensor, state: State, moved: Tensor) -> State:
        """The decision, found anew where `moved` is not 0, else as it is stored; for large weights."""
        stored = {name: state[name] for name in self.method.decided if name in state}
        return ops.cond(moved > 0, lambda: self.decide(weight, state), lambda: stored)

    def refresh_small(self, weight: Tensor, state: State, moved: Tensor) -> State:
        """`refresh` in few operations."""
        return self.method.decide_again(self.arrange(weight), state | self._filled, moved)

    def infer(self, weight: Tensor, state: State) -> Tensor:
        """The weight under the deterministic mask, which rests on the decision as it is stored."""
        return self.apply(weight, self.stored(weight, state), state)

    def infer_small(self, weight: Tensor, state: State, moved: Tensor) -> tuple[Tensor, State]:
        """`refresh_small`, and `infer` with what that gives."""
        updates = self.refresh_small(weight, state, moved)
        return self.infer(weight, state | updates), updates

    def stored(self, weight: Tensor, state: State) -> Tensor:
        """The deterministic mask, which rests on the decision as it is stored; arranged."""
        return self.method.mode(self.arrange(weight), state | self._filled)

    def mode(self, weight: Tensor, state: State) -> Tensor:
        """The deterministic mask, found anew; arranged."""
        arranged, state = self.arrange(weight), state | self._filled
        return self.method.mode(arranged, self._decided(arranged, state))

    def _decided(self, arranged, state):
        return state | self.method.decide(arranged, state) if self._follows else state

    def follow(self, weight: Tensor, state: State) -> State:
        """What follows from the weight of the state that a sample needs, exactly."""
        return self.method.follow(self.arrange(weight), state | self._filled, exact=True) if self._follows else {}

    def figures(self, weight: Tensor, state: State, key: Tensor, draw: Tensor) -> State:
        """The method's figures, of a mask drawn from the state with all that follows from the weight exact."""
        return self.figures_found(weight, state | self.follow(weight, state), key, draw)

    def figures_found(self, weight: Tensor, state: State, key: Tensor, draw: Tensor, start: Tensor | None = None) -> State:
        """`figures`, where `state` holds what follows from the weight; of the part of a weight that begins at `start`."""
        arranged, state = self.arrange(weight), state | self._filled
        return self.method.figures(arranged, state, self.method.sample(arranged, state, Uniform(key, draw, start)))

    def count(self, weight: Tensor, state: State) -> Tensor:
        """How many weights inference runs with that are not 0, its mask found anew; scalar int32."""
        return ops.count_nonzero(self.under(self.mode(weight, state), weight, state))

    def count_found(self, weight: Tensor, state: State, start: Tensor | None = None) -> Tensor:
        """`count`, where `state` holds the decision; wherever the part that `weight` is of a weight begins."""
        return ops.count_nonzero(self.under(self.stored(weight, state), weight, state))

    def under(self, mask: Tensor, weight: Tensor, state: State) -> Tensor:
        """`apply` where `mask` keeps, and 0, never -0, where it removes."""
        return ops.where(self.restore(mask) > 0, self.apply(weight, mask, state), ops.zeros((), weight.dtype))

    def keys(self, weight: Tensor, state: State) -> Tensor:
        """What a ranking method ranks the groups by, int32 `(1, 1, groups, contests)`."""
        return self.method.keys(self.arrange(weight), state | self._filled)

    def scores(self, weight: Tensor, state: State) -> Tensor:
        """The scores by which a ranking method compares the groups, `(1, 1, groups, contests)`."""
        return self.method.scores(self.arrange(weight), state | self._filled)

    def revise(self, weight: Tensor, state: State, progress: float, key: Tensor, draw: Tensor) -> dict[str, Any]:
        """What the method changes as training comes to `progress`; a new value of the weight, if there is one, in the weight's shape."""

        def uniform(shape, stream=0):  # few methods ask for noise, and schedules may move at every step
            return Uniform(key, draw)(shape, stream=REVISING + stream)

        arranged = self.arrange(weight) if self.method.reads_weight(progress) else keras.KerasTensor(self.arranged_shape)
        updates = dict(self.method.revise(arranged, state | self._filled, progress, uniform))
        if "weight" in updates:
            updates["weight"] = ops.cast(self.restore(updates["weight"]), weight.dtype)
        return updates


class AnyLength(Masks):
    """The masks of a row whose length is not known; for methods that lengthen, whose groups are single weights."""

    def arrange(self, weight):
        return ops.reshape(ops.cast(ops.stop_gradient(weight), "float32"), (1, 1, -1, 1))

    def restore(self, arranged):
        return ops.reshape(arranged, (-1,))
