"""One weight under masks: the variable, the state beside it, and what training, inference and reports take from them."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_gibbs.compiled_masks import CompiledMasks
from keras_gibbs.masks import Masks
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.methods.traits import DecaysWeights, FollowsWeights, LearnsMasks, ObservesGradients, RemovesUnits, SharesCounts, method_for
from keras_gibbs.numerics.compilation import runs_at_once
from keras_gibbs.numerics.noise import halves
from keras_gibbs.numerics.ranking import count_removed
from keras_gibbs.numerics.replicas import sum_over_replicas
from keras_gibbs.numerics.rows import LONGEST
from keras_gibbs.specs import Spec
from keras_gibbs.structure.prunable import Prunable
from keras_gibbs.typing import State, Tensor


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
        still = ops.stop_gradient(weight), self._still(self._without_decision(state)), key, draw
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

    def _still(self, state):
        """The state without gradients, which reach only what is trained or overwritten."""
        return {name: ops.stop_gradient(value) if self.state[name].trainable else value for name, value in state.items()}

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
        if not self._is_large:
            masked, updates = self._compiled.infer_small(weight, state, moved)
            self.assign(updates)
            return masked
        updates = self._compiled("refresh", weight, state, moved)
        self.assign(updates)
        state |= updates
        return self._compiled("infer", weight, state) if "cut_key" in state else self.masks.infer(weight, state)

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
        return sum(int(count) for _, count in self._reported("count", self._decide))

    def figures(self, draw: Tensor) -> dict[str, float]:
        """The method's own figures, from the current weight and state."""
        parts = self._reported("figures", self._follow, ops.convert_to_tensor(self.key), draw)
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
            found = self._compiled.report(function, weight, state, *args)
        elif self.method.lengthens:
            return list(self._compiled.in_parts(f"{function}_found", weight, state | find(weight, state), *args))
        else:
            found = self._compiled(f"{function}_found", weight, state | find(weight, state), *args)
        return [(math.prod(self.weight.shape), found)]

    def _decide(self, weight, state):
        """`masks.decide` of a large weight."""
        return self.masks.decide(weight, state) if self._sees_all else self._seen(weight, state).decide(self._symbolic, state)

    def _follow(self, weight, state):
        """`masks.follow` of a large weight."""
        return self.masks.follow(weight, state) if self._sees_all else self._seen(weight, state).follow(self._symbolic, state, exact=True)

    @property
    def _sees_all(self):
        """Whether the method is given a large weight itself. On JAX every single operation makes a copy of it: not where it only needs keys and scores."""
        return runs_at_once() or not self.method.lengthens

    @property
    def _symbolic(self):
        return keras.KerasTensor(self.masks.arranged_shape)

    def _seen(self, weight, state):
        """The method, with its keys and scores of `weight` found in one pass each."""
        return self.method.with_values(**{name: lambda *_, name=name: self._compiled(name, weight, state) for name in ("keys", "scores")})

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
