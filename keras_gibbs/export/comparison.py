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
        largest, relative = differences(outputs, self.expected)
        return {
            "max_difference": largest,
            "relative_difference": relative,
            "accuracy": None if self.labels is None else accuracy(outputs, self.labels, self.expected),
        }

    def fits(self, outputs: list[np.ndarray]) -> bool:
        """Whether `outputs` have the shapes of the Keras model's."""
        return [a.shape for a in outputs] == [b.shape for b in self.expected]


def differences(outputs: list[np.ndarray], expected: list[np.ndarray]) -> tuple[float, float]:
    """The largest absolute difference, and the largest one by the largest absolute value of its output.

    Both are infinite where an output is not finite and not what is expected there.
    """
    pairs = [_difference_and_scale(a.astype("float64"), b.astype("float64")) for a, b in zip(outputs, expected)]
    return max(difference for difference, _ in pairs), max(difference / scale for difference, scale in pairs)


def _difference_and_scale(a, b):
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    finite = np.abs(b[np.isfinite(b)])
    return float(np.max(np.where(np.isnan(difference), np.inf, difference), initial=0.0)), float(np.max(finite, initial=0.0)) or 1.0


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
    undefined = sum(int(np.count_nonzero(np.isnan(array))) for array in expected if array.dtype.kind == "f")
    if undefined:
        note += f" The Keras model itself predicts NaN {undefined:,} times there; only the other outputs tell anything."
    if undefined and undefined == sum(array.size for array in expected):
        return Comparison(None, None, None, "Not checked: predictions (the Keras model predicts nothing but NaN on the samples; pass other `data`).", None)
    labels = None if data is None or data[1] is None else np.asarray(data[1])
    if labels is not None:
        _check_targets(expected, labels)
        if not are_classes(labels, expected[0]):
            labels, note = None, note + " No accuracy: y of `data` holds no classes (integers from 0 on, or one-hot rows)."
    return Comparison(inputs, expected, labels, note, None if labels is None else accuracy(expected, labels, expected))


def _check_targets(expected, labels):
    if len(expected) != 1:
        raise ValueError(f"`data` measures models with one output. Received: a model with {len(expected)}. Pass `data=(x, None)`.")
    if labels.size not in (expected[0].size, expected[0][..., 0].size):
        raise ValueError(
            f"y of `data` must hold integer labels or one-hot rows. Received: y of shape {labels.shape} for outputs of shape {expected[0].shape}. Reshape y."
        )


def are_classes(labels: np.ndarray, scores: np.ndarray) -> bool:
    """Whether targets name classes that the scores can tell: 0 and 1 (or -1 and 1) for one score; integers below the number of scores; or rows of
    probabilities, one-hot ones for example."""
    count = scores.shape[-1]
    if labels.dtype.kind not in "biuf":
        return False
    if count == 1:
        return set(np.unique(labels)) <= {0, 1} or set(np.unique(labels)) <= {-1, 1}
    if labels.size == scores.size:
        rows = labels.reshape(-1, count).astype("float64")
        return bool(np.all(rows >= 0) and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3))
    return bool(np.all((labels >= 0) & (labels < count) & (labels == np.floor(labels))))


def _predict(model, inputs, data):
    fixed = samples.static_batch(model)
    batches = [samples.padded(a, fixed) for a in inputs] if fixed else inputs
    specs = getattr(model, "inputs", None)
    packed = batches[0] if len(batches) == 1 else keras.tree.pack_sequence_as(model.input, batches) if specs else data[0]
    outputs = model.predict(packed, batch_size=fixed or BATCH, verbose=0)
    return [np.asarray(a)[: len(inputs[0])] for a in keras.tree.flatten(outputs)]


def accuracy(outputs: list[np.ndarray], labels: np.ndarray, expected: list[np.ndarray]) -> float:
    """Accuracy of one output of scores for targets that are classes; `expected`, the Keras model's, decides whether single scores are probabilities."""
    scores = outputs[0]
    if scores.shape[-1] == 1:
        probabilities = expected[0].min() >= 0 and expected[0].max() <= 1
        return float(np.mean((scores > (0.5 if probabilities else 0.0)).ravel() == (labels.ravel() > 0.5)))
    if labels.size == scores.size:
        labels = labels.reshape(scores.shape).argmax(-1)
    return float(np.mean(scores.argmax(-1).ravel() == labels.ravel()))
