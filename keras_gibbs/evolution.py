"""Binary differential evolution: from a population of states and uniform noise to candidates, and from energies to survivors. Pure functions."""

from keras import ops

from keras_gibbs.randomness import Uniform
from keras_gibbs.typing import Tensor

RULES = ("reference", "xor")
LEAST = 4  # a slot and three others


def parents(size: int, uniform: Uniform) -> Tensor:
    """Three slots for every slot, all four different.

    Args:
        size: Number of slots, at least 4.
        uniform: Noise of this generation.

    Returns:
        int32 tensor `(3, size)`; column j holds no j and no slot twice.
    """
    order = ops.argsort(uniform((size, size)) + 2.0 * ops.eye(size), axis=1)  # a slot itself comes last
    return ops.transpose(order[:, :3])


def mutate(first: Tensor, second: Tensor, third: Tensor, rate: float, rule: str, uniform: Uniform) -> Tensor:
    """A mutant of every slot from its three parents.

    Args:
        first, second, third: Bool tensors `(S, D)`.
        rate: The factor F of differential evolution, in [0, 1].
        rule: `"reference"`: the first parent with probability F, else its opposite where the other two agree, and 0 where they differ, which is what the
            authors ran (sparsifai/epruning at 0f82e3f, edropout.py:231-240). `"xor"`: the opposite of the first parent with probability F where the other
            two differ, else the first parent: the textbook rule, as the papers have it.
        uniform: Noise of this generation.

    Returns:
        Bool tensor `(S, D)`.
    """
    drawn = uniform(first.shape, stream=1)
    differ = ops.not_equal(second, third)
    if rule == "xor":
        return ops.logical_xor(first, ops.logical_and(differ, drawn < rate))
    flipped = ops.logical_and(ops.logical_not(first), ops.logical_not(differ))
    return ops.where(drawn <= rate, first, flipped)


def propose(population: Tensor, rule: str, rate: float, crossover: float, uniform: Uniform) -> Tensor:
    """A candidate for every slot: its state, with each bit taken from a mutant with probability `crossover`.

    Args:
        population: Bool tensor `(S, D)`.
        rule, rate: As in `mutate`.
        crossover: Probability in [0, 1].
        uniform: Noise of this generation.

    Returns:
        Bool tensor `(S, D)`.
    """
    first, second, third = (ops.take(population, index, axis=0) for index in ops.unstack(parents(population.shape[0], uniform), axis=0))
    mutant = mutate(first, second, third, rate, rule, uniform)
    return ops.where(uniform(population.shape, stream=2) <= crossover, mutant, population)


def select(population: Tensor, energies: Tensor, candidates: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """The better of state and candidate in every slot; a tie, or a cost that is not a number, keeps the state.

    Args:
        population, candidates: Bool tensors `(S, D)`.
        energies, costs: float32 tensors `(S,)`, their energies.

    Returns:
        The new population and its energies; no energy is larger than before.
    """
    better = costs < energies
    return ops.where(better[:, None], candidates, population), ops.where(better, costs, energies)
