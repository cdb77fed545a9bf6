"""From a kernel and its state to a mask: the pure functions of one kernel, compiled once for all layers that share a method and a shape."""

import dataclasses
import functools

import numpy as np
from keras import ops

from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.numerics.compilation import compiled
from keras_gibbs.numerics.noise import Uniform
from keras_gibbs.structure.layouts import Layout
from keras_gibbs.typing import Tensor

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Masks:
    """The masks of a kernel of one shape under one method.

    Every function takes the kernel in its own shape and the method's state as tensors. Masks have the kernel's shape and are float32, 1 where a weight is
    kept. A mask is a constant to the kernel: the gradient of a masked kernel is the mask's times what comes from above, 0 where it removes.

    Attributes:
        method: The pruning method.
        shape: Shape of the kernel.
        layout: Which of its axes are which.
    """

    method: PruningMethod
    shape: tuple[int, ...]
    layout: Layout

    @property
    def arranged_shape(self) -> tuple[int, int, int]:
        """Shape of the kernel as the method sees it: (channels, positions, groups)."""
        return tuple(np.prod([self.shape[axis] for axis in part], dtype=int).item() for part in self.method.structure.axes(self.layout))

    def _arrange(self, kernel):
        return self.method.structure.arrange(ops.cast(ops.stop_gradient(kernel), "float32"), self.layout)

    def _restore(self, mask):
        return self.method.structure.restore(mask, self.shape, self.layout)

    def train(self, kernel: Tensor, state: State, key: Tensor, draws: Tensor) -> tuple[Tensor, State]:
        """The masked kernel of one training step, and the state that follows from the kernel."""
        arranged = self._arrange(kernel)
        updates = self.method.measure(arranged, state, exact=False)
        mask = self.method.sample(arranged, state | updates, Uniform(key, draws))
        masked = self.method.apply(kernel, ops.cast(self._restore(mask), kernel.dtype), state)
        return self._observed(masked, state), updates

    def _observed(self, masked, state):
        """`masked` itself; on the way back its gradient gives the state that the method observes, in place of the gradients of that state."""
        names = self.method.observes
        if not names:
            return masked

        @ops.custom_gradient
        def observed(masked, *values):
            def gradients(*args, upstream=None):
                gradient = args[0] if upstream is None else upstream
                updates = self.method.observe(self._arrange(gradient), dict(zip(names, values, strict=True)))
                return gradient, *(updates[name] for name in names)

            return masked * 1, gradients

        return observed(masked, *(state[name] for name in names))

    def hold(self, kernel: Tensor, state: State) -> State:
        """The state of a method that settles, holding the deterministic mask of this moment."""
        return {"held": ops.cast(self._arrange(self.mode(kernel, state))[:1, :1], "uint8"), "settled": np.uint8(1)}

    def infer(self, kernel: Tensor, state: State, moved: Tensor) -> tuple[Tensor, State]:
        """The kernel under the deterministic mask, and the state the mask rests on: found anew where `moved` is not 0, else as stored."""
        arranged = self._arrange(kernel)
        stored = {name: state[name] for name in self.method.remembers if name in state}
        updates = ops.cond(moved > 0, lambda: self.method.decide(arranged, state), lambda: stored) if stored else {}
        mask = self._restore(self.method.mode(arranged, state | updates))
        return self.method.apply(kernel, ops.cast(mask, kernel.dtype), state), updates

    def mode(self, kernel: Tensor, state: State) -> Tensor:
        """The deterministic mask, found anew."""
        kernel = self._arrange(kernel)
        fresh = self.method.decide(kernel, state) if any(name in state for name in self.method.remembers) else {}
        return self._restore(self.method.mode(kernel, state | fresh))

    def draw(self, kernel: Tensor, state: State, key: Tensor, draws: Tensor) -> Tensor:
        """A sample from the current state, with everything that follows from the kernel computed exactly."""
        kernel = self._arrange(kernel)
        state = state | self.method.measure(kernel, state, exact=True)
        return self._restore(self.method.sample(kernel, state, Uniform(key, draws)))

    def figures(self, kernel: Tensor, state: State, key: Tensor, draws: Tensor) -> State:
        """The method's figures, of the sample that `draw` gives."""
        kernel = self._arrange(kernel)
        state = state | self.method.measure(kernel, state, exact=True)
        return self.method.figures(kernel, state, Uniform(key, draws))

    def scores(self, kernel: Tensor, state: State) -> Tensor:
        """The scores by which a ranking method compares the groups, shape `(1, 1, groups)`."""
        return self.method.scores(self._arrange(kernel), state)


@functools.lru_cache(maxsize=256)
def compiled_masks(masks: Masks, function: str):
    """`masks.<function>`, compiled; layers of one method and shape share it, and with it the time to compile."""
    return compiled(getattr(masks, function))
