"""What `shrink` removes, and what it has to leave."""

import dataclasses
import math

import keras
import numpy as np

from keras_gibbs.structure.channels import reasons_to_stay
from keras_gibbs.structure.constants import array_of
from keras_gibbs.structure.costs import multiply_adds
from keras_gibbs.structure.graph import has_graph
from keras_gibbs.structure.removal import COUNTS, Removal, notices
from keras_gibbs.structure.trace import Trace
from keras_gibbs.tables import render


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What goes from each layer; `print` it, or read `.rows`.

    Attributes:
        name: The model's name.
        rows: One dict a layer with weights: `layer` (path), `channels`, `channels_after` (that it makes; None where it makes none), `parameters`,
            `parameters_after`, `macs`, `macs_after` (multiply-adds for one sample, all calls together, a dimension left open counted as 1), `prunable`
            (fraction of the multiply-adds whose input or output channel can be removed), `note` (what stays that could be expected to go, and why; "").
    """

    name: str
    rows: list[dict]

    def total(self, figure: str) -> int:
        """The sum over all layers of `"parameters"`, `"parameters_after"`, `"macs"` or `"macs_after"`."""
        return sum(row[figure] for row in self.rows)

    @property
    def prunable(self) -> float:
        """The fraction of all multiply-adds whose input or output channel can be removed."""
        return sum(row["macs"] * row["prunable"] for row in self.rows) / max(self.total("macs"), 1)

    def __str__(self):
        columns = [("layer", "left"), ("channels", "right"), ("parameters", "right"), ("multiply-adds", "right"), ("note", "left")]
        cells = [[row["layer"], *(_change(row[name], row[f"{name}_after"]) for name in ("channels", "parameters", "macs")), row["note"]] for row in self.rows]
        cells.append(["total", "", *(_change(self.total(name), self.total(f"{name}_after")) for name in ("parameters", "macs")), ""])
        note = f"{self.prunable:.1%} of the multiply-adds read or make channels that can be removed"
        return render(f"Shrinking {self.name}", columns, cells, [note])


def _change(before, after):
    if before is None:
        return ""
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def report(name: str, calls: Trace, removal: Removal) -> ShrinkReport:
    """The report of a removal."""
    flow, reasons = removal.flow, reasons_to_stay(calls, removal.flow)
    left = {key: removal.kept(axis.ids).mean() for key, axis in flow.axes.items()}

    def size_after(variable):
        shares = [left.get((id(variable), axis), 1.0) for axis in range(len(variable.shape))]
        return round(math.prod(variable.shape) * math.prod(shares))

    before, after = multiply_adds(calls.calls), multiply_adds(calls.calls, size_after)
    counts = {id(size.layer): size.ids for size in flow.sizes.values() if size.keys[0] in COUNTS}
    notes = _Notes(removal, reasons)
    rows = {}
    for call in calls.calls:
        layer = call.operation
        if isinstance(layer, keras.layers.Layer) and layer.weights and not has_graph(layer) and id(layer) not in rows:
            inner = getattr(layer, "layer", layer)
            made = counts.get(id(inner))
            rows[id(layer)] = {
                "layer": call.path,
                "channels": None if made is None else len(made),
                "channels_after": None if made is None else int(removal.kept(made).sum()),
                "parameters": sum(math.prod(variable.shape) for variable in layer.weights),
                "parameters_after": sum(map(size_after, layer.weights)),
                "macs": before[id(layer)],
                "macs_after": after[id(layer)],
                "prunable": notes.prunable(layer),
                "note": "" if made is None else notes.of(inner, made),
            }
    return ShrinkReport(name, list(rows.values()))


class _Notes:
    """Why channels stay."""

    def __init__(self, removal, reasons):
        self.removal, self.reasons = removal, reasons
        self.blocked = {}
        for use in removal.flow.uses.values():
            for channel in removal.roots[use.inputs[notices(use, removal.removed)]].tolist():
                self.blocked.setdefault(channel, f"as {use.path!r} does not read zeros for them and cannot take a constant into a bias")

    def of(self, layer, made) -> str:
        """The note on a layer that makes the channels `made`."""
        channels = self.removal.roots[made]
        fixed = [channel for channel in channels.tolist() if channel in self.reasons]
        if fixed:
            part = "" if len(fixed) == len(made) else f"{len(fixed)} channels: "
            return part + self.reasons[fixed[0]]
        silent = np.flatnonzero(self._silent(layer, len(made)) & self.removal.kept(made))
        if not len(silent):
            return ""
        why = self.blocked.get(int(channels[silent[0]]), "to round up, or as the last of their layer")
        return f"zero filters that stay: {len(silent)}, {why}"

    def _silent(self, layer, count):
        """bool array: which of the `count` output channels have zero weights only."""
        zeros = True
        for axis in self.removal.flow.axes.values():
            if axis.layer is layer and axis.role == "produces" and len(axis.ids) == count:
                kernel = np.moveaxis(array_of(axis.variable), axis.axis, 0)
                zeros = zeros & ~kernel.reshape(len(axis.ids), -1).any(1)
        return zeros

    def prunable(self, layer) -> float:
        """The fraction of the weights of a layer's kernels that lie along a channel that can be removed."""
        weights = fixed = 0.0
        for variable in layer.weights:
            if "kernel" in variable.name:
                shares = [
                    np.mean([channel in self.reasons for channel in self.removal.roots[axis.ids].tolist()])
                    for (key, _), axis in self.removal.flow.axes.items()
                    if key == id(variable)
                ]
                weights += math.prod(variable.shape)
                fixed += math.prod(variable.shape) * math.prod(shares)
        return 1.0 - fixed / weights if weights else 0.0
