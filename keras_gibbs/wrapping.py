"""What the wrappers of both Keras have in common."""

import numpy as np

from keras_gibbs.methods.traits import LearnsMasks, waits
from keras_gibbs.typing import Tensor

NEVER = -1.0  # progress of a wrapper that no callback has moved


class Wrapping:
    """What a layer that runs another one with masked weights offers the callback and the reports, as a mixin for the wrappers of one Keras or another.

    A wrapper has a `method`, `built`, its `masked_weights`, the variable `_progress` once it is built, and says in `_draw` which draw of its noise comes next.
    """

    def _draw(self) -> Tensor:
        """The number of the next draw of masks."""
        raise NotImplementedError

    def note_change(self) -> None:
        """Take note that weights, or what is kept of them, have changed outside of a training step."""

    def _require_built(self):
        if not self.built:
            raise ValueError(f"Layer {self.name!r} has no mask before it is built. Call it, or its model, on an input first.")

    def prepare(self) -> None:
        """Let training start from the weights that the method wants, where it wants others than there are."""
        for masked in self.masked_weights:
            masked.prepare()

    def penalties(self) -> list[Tensor]:
        """What the masks add to the loss of a training step."""
        learned = [masked for masked in self.masked_weights if isinstance(masked.method, LearnsMasks)]
        return [penalty for masked in learned if (penalty := masked.method.penalty(masked.values())) is not None]

    @property
    def progress(self) -> float:
        """How far the schedules have come, in [0, 1]; negative where no callback has moved them yet."""
        return float(self._progress.numpy()) if self.built else NEVER

    def anneal(self, progress: float) -> list[tuple]:
        """Let the method change what it changes as training comes to `progress` in [0, 1]: schedules, a mask that is held, weights that grow.

        Returns:
            The weights that it has written, a list of (variable, bool array: where).
        """
        self._require_built()
        written = []
        if self.method.is_due(self.progress, progress):
            written = [change for masked in self.masked_weights for change in masked.revise(progress, self._draw())]
            self.note_change()
        self._progress.assign(progress)
        return written

    def state(self, name: str) -> float | int:
        """The current value of a scalar of the method's state, such as `"beta"` or `"sparsity"`, the same for all weights of the layer."""
        self._require_built()
        found = [masked.state[name].numpy() for masked in self.masked_weights if name in masked.state]
        if not found or found[0].size != 1 or any(value != found[0] for value in found):
            scalars = sorted({key for masked in self.masked_weights for key, variable in masked.state.items() if tuple(variable.shape) == ()})
            raise ValueError(f"`state` reads a scalar that all weights of layer {self.name!r} share. Received: name={name!r}. There are {scalars}.")
        return found[0].item()

    def waits(self) -> bool:
        """Whether the method has schedules that no callback has moved, or a sparsity that has not come to its end."""
        return waits(self.method.schedules(), self.progress)

    def has_ended(self) -> bool:
        """Whether more progress would change nothing: every schedule is at its end, and a mask that is to be held is held."""
        ends = [schedule.span[1] for schedule in self.method.schedules().values() if schedule.span]
        return self.progress >= max([*ends, getattr(self.method, "settle", None) or 0.0])

    def figures(self) -> dict[str, float]:
        """The method's own figures, from the current weights and state, averaged over the weights of the layer."""
        return mean_figures([masked.figures(self._draw()) for masked in self.masked_weights])


def mean_figures(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every figure over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
