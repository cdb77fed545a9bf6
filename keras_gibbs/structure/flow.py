"""Which channels of a model are one, and which cannot go."""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_gibbs.structure.graph import has_graph
from keras_gibbs.structure.states import Axis, Channels, Held, Role, Site, Size, Use


class Flow:
    """Collects, call by call, which channels are tied, which cannot go, and which axes of which weights they run along.

    Attributes:
        axes: The axes of weights, by (id of the variable, axis).
        sizes: The numbers in configs, by (id of the layer, keys).
        uses: Where channels end, by the id of the layer.
        inputs: (Shape, state) of the inputs at the first call of a layer or nested model, by its id.
        imagined: Whether values are those of a model in which every channel that can go has zero weights, rather than the model's own.

    Args:
        first: The flow of an earlier pass over the same calls, which gives the same ids: values are imagined then.
    """

    def __init__(self, first: "Flow | None" = None):
        self.axes: dict[tuple, Axis] = {}
        self.sizes: dict[tuple, Size] = {}
        self.uses: dict[int, Use] = {}
        self.inputs: dict[int, list[tuple[tuple, Channels | Held]]] = {}
        self.imagined = first is not None
        self._first = first
        self._held = first.held() if first else None
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}
        self._made: dict[tuple, np.ndarray] = {}

    # Channels.

    def fresh(self, size: int) -> np.ndarray:
        """Ids of new channels."""
        first = len(self._parents)
        self._parents.extend(range(first, first + size))
        return np.arange(first, first + size)

    def made_by(self, layer, size: int) -> np.ndarray:
        """Ids of the channels that `layer` makes: the same at each of its calls."""
        key = (id(layer), size)
        if key not in self._made:
            self._made[key] = self.fresh(size)
        return self._made[key]

    def fixed(self, size: int, reason: str) -> np.ndarray:
        """Ids of new channels that cannot go."""
        ids = self.fresh(size)
        self.freeze(ids, reason)
        return ids

    def freeze(self, ids, reason: str) -> None:
        """Note that these channels cannot go."""
        for channel in np.unique(ids).tolist():
            self._reasons.setdefault(channel, reason)

    def release(self, state: Channels | Held, reason: str) -> Held:
        """A tensor that is followed no further: its channels cannot go."""
        if isinstance(state, Held):
            return state
        self.freeze(state.ids, reason)
        return Held(reason)

    def stop(self, site: Site, reason: str) -> Held:
        """What comes of a call that is followed no further: the channels of its inputs cannot go."""
        for state in site.states:
            self.release(state, reason)
        return Held(reason)

    def tie(self, ids, others) -> None:
        """Note that channels of the same place in two arrays are one."""
        for one, other in zip(np.asarray(ids).tolist(), np.asarray(others).tolist()):
            one, other = self._root(one), self._root(other)
            if one != other:
                self._parents[max(one, other)] = min(one, other)

    def _root(self, channel):
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    def roots(self) -> np.ndarray:
        """int array: for each id the one that stands for its channel."""
        return np.array([self._root(channel) for channel in range(len(self._parents))], dtype=int)

    def reasons(self) -> dict[int, str]:
        """Why a channel cannot go, by root, for those that cannot."""
        reasons = {}
        for channel, reason in self._reasons.items():
            reasons.setdefault(self._root(channel), reason)
        return reasons

    def held(self) -> np.ndarray:
        """bool array: for each id whether its channel cannot go."""
        return np.isin(self.roots(), list(self.reasons()))

    def emptied(self, ids) -> np.ndarray:
        """The values of channels whose weights are imagined to be zero: 0 for those that can go, NaN for the others."""
        return np.where(self._held[ids], np.nan, 0.0)

    # Layers.

    def along(self, state: Channels | Held, axis: int, size: int, reason: str) -> Channels:
        """The channels of `state` along `axis`; where it has none there, ones that cannot go."""
        if isinstance(state, Channels) and state.axis == axis and len(state.ids) == size:
            return state
        self.release(state, reason)
        if isinstance(state, Held):
            reason = state.reason
        return Channels(axis, self.fixed(size, reason), np.full(size, np.nan))

    def bind(self, site: Site, variable, axis: int, ids, role: Role) -> None:
        """Note that an axis of a weight runs along these channels; at a second call of the layer, tie them to those of the first."""
        key = (id(variable), axis % len(variable.shape))
        if key in self.axes:
            self.tie(self.axes[key].ids, ids)
        else:
            self.axes[key] = Axis(site.layer, site.path, variable, key[1], np.asarray(ids), role)

    def resize(self, layer, keys: tuple, ids) -> None:
        """Note that a number in the config of `layer` counts these channels; at a second call, tie them to those of the first."""
        known = self.sizes.setdefault((id(layer), keys), Size(layer, keys, np.asarray(ids)))
        self.tie(known.ids, ids)

    def enter(self, site: Site) -> None:
        """Note the inputs of a layer or model; a model gets tensors of the same channels at each call, as its own inputs are of one shape."""
        known = self.inputs.setdefault(id(site.layer), list(zip(site.shapes, site.states)))
        if not has_graph(site.layer):
            return
        for (_, first), state in zip(known, site.states):
            if isinstance(first, Channels) and isinstance(state, Channels) and first.axis == state.axis:
                self.tie(first.ids, state.ids)
            elif first is not state:
                reason = f"{site.describe()} is called on other channels too"
                self.release(first, reason)
                self.release(state, reason)

    def use(self, site: Site, mixing: Callable, source: Channels, outputs) -> np.ndarray:
        """Note that a layer adds up the channels of `source`.

        Args:
            site: The call.
            mixing: Makes the layer's `Mixing`, once.
            source: What it reads.
            outputs: Ids of the channels it makes.

        Returns:
            The values of these channels before the layer's activation.
        """
        known = self.uses.get(id(site.layer))
        if known is None:
            mixing = self._first.uses[id(site.layer)].mixing if self.imagined else mixing()
            known = Use(site.path, mixing, source.ids, np.asarray(outputs), source.values)
        else:  # a constant counts where every call reads the same one
            known = dataclasses.replace(known, values=np.where(known.values == source.values, known.values, np.nan))
        self.uses[id(site.layer)] = known
        return self.emptied(outputs) if self.imagined else known.mixing.constants(source.values)
