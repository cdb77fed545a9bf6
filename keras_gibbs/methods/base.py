"""What a pruning method is: a frozen configuration that says how a kernel and a little state become a mask."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_gibbs.configuration import Configuration
from keras_gibbs.numerics import ranking
from keras_gibbs.schedules import Schedule, as_schedule
from keras_gibbs.specs import Spec
from keras_gibbs.structure.groups import Structure, Unstructured
from keras_gibbs.typing import Tensor

TRACKED_SIZE = 10_000  # from so many weights on, an unstructured layer tracks its threshold instead of searching it anew at every step
TRACKED_TOLERANCE = 0.001  # of the weights


class PruningMethod(Configuration):
    """Base of the methods.

    A method holds configuration only. Its state lives in the variables of the wrapper (`Pruned`) and is handed in as a dict of tensors; every kernel
    comes arranged as `(channels, positions, groups)` (see `structures`), and a mask is any float32 tensor of 0 and 1 that broadcasts to it. The
    wrapper asks, in this order:

    - `state(shape)` once, for the variables;
    - `changes(progress, groups)` whenever training has moved on, for the values of the scheduled ones (`anneal`) and the whole numbers that follow from
      them (`targets`);
    - `measure(kernel, state)` at every training step, for state that follows the kernel, such as a threshold;
    - `sample(kernel, state, uniform)` at every training step, for a mask;
    - `observe(gradient, state)` at every training step, for state that follows from the gradient at the masked kernel;
    - `mode(kernel, state)` at inference and when stripping, for the one deterministic mask that the state stands for.
    """

    structure: Structure = Unstructured()
    learns_masks = False  # True where masks have trainable variables of their own
    trains_weights = True  # False where the weights of the model stay as they are and only masks are learned
    searches_model = False  # True where masks are found by a search that sees the batch and the whole model
    scope = "layer"  # another one where the layers of a model share out what is kept
    settle: float | None = None  # the progress from which the mask is held as it is, if ever; the state then has `held` and `settled`
    remembers: tuple[str, ...] = ()  # the state that `decide` gives, where a layer has it

    def check(self, layer: keras.layers.Layer, kernel_shape: tuple[int, ...] | None) -> None:
        """Raise `ValueError` where the method cannot prune `layer`; `kernel_shape` is None until the layer is built."""
        self.structure.check(layer)

    def check_names(self, names: list[str]) -> None:
        """Raise `ValueError` where the method does not fit a model whose layers with a kernel have `names`."""

    def for_layer(self, layer: keras.layers.Layer) -> "PruningMethod":
        """The method as one layer of a model gets it."""
        return self

    def schedules(self) -> dict[str, Schedule]:
        """The scheduled quantities, by the name of their state variable."""
        return {}

    def moving(self) -> dict[str, tuple[float, float]]:
        """The (begin, end) of every scheduled quantity that is not constant, in fractions of training."""
        return {name: schedule.span for name, schedule in self.schedules().items() if schedule.span is not None}

    def waits(self, progress: float) -> bool:
        """Whether at `progress` (negative: never moved) there are schedules that no callback has moved, or a sparsity that has not come to its end."""
        spans = self.moving()
        return bool(spans) and (progress < 0 or ("sparsity" in spans and progress < spans["sparsity"][1]))

    def anneal(self, progress: float) -> dict[str, float]:
        """The values of the scheduled quantities at `progress` in [0, 1]."""
        return {name: schedule(progress) for name, schedule in self.schedules().items()}

    def state(self, shape: tuple[int, int, int]) -> dict[str, Spec]:
        """The variables of a layer whose arranged kernel has `shape`."""
        return {}

    def targets(self, values: Mapping[str, float], groups: int) -> dict[str, Any]:
        """State that follows from the annealed `values` in a layer of `groups` groups, computed in Python numbers so that counts are exact."""
        return {}

    def changes(self, progress: float, groups: int) -> dict[str, Any]:
        """The state that changes when training comes to `progress` in [0, 1], in a layer of `groups` groups."""
        values, moving = self.anneal(progress), self.moving()
        changes = {name: values[name] for name in moving}
        if "sparsity" in moving and self.scope == "layer":
            changes |= self.targets(values, groups)
        if self.settle is not None and not self.is_held_at(progress):
            changes |= {"settled": 0}
        return changes

    def is_held_at(self, progress: float) -> bool:
        """Whether at `progress` the mask is held as it is."""
        return self.settle is not None and progress >= self.settle

    def measure(self, kernel: Tensor, state: Mapping[str, Tensor], exact: bool) -> dict[str, Tensor]:
        """State that follows from the kernel. `exact=False` may refine the last step's values instead of computing them anew."""
        return {}

    @property
    def observes(self) -> tuple[str, ...]:
        """The state that `observe` gives; its specs have `overwritten`."""
        return ()

    def observe(self, gradient: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state named in `observes`, after a step in which the loss had this gradient with respect to the masked kernel: removed weights have one too."""
        return {}

    def shared(self, kept: int, groups: int) -> dict[str, Any]:
        """State of a layer of `groups` groups that is told how many of them it keeps."""
        return {"kept": kept}

    def sample(self, kernel: Tensor, state: Mapping[str, Tensor], uniform) -> Tensor:
        """A random mask under the current state; the same as `mode` for a method without noise."""
        raise NotImplementedError

    def decide(self, kernel: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state named in `remembers`, which `mode` needs and which costs much to find: computed once after the weights have moved, then reused by
        every inference step."""
        return {}

    def mode(self, kernel: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The deterministic mask."""
        raise NotImplementedError

    def apply(self, kernel: Tensor, mask: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The kernel that the layer runs with; `kernel` and `mask` in the kernel's own shape."""
        return kernel * mask

    def unit_mask(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """Which output units are kept, float32 `(groups,)`, where the method removes whole units and their biases with them; else None."""
        return None

    def replaces_kernel(self, layer: keras.layers.Layer) -> bool:
        """Whether a newly wrapped layer starts from another kernel than its own: that of `prepare`."""
        return False

    def prepare(self, kernel: Tensor) -> Tensor:
        """The kernel that a newly wrapped layer starts from, where `replaces_kernel`."""
        return kernel

    def penalty(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """A scalar that joins the loss at every training step, or None."""
        return None

    def check_training(self, optimizer: keras.optimizers.Optimizer, layers: list[keras.layers.Layer]) -> None:
        """Raise `ValueError` where `fit` with `optimizer` cannot serve the method; `layers` are those the method prunes."""

    def figures(self, kernel: Tensor, state: Mapping[str, Tensor], uniform) -> dict[str, Tensor]:
        """Scalars worth following during training, by name; logged once per epoch."""
        return {}


def check_sparsity(sparsity) -> Schedule:
    """The schedule of a `sparsity` argument, or an error that explains what it means."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float, np.number, Schedule)):
        raise TypeError(f"`sparsity` must be a number in [0, 1) or a schedule such as `Polynomial(0.0, 0.9)`. Received: sparsity={sparsity!r}.")
    low, high = sparsity.bounds if isinstance(sparsity, Schedule) else (sparsity, sparsity)
    if not (0.0 <= low and high < 1.0):
        hint = f" For {high:g} percent pass {high / 100:g}." if 1.0 < high < 100.0 else ""
        raise ValueError(f"`sparsity` must lie in [0, 1): it is the fraction of weights removed. Received: sparsity={sparsity!r}.{hint}")
    return as_schedule(sparsity)


def check_structure(structure) -> None:
    """Raise `TypeError` unless `structure` is one."""
    if not isinstance(structure, Structure):
        raise TypeError(f"`structure` must be `Unstructured()`, `Kernel()` or `Filter()`, an object. Received: structure={structure!r}.")


class RankedMethod(PruningMethod):
    """A method whose final mask keeps exactly the groups of the highest scores.

    Of n groups `max(1, n - floor(sparsity * n + 0.5))` are kept; of equal groups the first.
    """

    remembers = ("cut_key", "cut_index")

    def schedules(self):
        return {"sparsity": check_sparsity(self.sparsity)}

    def state(self, shape):
        values = self.anneal(0.0)
        state = {name: Spec(value) for name, value in values.items()}
        state |= {name: Spec(value, _dtype(value)) for name, value in self.targets(values, shape[2]).items()}
        if self.tracks(shape):
            state |= {"cut_key": Spec(0, "int32"), "cut_index": Spec(-1, "int32")}
        return state

    def tracks(self, shape: tuple[int, int, int]) -> bool:
        """Whether a layer is large enough that its thresholds are remembered between steps."""
        return isinstance(self.structure, Unstructured) and shape[2] >= TRACKED_SIZE

    def targets(self, values, groups):
        return {"kept": ranking.count_kept(groups, values["sparsity"])}

    def scores(self, kernel: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What the groups are ranked by, float32 `(1, 1, groups)`."""
        raise NotImplementedError

    def keys(self, kernel: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The scores as integers of the same order: the bits themselves, where no score is negative."""
        return ops.view(ops.cast(self.scores(kernel, state), "float32"), dtype="int32")

    def track(self, kernel: Tensor, state: Mapping[str, Tensor], below: Tensor, guess: Tensor) -> Tensor:
        """A key that has `below` keys of the scores under it, to within 0.001 of the weights, found from the last step's."""
        tolerance = ops.minimum(int(TRACKED_TOLERANCE * kernel.shape[2]), state["kept"] // 20)  # where few are kept, to a twentieth of them
        return ranking.track(lambda: self.keys(kernel, state), below, guess, tolerance)

    def measure_cut(self, kernel: Tensor, state: Mapping[str, Tensor], exact: bool) -> dict[str, Tensor]:
        """`decide` for a method that samples nothing but the top groups: exact, or from the last step's cut."""
        if "cut_key" not in state:
            return {}
        if exact:
            return self.decide(kernel, state)
        groups = kernel.shape[2]
        return {"cut_key": self.track(kernel, state, groups - state["kept"], state["cut_key"]), "cut_index": groups - 1}

    def decide(self, kernel, state):
        key, index = ranking.cut(self.keys(kernel, state), state["kept"], guess=state["cut_key"])
        return {"cut_key": key, "cut_index": index}

    def mode(self, kernel, state):
        keys = self.keys(kernel, state)
        if "cut_key" in state:
            return ranking.keep(keys, state["cut_key"], state["cut_index"])
        return ranking.keep(keys, *ranking.cut(keys, state["kept"]))


def _dtype(value):
    return "int32" if isinstance(value, int) else "float32"
