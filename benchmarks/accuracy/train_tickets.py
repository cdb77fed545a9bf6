"""Lottery tickets on the terms of `compare.py`."""

import dataclasses

import keras_gibbs as kg
from benchmarks.accuracy import training


@dataclasses.dataclass(frozen=True)
class Tickets:
    """Iterative magnitude pruning with rewinding: every round trains for all epochs, and the last one counts.

    Attributes:
        sparsity: Fraction of the weights of every pruned layer that is removed in the end.
        rounds: How many rounds remove weights, all the same part of what is left.
    """

    sparsity: float
    rounds: int

    def brief(self):
        return repr(self)

    @property
    def fraction(self):
        """Which part of what is left a round removes."""
        return 1.0 - (1.0 - self.sparsity) ** (1.0 / self.rounds)


def train(pruned, method, batches, validation, epochs, rate, callbacks):
    """Train `pruned`, a network under `kg.Fixed()`, in rounds.

    Returns:
        The history of the last round, and the times of all.
    """
    found = []

    def fit(model):
        found.append(training.fit(model, batches, validation, epochs, rate, callbacks(), compiled=True))

    training.compile_model(pruned, len(batches) * epochs, rate)
    kg.lottery_rounds(pruned, fit, rounds=method.rounds, fraction=method.fraction)
    times = {name: round(sum(times[name] for _, times in found), 1) for name in found[0][1]}
    return found[-1][0], times
