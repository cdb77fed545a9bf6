"""What a pruning method is: a frozen configuration that says how a weight and a little state become a mask."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_gibbs.budget import Budget
from keras_gibbs.configuration import Configuration
from keras_gibbs.schedules import Schedule, as_schedule
from keras_gibbs.specs import Spec
from keras_gibbs.structure.groups import Structure, Unstructured
from keras_gibbs.typing import Tensor


class PruningMethod(Configuration):
    """Base of the methods.

    A method holds configuration only. Its state lives in variables of the layer and is handed in as a dict of tensors. Every weight comes arranged, as a
    float32 tensor `(channels, positions, groups, contests)` (see `keras_gibbs.structure.groups`), and a mask is any float32 tensor of 0 and 1 that
    broadcasts to it. Where the structure had to fill the arrangement up, the state has an entry `"filled"`, bool in the arranged shape, False where
    no weight is.

    What only some methods need is a trait beside this class (`keras_gibbs.methods.traits`): thresholds that follow the weights, gradients that are observed,
    masks that are learned, units that go with their bias, counts that are shared out.
    """

    structure: Structure = Unstructured()

    lengthens = False  # whether a weight may be followed by zeros, `state["groups"]` saying how many groups there are: see `RankedMethod`

    def without_numbers(self) -> "PruningMethod":
        """The method without the numbers that reach its functions through the state only: methods that agree in the rest share what is compiled."""
        return self

    def check(self, weight) -> None:
        """Raise `ValueError` where the method cannot prune `weight`, a `keras_gibbs.structure.prunable.Prunable`."""
        self.structure.check(weight)

    def schedules(self) -> dict[str, Schedule]:
        """The scheduled quantities, by the name of their state variable."""
        return {}

    def state(self, shape: tuple[int, int, int, int]) -> dict[str, Spec]:
        """The state variables of a weight whose arranged shape is `shape`; here those of the schedules, at the beginning of training."""
        return {name: Spec(schedule(0.0)) for name, schedule in self.schedules().items()}

    def sample(self, weight: Tensor, state: Mapping[str, Tensor], uniform) -> Tensor:
        """The mask of one training step.

        Args:
            weight: float32 tensor `(channels, positions, groups, contests)`; no gradient flows into it.
            state: The state variables, as tensors.
            uniform: `uniform(shape, stream=0)` gives uniform float32 numbers in [0, 1); different streams are independent.

        Returns:
            float32 tensor that broadcasts to the shape of `weight`, 1 where it keeps. By default that of `mode`: a method without noise.
        """
        return self.mode(weight, state)

    def mode(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The one deterministic mask that the state stands for, of inference, `strip_pruning` and every count. Like `sample`, without noise."""
        raise NotImplementedError

    def is_due(self, before: float, after: float) -> bool:
        """Whether `revise` may change anything as training comes from one progress, negative before the first, to another."""
        return True

    def reads_weight(self, progress: float) -> bool:
        """Whether `revise` looks at the values of the weight as training comes to `progress`; where not, it gets a symbolic tensor in the place of one."""
        return True

    def revise(self, weight: Tensor, state: Mapping[str, Tensor], progress: float, uniform) -> dict[str, Any]:
        """What changes outside of the training step, whenever the callback moves the schedules.

        Called eagerly, with tensors whose values can be read. Annealed numbers, a mask that is held from some moment on, weights that are dropped and grown:
        whatever the method does at times of its own.

        Args:
            weight, uniform: As in `sample`.
            state: The state before the change.
            progress: How far training has come, in [0, 1].

        Returns:
            New values of state variables, by name; under `"weight"` also a new value of the arranged weight, where the method writes it.
        """
        return {name: schedule(progress) for name, schedule in self.schedules().items() if schedule.span is not None}

    def figures(self, weight: Tensor, state: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Scalars worth following during training, by name; logged once per epoch. `mask` is one that `sample` has given for this weight and state."""
        return {}


def check_sparsity(sparsity) -> Schedule:
    """The schedule of a `sparsity` argument, or an error that explains what it means."""
    if isinstance(sparsity, Budget):
        return as_schedule(sparsity)
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float, np.number, Schedule)):
        raise TypeError(
            f"`sparsity` must be a number in [0, 1), a schedule such as `Polynomial(0.0, 0.9)`, or a `Budget`. Received: sparsity={sparsity!r}."
        )
    low, high = sparsity.bounds if isinstance(sparsity, Schedule) else (sparsity, sparsity)
    if not (0.0 <= low and high < 1.0):
        hint = f" For {high:g} percent pass {high / 100:g}." if 1.0 < high < 100.0 else ""
        raise ValueError(f"`sparsity` must lie in [0, 1): it is the fraction of weights removed. Received: sparsity={sparsity!r}.{hint}")
    return as_schedule(sparsity)


def check_structure(structure) -> None:
    """Raise `TypeError` unless `structure` is one."""
    if not isinstance(structure, Structure):
        raise TypeError(f"`structure` must be `Unstructured()`, `Kernel()`, `Filter()` or another structure, an object. Received: structure={structure!r}.")
