"""What the Keras model predicts, and how far a file is from it."""

import dataclasses

import keras
import numpy as np

from keras_gibbs.export import samples
from keras_gibbs.export.litert import BATCH


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Samples with the Keras model's outputs.

    Attributes:
        inputs: One array an input, or None where there is nothing to compare on.
        expected: The Keras model's flat outputs for them.
        labels: Labels of the samples, or None.
        note: Which samples these are, or why there are none.
        accuracy: Of the Keras model, or None.
    """

    inputs: list[np.ndarray] | None
    expected: list[np.ndarray] | None
    labels: np.ndarray | None
    note: str
    accuracy: float | None

    def measure(self, outputs: list[np.ndarray] | None) -> dict:
        """`max_difference` (largest absolute one), `relative_difference` (the same by the largest absolute value of that output) and `accuracy`."""
        if outputs is None:
            return {"max_difference": None, "relative_difference": None, "accuracy": None}
        differences = [float(np.max(np.abs(a.astype("float64") - b.astype("float64")), initial=0.0)) for a, b in zip(outputs, self.expected)]
        scales = [float(np.max(np.abs(b.astype("float64")), initial=0.0)) or 1.0 for b in self.expected]
        return {
            "max_difference": max(differences),
            "relative_difference": max(difference / scale for difference, scale in zip(differences, scales)),
            "accuracy": None if self.labels is None else accuracy(outputs, self.labels, self.expected),
        }

    def fits(self, outputs: list[np.ndarray]) -> bool:
        """Whether `outputs` have the shapes of the Keras model's."""
        return [a.shape for a in outputs] == [b.shape for b in self.expected]


def compare_on(model: keras.Model, data: tuple | None, representative: list[np.ndarray] | None) -> Comparison:
    """The samples to compare on: given ones, else the representative ones, else random ones."""
    specs = getattr(model, "inputs", None)
    if data is not None:
        inputs = samples.flat(model, data[0])
        if specs and len(inputs) != len(specs):
            raise ValueError(f"x of `data` must hold one array per input. Received: {len(inputs)} for {len(specs)} inputs. Pass arrays.")
        note = f"Predictions compared on the {len(inputs[0])} given samples."
    elif representative is not None:
        inputs = [array[:BATCH] for array in representative]
        note = f"Predictions compared on {len(inputs[0])} representative samples; pass `data=(x, y)` for others and the accuracy."
    elif specs is None:
        return Comparison(None, None, None, "Not checked: predictions (a subclassed model has no input shapes; pass `data=(x, y)`).", None)
    elif any(keras.backend.standardize_dtype(spec.dtype) == "string" for spec in specs):
        return Comparison(None, None, None, "Not checked: predictions (no random inputs of type string; pass `data=(x, y)`).", None)
    else:
        inputs = samples.random(model)
        note = f"Predictions compared on {len(inputs[0])} random samples; pass `data=(x, y)` for real ones and the accuracy."
    expected = _predict(model, inputs, data)
    labels = None if data is None or data[1] is None else np.asarray(data[1])
    return Comparison(inputs, expected, labels, note, None if labels is None else accuracy(expected, labels, expected))


def _predict(model, inputs, data):
    fixed = samples.static_batch(model)
    batches = [samples.padded(a, fixed) for a in inputs] if fixed else inputs
    specs = getattr(model, "inputs", None)
    packed = batches[0] if len(batches) == 1 else keras.tree.pack_sequence_as(model.input, batches) if specs else data[0]
    outputs = model.predict(packed, batch_size=fixed or BATCH, verbose=0)
    return [np.asarray(a)[: len(inputs[0])] for a in keras.tree.flatten(outputs)]


def accuracy(outputs: list[np.ndarray], labels: np.ndarray, expected: list[np.ndarray]) -> float:
    """Accuracy of one output of scores; `expected`, the Keras model's, decides whether single scores are probabilities."""
    if len(outputs) != 1:
        raise ValueError(f"`data` measures models with one output. Received: a model with {len(outputs)}. Pass `data=(x, None)`.")
    scores = outputs[0]
    if labels.size not in (scores.size, scores[..., 0].size):
        raise ValueError(
            f"y of `data` must hold integer labels or one-hot rows. Received: y of shape {labels.shape} for outputs of shape {scores.shape}. Reshape y."
        )
    if scores.shape[-1] == 1:
        probabilities = expected[0].min() >= 0 and expected[0].max() <= 1
        return float(np.mean((scores > (0.5 if probabilities else 0.0)).ravel() == (labels.ravel() > 0.5)))
    if labels.size == scores.size:
        labels = labels.reshape(scores.shape).argmax(-1)
    return float(np.mean(scores.argmax(-1).ravel() == labels.ravel()))
