"""Exact rewrites of a network into the form that a phone runs sparse."""

import dataclasses

import keras
from keras import ops, tree

from keras_gibbs.export import turning
from keras_gibbs.export.rebuilding import Left, Rebuilt, pads_of
from keras_gibbs.export.wiring import Wiring
from keras_gibbs.model import pruned_layers, strip_pruning
from keras_gibbs.structure.graph import has_graph
from keras_gibbs.tables import render

_EQUAL = 1e-4  # of the largest absolute value of an output: rounding
_COMPARED = 2  # samples, where the batch is open


@dataclasses.dataclass(frozen=True)
class RewriteReport:
    """What was rewritten in a model; `print` it, or read it.

    Attributes:
        rows: One dict per change: `layer` and `change`.
        left: One dict per thing that could not be changed exactly: `layer` and `why`.
        difference: The largest difference between the predictions of both models on random inputs, as a share of the largest output.
    """

    rows: list[dict]
    left: list[dict]
    difference: float

    def __str__(self) -> str:
        cells = [[change, f"{len(names)}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"] for change, names in self._groups().items()]
        notes = [*self.why(), f"Predictions on random inputs are equal to {self.difference:.1e} of the largest output."]
        return render("Rewritten for the sparse path", [("change", "left"), ("layers", "left")], cells, notes, width=100)

    def summary(self) -> str:
        """The changes, with the number of layers, in one line."""
        return ", ".join(f"{change} ({len(names)})" for change, names in self._groups().items())

    def why(self) -> list[str]:
        """What was left as it is, in words."""
        return [f"Left as it is: {row['layer']}, {row['why']}." for row in self.left]

    def _groups(self):
        groups = {}
        for row in self.rows:
            groups.setdefault(row["change"], []).append(row["layer"])
        return groups


def sparse_ready(model: keras.Model, *, plan_only: bool = False) -> keras.Model | RewriteReport:
    """The same network in the form whose 1x1 convolutions a phone's CPU runs sparse, with the same predictions on the same input.

    - Where even sizes are padded on one side only, as Keras pads at stride 2, the network is turned by 180 degrees: kernels are flipped, the image is
      flipped once inside, padding becomes one (3x3) or two (5x5) on every side.
    - What is pooled to be multiplied with feature maps keeps its dimensions, without `Reshape`, and its Dense layers become 1x1 convolutions.
    - Behind the last pooling, 1x1 convolutions become Dense layers.

    What cannot be changed exactly is left and named. Use it before training, so that a network trains in the form it ships in, or on the final model.

    Args:
        model: A built Sequential or Functional model. A pruned one is stripped first. It is not changed.
        plan_only: Return the report of what is rewritten in the model that the same call without `plan_only` returns.

    Returns:
        A new, uncompiled model; with `plan_only` a `RewriteReport`, which prints and has `.rows`.

    Raises:
        TypeError: `model` is no Keras 3 model.
        ValueError: `model` is subclassed or not built.

    Example:

    >>> network = kg.sparse_ready(keras.applications.MobileNetV2(weights=None, classes=10, input_shape=(96, 96, 3)))
    >>> pruned = kg.prune(network, kg.Magnitude(0.9), where="expand|project|Conv_1")
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras 3 model. Received: {type(model).__module__}.{type(model).__name__}. Rewrite a tf_keras model in Keras 3.")
    rewritten, report = rewrite(strip_pruning(model) if pruned_layers(model) else model)
    return report if plan_only else rewritten


def rewrite(model: keras.Model) -> tuple[keras.Model, RewriteReport]:
    """`sparse_ready` for a model without wrappers, with both results."""
    if not model.built or not has_graph(model):
        raise ValueError(
            f"`model` must be a built Sequential or Functional model. Received: model={model.name!r} of class {type(model).__name__}. "
            "Build it from `keras.Input`, or rewrite those parts of it that are."
        )
    left, wiring = [], Wiring(model)
    for turn in [True, False] if _is_padded_on_one_side(wiring) else [False]:
        try:
            rebuilt = Rebuilt(wiring, turn)
            rewritten = rebuilt.model(model)
            difference = _difference(model, rewritten)
            if not difference <= _EQUAL:
                raise Left(model.name, f"predictions would differ by {difference:.1e} of the largest output")
            return rewritten, RewriteReport(rebuilt.rows, left + rebuilt.left, difference)
        except Left as reason:
            left.append({"layer": reason.args[0], "why": reason.args[1]})
    return keras.models.clone_model(model), RewriteReport([], left, 0.0)


def _is_padded_on_one_side(wiring):
    for call in wiring.calls:
        pads = pads_of(wiring, call) if isinstance(call.operation, turning.WINDOWS) else None
        if pads and any(before != after for before, after in pads[1]):
            return True
    return False


def _difference(model, rewritten):
    from keras_gibbs.export import comparison, samples

    inputs = samples.random(model)
    inputs = inputs if samples.static_batch(model) else [array[:_COMPARED] for array in inputs]
    packed = inputs[0] if isinstance(model, keras.Sequential) else tree.pack_sequence_as(model.input, inputs)
    outputs = [[ops.convert_to_numpy(each) for each in tree.flatten(each(packed, training=False))] for each in (rewritten, model)]
    return comparison.differences(*outputs)[1]
