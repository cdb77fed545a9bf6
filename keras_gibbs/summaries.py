"""What is pruned in a model, how much of it, and what is not and why."""

import dataclasses
import math

import keras

from keras_gibbs.checks import describe_foreign
from keras_gibbs.coupling.plan import NOT_SELECTED, why_kept
from keras_gibbs.layers import pruned_layers
from keras_gibbs.model import counted_weights, protected, why_none, why_skipped
from keras_gibbs.structure import graph
from keras_gibbs.tables import render


@dataclasses.dataclass(frozen=True)
class Summary:
    """A table of the weights of a model; `print` it, or read `.rows`.

    Attributes:
        rows: One dict a prunable weight, and one a layer with weights that has none: `layer` (its path), `weight` (its own name, or None), `path`, `shape` (or
            None), `weights` (how many), `kept` (of them, not zero), `sparsity` (fraction removed), `method` (None where not pruned), `note` (why it was
            skipped, or what to know; "" where nothing).
        sparsity: Fraction of zeros over all weights that could be pruned.
        wrapped_sparsity: The same over the pruned weights only; None where none is pruned.
    """

    rows: list[dict]
    sparsity: float
    wrapped_sparsity: float | None

    def __str__(self):
        columns = [("layer", "left"), ("weight", "left"), ("shape", "left"), ("weights", "right"), ("kept", "right"), ("sparsity", "right")]
        cells = [
            [
                row["layer"],
                row["weight"] or "",
                "x".join(map(str, row["shape"])) if row["shape"] else "",
                f"{row['weights']:,}" if row["shape"] else "",
                f"{row['kept']:,}" if row["shape"] else "",
                f"{row['sparsity']:.4f}" if row["shape"] else "",
                row["method"] or "",
                row["note"],
            ]
            for row in self.rows
        ]
        total = f"sparsity {self.sparsity:.4f} over all prunable weights"
        if self.wrapped_sparsity is not None:
            total += f", {self.wrapped_sparsity:.4f} over the pruned ones"
        return render("Pruning summary", [*columns, ("method", "left"), ("note", "left")], cells, [total])


def summary(model) -> Summary:
    """A table of what is pruned in `model`.

    Args:
        model: A pruned, stripped or plain Keras model. A pruned one counts with its deterministic masks.

    Returns:
        A `Summary`: it prints as a table, and has `.rows`, `.sparsity` and `.wrapped_sparsity`.

    Example:

    >>> print(kg.summary(pruned))
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    wrappers = [layer for layer in pruned_layers(model) if layer.built]
    progress = {id(masked): layer.progress for layer in wrappers for masked in layer.members}
    methods = list(dict.fromkeys(layer.method for layer in wrappers))
    outputs = protected(model, methods)
    coupled = next((method.structure for method in methods if method.structure.coupled), None) if graph.has_graph(model) else None
    channels = why_kept(model, coupled.of_heads) if coupled else None
    rows = []
    used = {weight.path: (weight, kept, own) for weight, kept, own in counted_weights(model)}
    for path, layer in graph.named_walk(model, "" if isinstance(model, keras.Model) else graph.unwrapped(model).name):
        own_rows = [entry for entry in used.values() if entry[0].owner is layer]
        for weight, kept, own in own_rows:
            note = _note_of_pruned(own, kept, progress[id(own)]) if own else _note_of_skipped(weight, methods, outputs, channels)
            rows.append(_row(path, weight, kept, own.method.brief() if own else None, note))
        if not own_rows and layer.weights and not graph.children(layer):
            rows.append(_row(path, None, 0, None, why_none(layer) if methods else ""))
    return Summary(rows, _fraction(rows), _fraction([row for row in rows if row["method"]]) if wrappers else None)


def _row(path, weight, kept, method, note):
    shape = tuple(weight.shape) if weight else None
    weights = math.prod(shape) if weight else 0
    return {
        "layer": path,
        "weight": weight.name if weight else None,
        "path": weight.path if weight else path,
        "shape": shape,
        "weights": weights,
        "kept": kept,
        "sparsity": 1.0 - kept / weights if weights else 0.0,
        "method": method,
        "note": note,
    }


def _fraction(rows):
    weights = sum(row["weights"] for row in rows)
    return 1.0 - sum(row["kept"] for row in rows) / weights if weights else 0.0


def _note_of_pruned(masked, kept, progress):
    if masked.is_short(progress):
        return f"keeps 1 of {masked.groups} groups, more than the sparsity asks for, so that something is left"
    return "" if kept else "nothing is left of it"


def _note_of_skipped(weight, methods, outputs, channels):
    if not methods:
        return ""
    if channels is not None:
        return channels.get(weight.path, NOT_SELECTED)
    return next((reason for method in methods if (reason := why_skipped(weight, method, outputs))), "not selected")
