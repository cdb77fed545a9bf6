"""Channels that several weights make, under masks."""

import contextlib
import contextvars
import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_gibbs.coupling.places import Places, stacked
from keras_gibbs.methods.traits import LearnsMasks
from keras_gibbs.typing import Tensor
from keras_gibbs.weights import MaskedWeight


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """What a model runs with for as long as it is called.

    Attributes:
        columns: For each weight that makes the channels its masked columns, `(rows, channels)`.
        mask: float32 `(channels,)`, what follows the channels is multiplied by it.
    """

    columns: list[Tensor]
    mask: Tensor


class CoupledWeight(MaskedWeight):
    """Channels of a model that are kept or removed one by one, each with all the weights that make it.

    It is one masked weight, the matrix of a `CoupledPrunable`, whose variables are those of several layers: `link` names them. Of these layers the one that
    makes the channels first holds the state.
    """

    makers: list[tuple[Any, Places]] = ()
    followers: list[tuple[Any, Places]] = ()
    wrapper = None  # the layer that holds the state

    def link(self, wrapper, makers: list[tuple[Any, Places]], followers: list[tuple[Any, Places]]) -> None:
        """Name the layer that holds the state, and the variables that make the channels or follow them, each with their places."""
        self.wrapper, self.makers, self.followers = wrapper, makers, followers

    @property
    def _is_large(self):
        return False  # one bit a channel: there is no pass over memory to be saved

    def value(self):
        return stacked(self.makers)

    def trained(self):
        return self.value()

    def _split(self, value):
        return ops.split(value, np.cumsum(self.weight.layout.rows)[:-1].tolist(), axis=0) if len(self.makers) > 1 else [value]

    def write(self, before, after):
        written = []
        for (variable, places), was, now in zip(self.makers, self._split(before), self._split(after), strict=True):
            where = places.put(ops.zeros(variable.shape, "int32"), ops.cast(ops.not_equal(was, now), "int32"))
            variable.assign(places.put(ops.convert_to_tensor(variable), now))
            written.append((variable, ops.convert_to_numpy(where) > 0))
        return written

    def prepare(self):
        if isinstance(self.method, LearnsMasks) and self.method.replaces(self.weight):
            for variable, _ in self.makers:
                variable.assign(self.method.prepare(ops.convert_to_tensor(variable)))

    # What a call of the model runs with.

    def draw_to_train(self, draw: Tensor) -> Drawn:
        """The weights under a mask drawn for one training step."""
        return self._drawn_as(*self.train_with_mask(draw))

    def draw_to_infer(self, moved: Tensor) -> Drawn:
        """The weights under the deterministic mask, which is found anew where `moved` is not 0."""
        masked = self.infer(moved)
        return self._drawn_as(masked, self.masks.stored(self.value(), self.values()))

    def final(self) -> Drawn:
        """The weights under the deterministic mask, found anew; 0 is never -0."""
        mask = self.masks.mode(self.value(), self.values())
        return self._drawn_as(self.under(mask, self.value()), mask)

    def _drawn_as(self, masked, mask):
        return Drawn(self._split(masked), ops.reshape(mask, (self.groups,)))

    def drawn(self, training: bool) -> Drawn:
        """What the call runs with that is going on; a part of the model that is called alone runs with what the whole model would."""
        known = _DRAWN.get()
        if id(self) in known:
            return known[id(self)]
        return self.draw_to_train(self.wrapper.next_draw) if training else self.draw_to_infer(1)

    def drawn_last(self) -> Drawn:
        """`final`, found once where several layers ask within `running_with`."""
        known = _DRAWN.get()
        return known[id(self)] if id(self) in known else self.final()

    # Units that go with what follows them.

    @property
    def bias(self):
        return None

    @property
    def unit_parameters(self):
        return sum(places.rows for _, places in (*self.makers, *self.followers))

    def removed(self):
        mask = self.unit_mask()
        return [
            (variable, places.put(ops.ones(variable.shape), ops.broadcast_to(mask, (places.rows, self.groups))))
            for variable, places in (*self.makers, *self.followers)
        ]


_DRAWN: contextvars.ContextVar[dict[int, Drawn]] = contextvars.ContextVar("drawn", default={})  # noqa: B039, of the thread: a strategy has one a replica


@contextlib.contextmanager
def running_with(drawn: dict[int, Drawn]):
    """While this lasts, the layers of a model run with what was drawn for the channels, by the id of their `CoupledWeight`."""
    token = _DRAWN.set({**_DRAWN.get(), **drawn})
    try:
        yield
    finally:
        _DRAWN.reset(token)
