"""Schedules: the progress of training, from 0 to 1, to the value of a quantity.

Progress is a fraction of the whole `fit`, not a count of steps: a schedule never has to be rewritten for another number of epochs, and a short run
still reaches its end.
"""

import dataclasses

from keras_gibbs.arguments import require_number
from keras_gibbs.budget import Budget
from keras_gibbs.configuration import Configuration, register


class Schedule(Configuration):
    """Base of the schedules: a frozen dataclass called with a progress in [0, 1].

    A schedule holds its start value before `begin` and its stop value after `end`; a subclass says how it goes from one to the other.
    """

    @property
    def span(self) -> tuple[float, float] | None:
        """The progress at which the value begins and ends to move; None where it never does."""
        return (self.begin, self.end)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value; a budget, of which nothing is known yet, left out."""
        ends = (self.start,) if isinstance(self.stop, Budget) else (self.start, self.stop)
        return (min(ends), max(ends))

    def __call__(self, progress: float) -> float:
        if progress >= self.end:  # also where begin = end: a step
            return float(self.stop)
        if progress <= self.begin:
            return float(self.start)
        return float(self.between((progress - self.begin) / (self.end - self.begin)))

    def between(self, fraction: float) -> float:
        """The value at `fraction` in (0, 1) of the way from `begin` to `end`."""
        raise NotImplementedError

    def __post_init__(self):
        require_number(start=self.start, begin=self.begin, end=self.end, **({} if isinstance(self.stop, Budget) else {"stop": self.stop}))
        if not 0.0 <= self.begin <= self.end <= 1.0:
            raise ValueError(
                "A schedule must not end before it starts, and both are fractions of training in [0, 1]. "
                f"Received: begin={self.begin!r}, end={self.end!r}. Half of the way through training is 0.5, whatever the number of epochs."
            )


@register
@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """One value throughout.

    Example:

    >>> kg.Constant(0.9)(0.3)
    0.9
    """

    value: float

    @property
    def span(self):
        return None

    @property
    def bounds(self):
        return (0.0, 0.0) if isinstance(self.value, Budget) else (self.value, self.value)

    def __call__(self, progress):
        return float(self.value)

    def __post_init__(self):
        if not isinstance(self.value, Budget):
            require_number(value=self.value)


@register
@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """From `start` to `stop` in a straight line.

    Args:
        start: Value up to `begin`.
        stop: Value from `end` on.
        begin: Fraction of training at which the value begins to move, in [0, 1].
        end: Fraction of training at which it has arrived, in [begin, 1].

    Example:

    >>> kg.Linear(0.0, 0.9, begin=0.1, end=0.5)(0.5)
    0.9
    """

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0

    def between(self, fraction):
        return self.start + (self.stop - self.start) * fraction


@register
@dataclasses.dataclass(frozen=True)
class Geometric(Schedule):
    """From `start` to `stop` by equal ratios: a straight line in the logarithm. Both must be positive.

    The inverse temperature of Gibbs pruning goes this way: the authors' beta is `numpy.logspace(0, 4, 128)` over 200 epochs, which is
    `Geometric(1, 1e4, end=0.64)` up to their grid (they reach 1e4 one epoch earlier, at 127 of 200).

    Example:

    >>> kg.Geometric(1, 1e4, end=0.64)(0.32)
    100.0
    """

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        require_number(stop=self.stop)
        super().__post_init__()
        if self.start <= 0 or self.stop <= 0:
            raise ValueError(f"`Geometric` needs positive values, it is linear in their logarithm. Received: start={self.start!r}, stop={self.stop!r}.")

    def between(self, fraction):
        return self.start * (self.stop / self.start) ** fraction


@register
@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """From `start` to `stop`, fast first and slow at the end: stop + (start - stop) (1 - t)^power.

    With `power=3` and a start of 0 it is the sparsity schedule of Zhu & Gupta 2017 (https://arxiv.org/abs/1710.01878, equation 1) and of TF-MOT's
    `PolynomialDecay`, in fractions of training instead of steps. The weights want time to settle under the final mask: give
    `end` a value such as 0.5 rather than 1.

    Args:
        start: Value up to `begin`.
        stop: Value from `end` on.
        begin: Fraction of training at which the value begins to move, in [0, 1].
        end: Fraction of training at which it has arrived, in [begin, 1].
        power: Exponent, greater than 0.

    Example:

    >>> kg.Magnitude(kg.Polynomial(0.0, 0.9, end=0.5))
    """

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0
    power: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        require_number(power=self.power)
        if self.power <= 0:
            raise ValueError(f"`power` must be greater than 0. Received: power={self.power!r}. Zhu & Gupta's schedule has 3.")

    def between(self, fraction):
        return self.stop + (self.start - self.stop) * (1.0 - fraction) ** self.power


def as_schedule(value: float | Schedule | Budget) -> Schedule:
    """A number, or a budget that will be one, as the schedule that never moves; a schedule as itself."""
    return value if isinstance(value, Schedule) else Constant(value if isinstance(value, Budget) else float(value))
