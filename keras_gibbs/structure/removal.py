"""Which channels of a model can be removed without a change of its outputs."""

import dataclasses

import numpy as np

from keras_gibbs.structure.constants import array_of
from keras_gibbs.structure.flow import Flow
from keras_gibbs.structure.states import Use

HEADS = ("num_heads", "num_key_value_heads")
COUNTS = ("filters", "units", "output_dim", "output_shape", *HEADS)  # the numbers in configs that say how many channels, or heads, a layer makes


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """The channels that go.

    Attributes:
        flow: The flow of the model.
        roots: int array, the channel of each id.
        removed: bool array, whether the channel of each id goes.
    """

    flow: Flow
    roots: np.ndarray
    removed: np.ndarray

    def kept(self, ids) -> np.ndarray:
        """bool array: which of these channels stay."""
        return ~self.removed[ids]

    def added_to_bias(self, use: Use) -> np.ndarray:
        """What the constants of the removed channels come to at each output of a layer."""
        return use.mixing.sums(np.where(self.removed[use.inputs], use.values, 0.0))


def removable(flow: Flow, round_to: int = 1) -> Removal:
    """The channels that can go: those of which no layer that adds up channels takes notice.

    A layer takes no notice of a channel that is zero there, that its weights for the outputs that stay are zero for, or that is constant there and can
    move into its bias. Kept outputs then depend on kept channels alone. Outputs that go let go of channels that only they read, so this is repeated.

    Args:
        flow: The flow of the model.
        round_to: Layers keep a multiple of this many channels, or all. Every layer keeps one.
    """
    roots = flow.roots()
    staying = flow.held()
    while True:
        removed = _grow(flow, roots, staying)
        wanted = _short(flow, roots, removed, round_to)
        if not wanted:
            return Removal(flow, roots, removed)
        staying |= np.isin(roots, list(wanted))


def _grow(flow, roots, staying):
    """bool array over ids: the most channels that can go while `staying` stay."""
    removed = np.zeros(len(roots), bool)
    while True:
        noticed = staying.copy()
        for use in flow.uses.values():
            noticed[roots[use.inputs[notices(use, removed)]]] = True
        grown = ~noticed[roots]
        if (grown == removed).all():
            return removed
        removed = grown


def notices(use: Use, removed: np.ndarray) -> np.ndarray:
    """bool array over the inputs of a layer: whether an output that stays would change without it."""
    harmless = np.isfinite(use.values) if use.mixing.folds else use.values == 0
    outputs = ~removed[use.outputs]
    return ~harmless & (use.mixing.reads if outputs.all() else use.mixing.reads[:, outputs]).any(1)


def _short(flow, roots, removed, round_to):
    """The channels to keep so that each layer has enough: those of the largest weights."""
    wanted, strengths = set(), None
    for size in flow.sizes.values():
        if size.keys[0] not in COUNTS:
            continue
        gone = removed[size.ids]
        kept = int((~gone).sum())
        multiple = 1 if size.keys[0] in HEADS else round_to
        missing = min(len(gone), -(-max(kept, 1) // multiple) * multiple) - kept
        if missing:
            strengths = _strengths(flow, roots) if strengths is None else strengths
            places = np.flatnonzero(gone)
            best = places[np.argsort(-strengths[roots[size.ids[places]]], kind="stable")[:missing]]
            wanted.update(roots[size.ids[best]].tolist())
    return wanted


def _strengths(flow, roots):
    """The sum of squared weights that make each channel, by root."""
    total = np.zeros(len(roots))
    for axis in flow.axes.values():
        if axis.role == "produces":
            squares = np.square(array_of(axis.variable), dtype="float64")
            np.add.at(total, roots[axis.ids], np.moveaxis(squares, axis.axis, 0).reshape(len(axis.ids), -1).sum(1))
    return total
