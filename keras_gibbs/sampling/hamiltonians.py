"""Hamiltonians: what the distribution of masks is, P(x) proportional to exp(-beta H(x)).

A spin is x = +1 for a weight that is kept and -1 for one that is removed. Its field b = Q - w^2 compares the weight with the threshold Q of its
layer: positive where the weight should go. A Hamiltonian turns spins and fields into energies and draws masks from the law; `Gibbs` owns
everything around it (threshold, annealing, the exact final mask), so a new law is one small class:

>>> @keras.saving.register_keras_serializable(package="my_project")
... @dataclasses.dataclass(frozen=True)
... class Biased(kg.Hamiltonian):
...     bias: float = 0.001
...
...     def energy(self, spins, field):
...         return keras.ops.sum(0.5 * (field - self.bias) * spins, axis=(-4, -3))
...
...     def sample(self, field, beta, uniform):
...         return kg.sampling.bernoulli(-beta * (field - self.bias), uniform)
>>> kg.Gibbs(sparsity=0.9, hamiltonian=Biased())

All follow Labach & Valaee 2020 (https://arxiv.org/abs/2006.04981); formulas and factors are those of the authors' code
(j201/gibbs-pruning, gibbs_pruning.py), brought to one convention: without coupling every one of them keeps a weight with probability
sigmoid(-beta b). The paper's equations were not checked.
"""

import dataclasses

from keras import ops

from keras_gibbs.arguments import require_count, require_number
from keras_gibbs.configuration import Configuration, register
from keras_gibbs.sampling import samplers
from keras_gibbs.structure.groups import Filter, Kernel, Structure, Unstructured
from keras_gibbs.typing import Tensor


class Hamiltonian(Configuration):
    """Base of the Hamiltonians. A subclass defines `energy` and `sample`, and is a frozen dataclass of its constants.

    Attributes:
        one_spin_per_group: True where a group has a single spin, whose field is Q minus the mean squared weight of the group. False (the default)
            where every weight has a spin, coupled or not to the others of its group.
    """

    one_spin_per_group = False

    def check(self, structure: Structure) -> None:
        """Raise `ValueError` where the law is not defined for `structure`."""
        if structure.coupled and not self.one_spin_per_group:
            raise ValueError(
                f"Under `{structure.brief()}` a group is one bit, and {type(self).__name__} gives every weight a spin of its own. "
                f"Received: hamiltonian={self!r}. Use `hamiltonian=Independent()`, the default there, or `Filter()`."
            )

    def check_positions(self, positions: int) -> None:
        """Raise `ValueError` where the law cannot be drawn for kernels of so many spatial positions."""

    def energy(self, spins: Tensor, field: Tensor) -> Tensor:
        """Energy of each group.

        Args:
            spins: float32 tensor of -1 and +1, shape `(..., channels, positions, groups, contests)`.
            field: float32 tensor `(channels, positions, groups, contests)`, b = Q - w^2, in units of squared weights.

        Returns:
            float32 tensor `(..., groups, contests)`.
        """
        raise NotImplementedError

    def sample(self, field: Tensor, beta: Tensor, uniform) -> Tensor:
        """Draw a mask from exp(-beta H).

        Args:
            field: As in `energy`.
            beta: Scalar float32 tensor >= 0, inverse temperature, in 1 / squared weights.
            uniform: `uniform(shape, stream=0)` gives uniform float32 numbers in [0, 1); different streams are independent.

        Returns:
            float32 tensor in the shape of `field`, 1 where the weight (or group) is kept and 0 elsewhere.
        """
        raise NotImplementedError


@register
@dataclasses.dataclass(frozen=True)
class Independent(Hamiltonian):
    """H = b x / 2: every group is kept with probability sigmoid(beta (w^2 - Q)), independently (gibbs_pruning.py:122-126).

    The authors' law for `Unstructured()`. With `Kernel()` or `Filter()` it is one independent bit per group, on its mean squared weight: an
    extension of ours.
    """

    one_spin_per_group = True

    def energy(self, spins, field):
        return ops.sum(0.5 * field * spins, axis=(-4, -3))

    def sample(self, field, beta, uniform):
        return samplers.bernoulli(-beta * field, uniform)


@register
@dataclasses.dataclass(frozen=True)
class KernelCoupling(Hamiltonian):
    """H = (b.x - c (M^2 - N)) / 2, M the sum of the N spins of one k x k kernel: they are drawn to agree (gibbs_pruning.py:10-19, 127-138).

    The authors enumerate all 2^N states, which 5x5 kernels put out of reach; `samplers.coupled_spins` draws from the same law in O(N^2).

    Args:
        c: Coupling, in units of squared weights; 0.01 in the authors' example. A trained kernel lives or dies whole while |b| < c N.
        convention: `"canonical"` for the form above; `"reference"` for the authors' code, which has no factor one half: twice the beta.
    """

    c: float = 0.01
    convention: str = "canonical"

    def __post_init__(self):
        require_number(c=self.c)
        if self.convention not in ("canonical", "reference"):
            raise ValueError(f"`convention` must be 'canonical' or 'reference' (the authors' code). Received: convention={self.convention!r}.")

    def check(self, structure):
        if not isinstance(structure, Kernel):
            raise ValueError(f"`KernelCoupling` couples the weights of one spatial kernel. Received: structure={structure!r}. Use `structure=Kernel()`.")

    def check_positions(self, positions):
        if positions > samplers.MOST_COUPLED_SPINS:
            raise ValueError(
                f"`KernelCoupling` draws at most {samplers.MOST_COUPLED_SPINS} coupled spins exactly: use `hamiltonian=Independent()` for so large a kernel, "
                f"or leave the layer out with `where=`. Received: a kernel of {positions} positions."
            )

    @property
    def _scale(self):
        return 1.0 if self.convention == "reference" else 0.5

    def energy(self, spins, field):
        magnetization = ops.sum(spins, axis=(-4, -3))
        count = field.shape[0] * field.shape[1]
        return self._scale * (ops.sum(field * spins, axis=(-4, -3)) - self.c * (magnetization**2 - count))

    def sample(self, field, beta, uniform):
        flat = ops.reshape(field, (-1, field.shape[2]))
        return ops.reshape(samplers.coupled_spins(flat, 2.0 * self._scale * beta, self.c, uniform), field.shape)


@register
@dataclasses.dataclass(frozen=True)
class FilterCoupling(Hamiltonian):
    """H = (b.x - c sum of x_i x_j) / 2 over pairs i, j of two colours: the spins that read the first half of the input channels, and the rest
    (gibbs_pruning.py:139-167). Spins of one colour do not interact, so each colour is drawn at once given the other.

    Like the authors, every draw starts a fresh chain from the state that squared magnitude would choose and runs a fixed number of sweeps. Above the
    ordering transition (beta about 4 / (c N)) a filter then never leaves that state: this is not an equilibrium sampler, and the paper's results
    rest on it. A longer chain would behave differently, with whole filters flipping at random.

    Args:
        c: Coupling, in units of squared weights; 1 in the authors' example. It is not divided by the filter's size, so it weighs more in wide layers.
        sweeps: Sweeps per draw, each over both colours; 50 in the authors' code.
    """

    c: float = 1.0
    sweeps: int = 50

    def __post_init__(self):
        require_number(c=self.c)
        require_count(sweeps=self.sweeps)

    def check(self, structure):
        if not isinstance(structure, Filter):
            raise ValueError(f"`FilterCoupling` couples the input channels of one filter. Received: structure={structure!r}. Use `structure=Filter()`.")
        super().check(structure)

    def energy(self, spins, field):
        half = field.shape[0] // 2
        one = ops.sum(spins[..., :half, :, :, :], axis=(-4, -3))
        other = ops.sum(spins[..., half:, :, :, :], axis=(-4, -3))
        return 0.5 * (ops.sum(field * spins, axis=(-4, -3)) - self.c * one * other)

    def sample(self, field, beta, uniform):
        return samplers.chromatic_spins(field[..., 0], beta, self.c, uniform, self.sweeps)[..., None]


def authors_hamiltonian(structure: Structure) -> Hamiltonian:
    """The Hamiltonian the authors use for a structure; `Independent()` for structures they do not have, such as coupled filters."""
    if structure.coupled:
        return Independent()
    return {Unstructured: Independent, Kernel: KernelCoupling, Filter: FilterCoupling}.get(type(structure), Independent)()
