"""Gibbs pruning (Labach & Valaee 2020)."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_gibbs.arguments import require_number
from keras_gibbs.configuration import register
from keras_gibbs.methods.base import check_sparsity
from keras_gibbs.methods.ranked import mean_of
from keras_gibbs.methods.weighing import WeighingMethod
from keras_gibbs.numerics import ranking
from keras_gibbs.sampling import samplers
from keras_gibbs.sampling.hamiltonians import FilterCoupling, Hamiltonian, Independent, authors_hamiltonian
from keras_gibbs.schedules import Geometric, Polynomial, Schedule, as_schedule
from keras_gibbs.specs import Spec

SMALLEST = 1e-37  # of a number, before its logarithm is taken


@register
@dataclasses.dataclass(frozen=True)
class Gibbs(WeighingMethod):
    """Prune while training: every step draws a mask from a Gibbs distribution over the weights, annealed from noise to a decision.

    At inverse temperature beta a weight is kept with probability sigmoid(beta (w^2 - Q)), Q being the layer's `sparsity` quantile of w^2. A small beta
    drops half of the weights at random, whatever the sparsity, and acts like dropout; a large one keeps exactly the weights above Q. Structured
    variants couple the spins of a group, so that a kernel or a filter freezes as a whole. The gradient reaches kept weights only; removed ones stay
    stored and can return at the next step.

    At inference, in `strip_pruning` and in every count the deterministic mask is used: exactly the groups of largest mean w^2. The authors instead
    sample at test time in the unstructured mode and keep groups above the quantile in the others (gibbs_pruning.py:104-117).

    Args:
        sparsity: Fraction of the groups of every layer that is removed, in [0, 1), a `Schedule` of it, or a `Budget`. 0 keeps every weight at any temperature.
        structure: `Unstructured()`, `Kernel()` or `Filter()`.
        criterion: The energy of a weight: `SquaredWeight()`, the authors' w^2, or `CurvatureEnergy()`, the rise of the loss without it.
        scope: `"layer"`: every layer has a threshold Q of its own. `"global"`: the layers share out what is kept, so that one threshold serves the whole
            network. `"shape"`: they share it by the shapes of their kernels. As in `Magnitude`.
        floor: With `scope="global"`, the least density of a layer as a fraction of that of the network, in [0, 1].
        settle: The progress of training, in (0, 1], from which the mask is held as it is and only the kept weights train on; None, the authors', for never.
        hamiltonian: The law of the masks; the authors' for the structure by default: `Independent()`, `KernelCoupling()`, `FilterCoupling()`.
        beta: Inverse temperature, a `Schedule` or a number >= 0, in units of 1 / energy. By default the authors' schedule:
            `Geometric(1, 1e4, end=0.64)`, and `Geometric(10**-2.5, 1, end=0.64)` for `FilterCoupling` (example.py:57-58: 128 of 200 epochs); in the log
            scale `Geometric(1, 50, end=0.64)`.
        scale: `"absolute"`, the authors': the field is b = Q - energy. `"log"`: b = log(Q / energy), so that one beta means the same in every layer and
            network; a weight of energy E is kept with probability E^beta / (E^beta + Q^beta).
        count: `"free"`, the authors': groups are kept independently, and how many they are depends on beta. `"exact"`: every draw keeps as many as the sparsity
            says, by the same odds; for independent groups only.

    Raises:
        TypeError: For a structure, criterion or Hamiltonian that is none.
        ValueError: For a sparsity outside [0, 1), a negative beta, an unknown scope or scale, or a Hamiltonian that is not defined for the structure.

    Example:

    >>> pruned = kg.prune(model, kg.Gibbs(sparsity=0.9))
    >>> pruned.compile("adam", "sparse_categorical_crossentropy")
    >>> pruned.fit(x, y, epochs=60, callbacks=[kg.GibbsPruningCallback()])
    >>> final = kg.strip_pruning(pruned)

    Reference: Labach & Valaee 2020, https://arxiv.org/abs/2006.04981; the authors' code j201/gibbs-pruning (equations not checked).
    """

    sampled = (*WeighingMethod.sampled, "threshold", "beta", "quantile_rank", "quantile_offset")

    hamiltonian: Hamiltonian | None = dataclasses.field(default=None, kw_only=True)
    beta: float | Schedule | None = dataclasses.field(default=None, kw_only=True)
    scale: str = dataclasses.field(default="absolute", kw_only=True)
    count: str = dataclasses.field(default="free", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.hamiltonian is not None and not isinstance(self.hamiltonian, Hamiltonian):
            raise TypeError(f"`hamiltonian` must be an object such as `KernelCoupling(c=0.01)`. Received: hamiltonian={self.hamiltonian!r}.")
        if self.scale not in ("absolute", "log"):
            raise ValueError(f"`scale` must be 'absolute' or 'log'. Received: scale={self.scale!r}.")
        if self.count not in ("free", "exact"):
            raise ValueError(f"`count` must be 'free' or 'exact'. Received: count={self.count!r}.")
        if self.count == "exact" and not isinstance(self.law, Independent):
            raise ValueError(f"`count='exact'` is defined for independent groups. Received: hamiltonian={self.law!r}. Use `hamiltonian=Independent()`.")
        self.law.check(self.structure)
        if self.beta is not None and not isinstance(self.beta, Schedule):
            require_number(beta=self.beta)
        if self.schedules()["beta"].bounds[0] < 0:
            raise ValueError(f"`beta`, an inverse temperature, must not be negative. Received: beta={self.beta!r}. 0 is pure noise.")

    @classmethod
    def recommended(cls, sparsity: float, **changes) -> "Gibbs":
        """What measured best at removing single weights: little noise, small kernels denser, and a mask that is held in the second half of training.

        The sparsity rises to its end in the first half while the noise falls, in the logarithm of w^2: at first a weight a tenth below its threshold is kept
        with probability 1/4, one at half of it hardly ever. Where this stands beside magnitude pruning, and which part of it does what, is in the README.

        Args:
            sparsity: Fraction of the weights of the wrapped layers together that is removed, in [0, 1).
            **changes: Fields of `Gibbs` that are to be others, such as `structure=kg.Filter()`, for which it was not measured.

        Returns:
            A `Gibbs`.

        Example:

        >>> pruned = kg.prune(model, kg.Gibbs.recommended(0.95))
        """
        check_sparsity(sparsity)
        half = 0.5
        fields = {"scope": "shape", "settle": half, "scale": "log", "beta": Geometric(5.0, 100.0, end=half)}
        return cls(Polynomial(0.0, sparsity, end=half), **(fields | changes))

    @property
    def law(self) -> Hamiltonian:
        """The Hamiltonian in force."""
        return authors_hamiltonian(self.structure) if self.hamiltonian is None else self.hamiltonian

    def check(self, weight):
        super().check(weight)
        self.law.check_positions(math.prod(weight.shape[axis] for axis in weight.layout.positions))

    def schedules(self):
        beta = self.beta
        if beta is None and self.scale == "log":
            beta = Geometric(1.0, 50.0, end=0.64)
        elif beta is None:
            beta = Geometric(10**-2.5, 1.0, end=0.64) if isinstance(self.law, FilterCoupling) else Geometric(1.0, 1e4, end=0.64)
        return super().schedules() | {"beta": as_schedule(beta)}

    def state(self, shape):
        threshold = 0.0 if self.structure.one_contest else np.zeros((1, 1, 1, shape[3]))
        return super().state(shape) | {"threshold": Spec(threshold)}

    def counts(self, sparsity, shape, kept=None):
        groups = shape[2]
        if kept is None:
            rank, offset = ranking.quantile_position(groups, sparsity)
        else:
            rank, offset = min(groups - kept, groups - 1), 0.0
        return super().counts(sparsity, shape, kept) | {"quantile_rank": rank, "quantile_offset": offset}

    def follow(self, weight, state, exact=False):
        """Q: exact, or within 0.001 of the right fraction of the weights, found from the last step's."""
        if exact or "cut_key" not in state:
            find = ranking.quantile if self.structure.one_contest else ranking.quantile_in_contests
            guess = {"guess": ranking.to_key(state["threshold"])} if "cut_key" in state else {}
            return {"threshold": find(self.scores(weight, state), state["quantile_rank"], state["quantile_offset"], **guess)}

        def keys():
            return self.keys_in(self.scores(weight, state), state)

        return {"threshold": ranking.from_key(self.track(keys, weight.shape[2], state, state["quantile_rank"], ranking.to_key(state["threshold"])))}

    def field(self, weight, state):
        """b, per spin: positive where the weight should go."""
        worth = self.scores(weight, state) if self.law.one_spin_per_group else self.worth(weight, state)
        if self.scale == "log":
            return ops.log(ops.maximum(state["threshold"], SMALLEST)) - ops.log(ops.maximum(worth, SMALLEST))
        return state["threshold"] - worth

    @property
    def lengthens(self):
        return super().lengthens and type(self.law) is Independent and self.count == "free"

    def draw(self, weight, state, uniform):
        field = self.field(weight, state)
        if self.count == "exact":
            return samplers.exactly(-state["beta"] * field, state["kept"], uniform)
        return ops.where(state["sparsity"] > 0, self.law.sample(field, state["beta"], uniform), 1.0)

    def figures(self, weight, state, mask):
        energy = self.law.energy(2.0 * mask - 1.0, self.field(weight, state))
        return {"beta": state["beta"], "kept": mean_of(mask, state), "energy": mean_of(energy, state)}
