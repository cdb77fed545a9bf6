"""One weight under masks: its state, and the pure functions from weight and state to mask."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from keras import ops, tree

from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.methods.traits import DecaysWeights, FollowsWeights, LearnsMasks, ObservesGradients, RemovesUnits, SharesCounts, method_for
from keras_gibbs.numerics.compilation import compiled, runs_at_once
from keras_gibbs.numerics.noise import Uniform, halves
from keras_gibbs.numerics.ranking import count_removed
from keras_gibbs.numerics.replicas import sum_over_replicas
from keras_gibbs.numerics.rows import LONGEST, lengthened, row_length, shortened
from keras_gibbs.specs import Spec
from keras_gibbs.structure.layouts import Layout
from keras_gibbs.structure.prunable import Prunable
from keras_gibbs.typing import Tensor

State = dict[str, Tensor]
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

    def scores(self, weight: Tensor, state: State) -> Tensor:
        """The scores by which a ranking method compares the groups, `(1, 1, groups, contests)`."""
        return self.method.scores(self.arrange(weight), state | self._filled)

    def revise(self, weight: Tensor, state: State, progress: float, key: Tensor, draw: Tensor) -> dict[str, Any]:
        """What the method changes as training comes to `progress`; a new value of the weight, if there is one, in the weight's shape."""
        uniform = Uniform(key, draw)
        updates = dict(
            self.method.revise(self.arrange(weight), state | self._filled, progress, lambda shape, stream=0: uniform(shape, stream=REVISING + stream))
        )
        if "weight" in updates:
            updates["weight"] = ops.cast(self.restore(updates["weight"]), weight.dtype)
        return updates


@functools.lru_cache(maxsize=1024)
def compiled_masks(masks: Masks, function: str) -> Callable:
    """`masks.<function>`, compiled; weights of one kind share it, and with it the time that takes.

    It stays when the models that used it go: a search that prunes one model after the other compiles once. TensorFlow keeps what XLA has compiled until the
    process ends, whoever still refers to it, so that only sharing bounds the memory of many trials.
    """
    return compiled(getattr(masks, function))


class CompiledMasks:
    """The functions of `Masks`, compiled: for rows of a few lengths where the method allows it, so that weights of many shapes share them.

    Args:
        masks: The `Masks` of a weight.
    """

    def __init__(self, masks: Masks):
        method = masks.method.without_numbers()
        self._shape, self._size = masks.shape, math.prod(masks.shape)
        self._length = row_length(self._size) if method.lengthens and self._size <= LONGEST else None
        self._masks = Masks(method, (self._length,), Layout((), (), (0,))) if self._length else dataclasses.replace(masks, method=method)

    def __call__(self, function: str, weight: Tensor, state: State, *args):
        """`masks.<function>(weight, state, *args)`."""
        run = compiled_masks(self._masks, function)
        if not self._length:
            return run(weight, state, *args)
        row = lengthened(ops.reshape(weight, (-1,)), self._length)
        args = [lengthened(x, self._length, axis=2) if len(x.shape) == 4 else x for x in args]
        return tree.map_structure(self._restore, run(row, self._masks.method.lengthen(state, self._size, self._length), *args))

    def in_parts(self, function: str, weight: Tensor, state: State, *args) -> Iterator[tuple[int, Any]]:
        """`masks.<function>(weight, state, *args, start)` of one part of the weight after the other, each with its size: rows, if the method allows them.

        Without a copy of the weight, and without a function that is compiled for its size alone.
        """
        row = ops.reshape(weight, (-1,))
        for start in range(0, self._size, LONGEST):
            size = min(LONGEST, self._size - start)
            part = {name: ops.slice(x, (0, 0, start, 0), (*x.shape[:2], size, x.shape[3])) if len(x.shape) == 4 else x for name, x in state.items()}
            if "cut_index" in part:
                part["cut_index"] = part["cut_index"] - start
            run = CompiledMasks(Masks(self._masks.method, (size,), Layout((), (), (0,))))
            yield size, run(function, ops.slice(row, (start,), (size,)), part, *args, ops.convert_to_tensor(np.int32(start)))

    def _restore(self, x):
        if len(x.shape) == 1:
            return ops.reshape(shortened(x, self._size), self._shape)
        return shortened(x, self._size, axis=2) if len(x.shape) == 4 else x


def _linked(weight, masked, back):
    """`masked`, with `back` as the gradient's way to `weight`."""

    @ops.custom_gradient
    def linked(weight, masked):
        def gradients(*args, upstream=None):
            return back(args[0] if upstream is None else upstream), ops.zeros_like(masked)

        return masked, gradients

    return linked(weight, masked)


class MaskedWeight:
    """A weight that is pruned: the variable, the method's state beside it and the key of its noise.

    Everything that counts, shares out, searches, reports or strips goes over masked weights and names them by their path.

    Args:
        weight: The `Prunable`.
        method: The pruning method.
        seed: Int, the seed of its noise, of which the low 64 bits count.
        add_variable: Function `(name, value, dtype, trainable, overwritten)` that makes a variable of the layer that is saved with it.

    Raises:
        ValueError: Where the method cannot prune the weight.
    """

    def __init__(self, weight: Prunable, method: PruningMethod, seed: int, add_variable: Callable):
        method = method_for(method, weight)
        method.check(weight)
        self.weight, self.method = weight, method
        self.masks = Masks(method, weight.shape, weight.layout)
        self._compiled = CompiledMasks(self.masks)
        self.key = add_variable("key", halves(seed), "int32", False, False)  # saved, so that a resumed run needs no seed
        self.state = {
            name: add_variable(name, halves(seed) if spec.seeded else spec.value, spec.dtype, spec.trainable, spec.overwritten)
            for name, spec in self.specs().items()
        }

    def specs(self) -> dict[str, Spec]:
        """The state that is stored with this weight, by name."""
        return self.method.state(self.masks.arranged_shape)

    @property
    def path(self) -> str:
        """The names of the layers down to the weight and its own."""
        return self.weight.path

    @property
    def variable(self):
        """The variable that is pruned, in its dense form while it trains."""
        return self.weight.variable

    @property
    def groups(self) -> int:
        """The number of groups that compete in a contest."""
        return self.masks.arranged_shape[2]

    def value(self) -> Tensor:
        """The dense weight, as a tensor."""
        return ops.convert_to_tensor(self.variable)

    def trained(self) -> Tensor:
        """The dense weight as a tensor through which gradients reach it."""
        return ops.convert_to_tensor(self.variable)

    def values(self) -> State:
        """The state, as tensors."""
        return {name: ops.convert_to_tensor(variable) for name, variable in self.state.items()}

    def assign(self, updates: dict[str, Any]) -> None:
        """Give state variables new values, by name."""
        for name, value in updates.items():
            self.state[name].assign(value)

    @property
    def _is_large(self):
        return math.prod(self.weight.shape) > LONGEST

    # In the forward pass.

    def train(self, draw: Tensor) -> Tensor:
        """The weight under a mask drawn for one training step, the `draw`-th."""
        return self.train_with_mask(draw)[0]

    def train_with_mask(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        """What `train` gives, and the mask: arranged, or in the shape of the weight."""
        weight, state, key = self.trained(), self.values(), ops.convert_to_tensor(self.key)
        # What is compiled is not differentiated where masks do not learn: so it is compiled once, and the gradient is the mask.
        still = ops.stop_gradient(weight), tree.map_structure(ops.stop_gradient, self._without_decision(state)), key, draw
        decayed = self._decayed(weight, state)
        if isinstance(self.method, LearnsMasks):
            masked, mask, updates = self._compiled("train", decayed, state, key, draw)
        elif self._is_large:
            masked, mask, updates = self._compiled("fused_step", *still)
            masked = _linked(decayed, masked, lambda gradient: self._compiled("mask_gradient", gradient, {}, mask))
        else:
            mask, updates = self._compiled("step", *still)
            masked = self.masks.apply(decayed, mask, state)
        self.assign(updates)
        return self._observed(masked, state), mask

    def _without_decision(self, state):
        """The state that a sample needs: where a method stores a decision, training finds what it needs of it."""
        return {name: value for name, value in state.items() if name != "decision"} if isinstance(self.method, FollowsWeights) else state

    def _decayed(self, weight, state):
        """`weight` itself; on the way back its gradient gains the method's decay times the weight."""
        if not isinstance(self.method, DecaysWeights):
            return weight

        @ops.custom_gradient
        def decayed(weight, factor):
            def gradients(*args, upstream=None):
                return (args[0] if upstream is None else upstream) + factor * weight, ops.zeros_like(factor)

            return weight * 1, gradients

        tensor = ops.reshape(weight, self.weight.shape)  # TensorFlow asks for the gradients of a variable that is read within
        return decayed(tensor, ops.cast(self.masks.restore(self.method.decay(state)), weight.dtype))

    def _observed(self, masked, state):
        """`masked` itself; on the way back its gradient gives the state that the method observes, in place of the gradients of that state."""
        names = self.method.observed if isinstance(self.method, ObservesGradients) else ()
        if not names:
            return masked

        @ops.custom_gradient
        def observed(masked, *values):
            def gradients(*args, upstream=None):
                gradient = args[0] if upstream is None else upstream
                total = sum_over_replicas(gradient)  # outside of what is compiled, where replicas cannot meet
                updates = self._compiled("observe", total, dict(zip(names, values, strict=True)))
                return gradient, *(updates[name] for name in names)

            return masked * 1, gradients

        return observed(masked, *(state[name] for name in names))

    def infer(self, moved: Tensor) -> Tensor:
        """The weight under the deterministic mask, which is found anew where `moved` is not 0."""
        weight, state = self.value(), self.values()
        if not isinstance(self.method, FollowsWeights) or not any(name in state for name in self.method.decided):
            return self.masks.infer(weight, state)
        updates = self._compiled("refresh", weight, state, moved) if self._is_large else self.masks.refresh_small(weight, state, moved)
        self.assign(updates)
        state |= updates
        return self._compiled("infer", weight, state) if self._is_large and "cut_key" in state else self.masks.infer(weight, state)

    # Outside of it: values can be read, and nothing is compiled but the noise.

    def mask(self) -> Tensor:
        """The deterministic mask, found anew; float32, in the weight's shape."""
        return self.masks.restore(self.masks.mode(self.value(), self.values()))

    def sample(self, draw: Tensor) -> Tensor:
        """A mask drawn from the current state, with all that follows from the weight exact; float32, in the weight's shape."""
        weight, state = self.value(), self.values()
        state |= self._compiled("follow", weight, state) if self._is_large else self.masks.follow(weight, state)
        needed = self._without_decision(state)  # as in training, whose compiled function serves here
        return self.masks.restore(self._compiled("step", weight, needed, ops.convert_to_tensor(self.key), draw)[0])

    def masked(self) -> Tensor:
        """The weight that inference runs with, its mask found anew; 0 is never -0."""
        weight = self.value()
        return self.under(self.masks.mode(weight, self.values()), weight)

    def under(self, mask: Tensor, weight: Tensor) -> Tensor:
        """What inference runs with for a `weight` in its own shape and an arranged `mask`; 0 is never -0."""
        return self.masks.under(mask, weight, self.values())

    def count(self) -> int:
        """How many weights inference runs with that are not 0, its mask found anew."""
        return sum(int(count) for _, count in self._reported("count", self.masks.decide))

    def figures(self, draw: Tensor) -> dict[str, float]:
        """The method's own figures, from the current weight and state."""
        parts = self._reported("figures", self.masks.follow, ops.convert_to_tensor(self.key), draw)
        rows = [(size, {name: float(ops.convert_to_numpy(value)) for name, value in found.items()}) for size, found in parts]
        return {name: float(np.float32(sum(size * row[name] for size, row in rows) / math.prod(self.weight.shape))) for name in rows[0][1]}

    def _reported(self, function, find, *args):
        """`masks.<function>` of the current weight and state, a list of the sizes of its parts and what that gives for each.

        It is compiled where the weight is large, or where single operations would be compiled, too. The threshold of a large weight, which `find` finds, is
        left to NumPy: a search that is compiled makes several copies of the weight.
        """
        weight, state = self.value(), self.values()
        if runs_at_once() and not self._is_large:
            found = getattr(self.masks, function)(weight, state, *args)
        elif not (self._is_large and "cut_key" in state):
            found = self._compiled(function, weight, state, *args)
        elif self.method.lengthens:
            return list(self._compiled.in_parts(f"{function}_found", weight, state | find(weight, state), *args))
        else:
            found = self._compiled(f"{function}_found", weight, state | find(weight, state), *args)
        return [(math.prod(self.weight.shape), found)]

    def scores(self, scale: float = 1.0) -> np.ndarray:
        """The scores by which a ranking method compares the groups, of `scale` times the weight; shape `(groups,)`, for a structure of one contest.

        Where a weight is NaN the score is infinite, as it ranks within the weight.
        """
        scores = ops.convert_to_numpy(self.masks.scores(ops.cast(self.value(), "float32") * scale, self.values())).reshape(-1)
        return np.where(np.isnan(scores), np.inf, scores)

    def revise(self, progress: float, draw: Tensor) -> list[tuple[Any, np.ndarray]]:
        """Let the method change what it changes as training comes to `progress`.

        Returns:
            The variables that it has written, each with bool in its shape: where.
        """
        before = self.value()
        updates = self.masks.revise(before, self.values(), progress, ops.convert_to_tensor(self.key), draw)
        after = updates.pop("weight", None)
        self.assign(updates)
        return [] if after is None else self.write(before, after)

    def write(self, before: Tensor, after: Tensor) -> list[tuple[Any, np.ndarray]]:
        """Give the weight a new value; the variables that are written, each with bool in its shape: where."""
        written = ops.convert_to_numpy(ops.not_equal(before, after))
        self.variable.assign(after)
        return [(self.variable, written)]

    def prepare(self) -> None:
        """Let training start from the weight that the method wants, where it wants another than there is."""
        if isinstance(self.method, LearnsMasks) and self.method.replaces(self.weight):
            self.variable.assign(self.method.prepare(self.value()))

    def set_kept(self, kept: int) -> None:
        """Tell a ranking method how many groups this weight keeps."""
        self.assign(self.method.counts(0.0, self.masks.arranged_shape, kept))

    @property
    def settled(self) -> bool:
        """Whether the mask is held as it is."""
        return "settled" in self.state and bool(self.state["settled"].numpy())

    def is_short(self, progress: float) -> bool:
        """Whether a ranking method keeps a group here only because it never removes all."""
        if not isinstance(self.method, SharesCounts) or self.method.scope != "layer" or "sparsity" not in (schedules := self.method.schedules()):
            return False
        return count_removed(self.groups, schedules["sparsity"](max(0.0, progress))) >= self.groups

    # Units that go with their bias.

    def unit_mask(self) -> Tensor | None:
        """Which output units are kept, float32 `(groups,)`, where the method removes whole units; else None."""
        return self.method.unit_mask(self.values()) if isinstance(self.method, RemovesUnits) else None

    @property
    def bias(self):
        """The bias that is removed with the units of this weight, or None."""
        return getattr(self.weight.owner, "bias", None) if isinstance(self.method, RemovesUnits) else None

    @property
    def unit_parameters(self) -> int:
        """How many weights and biases go with a unit."""
        return sum(math.prod(part.shape) for part in (self.variable, self.bias) if part is not None) // self.groups

    def bias_mask(self) -> Tensor:
        """The mask of `bias`, in its shape and dtype."""
        return ops.cast(ops.reshape(self.unit_mask(), self.bias.shape), self.bias.dtype)

    def removed(self) -> list[tuple[Any, Tensor]]:
        """The variables that lose whole units, each with a mask of its own shape: 0 where the unit is removed."""
        weight = (self.variable, self.masks.restore(self.masks.mode(self.value(), self.values())))
        return [weight] if self.bias is None else [weight, (self.bias, self.bias_mask())]


def common_scale(weights: list[MaskedWeight]) -> float:
    """A power of two by which all weights together can be multiplied so that their squares stay in the range of float32; it changes no other bit."""
    values = (np.abs(ops.convert_to_numpy(masked.value()).astype("float32")) for masked in weights)
    largest = max(float(np.max(value, where=np.isfinite(value), initial=0.0)) for value in values)
    return 2.0 ** min(126, max(-126, -math.frexp(largest)[1])) if largest else 1.0
