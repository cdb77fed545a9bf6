"""Binary differential evolution: from a population of states and uniform noise to candidates, and from energies to survivors. Pure functions."""

import math
from collections.abc import Callable

import numpy as np
from keras import ops

from keras_gibbs.numerics.noise import Uniform
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


def start(method, sizes: list[int], seed) -> dict[str, tuple[np.ndarray, str]]:
    """The state that a search starts from, as `{name: (value, dtype)}`; `sizes` are the numbers of bits of the layers, D in all. No layer begins empty.

    `population` `(S, D)` and the `energies` of its states, infinite until they are scored; `generation`, how many populations were scored; `unchanged`,
    for how many steps the best state has been the same; `converged`, 1 once the search has ended.
    """
    rng = np.random.default_rng(seed)
    first = rng.random((method.population, sum(sizes))) < method.initial_keep
    for layer in np.split(first, np.cumsum(sizes)[:-1], axis=1):
        for state in np.flatnonzero(~layer.any(axis=1)):
            layer[state, rng.integers(layer.shape[1])] = True
    return {
        "population": (first, "bool"),
        "energies": (np.full(method.population, np.inf), "float32"),
        "generation": (0, "int32"),
        "unchanged": (0, "int32"),
        "converged": (0, "int32"),
    }


def advance(
    method,
    state: dict[str, Tensor],
    applied: Tensor,
    over: Tensor,
    score: Callable[[Tensor], Tensor],
    key: Tensor,
    reduce: Callable[[Tensor], Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """One step of the search.

    Args:
        method: An `EDropout`.
        state: What `start` describes, as tensors.
        applied: Bool tensor `(D,)`, the state in force.
        over: Scalar bool, whether the time of the search has run out.
        score: From states, bool `(N, D)`, to their energies on this batch, float32 `(N,)`. Not called once the search has ended.
        key: Key of the noise, int32 or uint32 `(2,)`.
        reduce: Applied to the energies, outside of any branch: the mean over replicas.

    Returns:
        The new state, and the bits to be in force, bool `(D,)`. Of a search that has ended nothing changes.
    """
    old, stored, size = ops.cast(state["population"], "bool"), state["energies"], method.population
    ended = ops.logical_or(state["converged"] > 0, over)
    candidates = propose(old, method.rule, method.mutation_rate, method.crossover, Uniform(key, state["generation"]))
    candidates = ops.where(ops.equal(state["generation"], 0), old, candidates)  # the first population is scored before it evolves
    states = ops.concatenate([candidates, old]) if method.reevaluate_parents else candidates
    costs = reduce(ops.cond(ended, lambda: ops.full(states.shape[:1], math.inf), lambda: score(states)))  # infinite ones are never accepted
    if method.reevaluate_parents:
        stored = ops.where(ended, stored, costs[size:])
    population, energies = select(old, stored, candidates, costs[:size])
    best = ops.where(ended, applied, ops.take(population, ops.argmin(energies), axis=0))
    unchanged = ops.where(ops.all(ops.equal(best, applied)), state["unchanged"] + 1, 0)
    converged = ops.logical_or(ended, ops.all(ops.equal(population, population[:1])))
    if method.patience is not None:
        converged = ops.logical_or(converged, unchanged >= method.patience)
    new = {
        "population": ops.cast(population, "bool"),
        "energies": energies,
        "generation": ops.where(ended, state["generation"], state["generation"] + 1),
        "unchanged": unchanged,
        "converged": ops.cast(converged, "int32"),
    }
    return new, best
