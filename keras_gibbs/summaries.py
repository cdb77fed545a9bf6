"""What is pruned in a model, how much of it, and what is not and why."""

import dataclasses

import keras
import numpy as np

from keras_gibbs.layers import Pruned, describe_foreign
from keras_gibbs.model import kernel_layers, masked_kernel, why_skipped
from keras_gibbs.structure import graph
from keras_gibbs.tables import render


@dataclasses.dataclass(frozen=True)
class Summary:
    """A table of the layers of a model; `print` it, or read `.rows`.

    Attributes:
        rows: One dict a layer with weights: `layer` (name), `shape` (of the kernel, or None), `weights` (in the kernel), `kept` (of them, not zero),
            `sparsity` (fraction removed), `method` (None where not wrapped), `note` (why it was skipped, or what to know; "" where nothing).
        sparsity: Fraction of zeros over all kernels that could be pruned.
        wrapped_sparsity: The same over the wrapped layers only; None where none is wrapped.
    """

    rows: list[dict]
    sparsity: float
    wrapped_sparsity: float | None

    def __str__(self):
        columns = [("layer", "left"), ("kernel", "left"), ("weights", "right"), ("kept", "right"), ("sparsity", "right"), ("method", "left"), ("note", "left")]
        cells = [
            [
                row["layer"],
                "x".join(map(str, row["shape"])) if row["shape"] else "",
                f"{row['weights']:,}" if row["shape"] else "",
                f"{row['kept']:,}" if row["shape"] else "",
                f"{row['sparsity']:.4f}" if row["shape"] else "",
                row["method"] or "",
                row["note"],
            ]
            for row in self.rows
        ]
        total = f"sparsity {self.sparsity:.4f} over all kernels"
        if self.wrapped_sparsity is not None:
            total += f", {self.wrapped_sparsity:.4f} over the pruned layers"
        return render("Pruning summary", columns, cells, [total])


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
    layers = {id(layer): layer for layer in kernel_layers(model)}
    wrapped = [layer for layer in layers.values() if isinstance(layer, Pruned)]
    inner = {id(layer.layer) for layer in wrapped}
    methods = list(dict.fromkeys(layer.method for layer in wrapped))
    outputs = graph.at_output(model) if graph.has_graph(model) and any(method.structure.removes_outputs for method in methods) else set()
    reachable = {id(leaf) for leaf in graph.leaves(model)} if graph.has_graph(model) else None
    rows = []
    for layer in graph.walk(model):
        if id(layer) in layers:
            kernel = masked_kernel(layer)
            kept = int(np.count_nonzero(kernel))
            rows.append(_row(layer, kernel.shape, kernel.size, kept, _note(layer, kept, methods, outputs, reachable)))
        elif id(layer) not in inner and layer.weights and not graph.children(layer):
            rows.append(_row(layer, None, 0, 0, _note(layer, 0, methods, outputs, reachable)))
    return Summary(rows, _fraction(rows), _fraction([row for row in rows if row["method"]]) if wrapped else None)


def _row(layer, shape, weights, kept, note):
    return {
        "layer": layer.name,
        "shape": shape,
        "weights": weights,
        "kept": kept,
        "sparsity": 1.0 - kept / weights if weights else 0.0,
        "method": layer.method.brief() if isinstance(layer, Pruned) else None,
        "note": note,
    }


def _fraction(rows):
    weights = sum(row["weights"] for row in rows)
    return 1.0 - sum(row["kept"] for row in rows) / weights if weights else 0.0


def _note(layer, kept, methods, outputs, reachable):
    if not isinstance(layer, Pruned):
        if not methods:
            return ""
        if reachable is not None and id(layer) not in reachable:
            return "inside another layer, which `prune` does not enter"
        return next((reason for method in methods if (reason := why_skipped(layer, method, outputs))), "not selected")
    if layer.is_short():
        return f"keeps 1 of {layer.groups} groups, more than the sparsity asks for, so that something is left"
    if not kept:
        return "nothing is left of it"
    return ""
