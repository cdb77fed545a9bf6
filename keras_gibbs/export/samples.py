"""Inputs of a model as flat arrays: given ones, random ones, and representative ones to quantize by."""

import itertools

import keras
import numpy as np

RANDOM_SAMPLES = 8
REPRESENTATIVE_SAMPLES = 500  # of more, the first ones count


def static_batch(model: keras.Model) -> int | None:
    """The batch size a model is fixed to, or None."""
    inputs = getattr(model, "inputs", None)
    return inputs[0].shape[0] if inputs else None


def padded(array: np.ndarray, batch: int) -> np.ndarray:
    """Repeat the last sample until the batches are full."""
    return np.concatenate([array, np.repeat(array[-1:], -len(array) % batch, axis=0)])


def flat(model: keras.Model, x) -> list[np.ndarray]:
    """The arrays in `x`, whatever structure `predict` takes, in the order of the model's inputs."""
    specs = getattr(model, "inputs", None)
    if isinstance(x, dict) and specs and {spec.name for spec in specs} <= set(x):
        return [np.asarray(x[spec.name]) for spec in specs]
    return [np.asarray(a) for a in keras.tree.flatten(x)]


def random(model: keras.Model) -> list[np.ndarray]:
    """A few random samples: normal for float inputs, 0 and 1 for integer ones, which every vocabulary has."""
    return [_random_input(spec, np.random.default_rng(index)) for index, spec in enumerate(model.inputs)]


def _random_input(spec, rng):
    shape = (spec.shape[0] or RANDOM_SAMPLES, *(size or 32 for size in spec.shape[1:]))  # 32: any size, of a dimension left open
    dtype = keras.backend.standardize_dtype(spec.dtype)
    if "float" in dtype:
        return rng.standard_normal(shape).astype("float32")
    return rng.integers(0, 2, shape).astype(dtype)


def representative(model: keras.Model, data) -> list[np.ndarray]:
    """`representative_data` of `export_tflite` as one array an input, in the order of the model's inputs.

    Raises:
        ValueError: Its shapes are not those of the model's inputs, or it is empty, or not finite.
    """
    if not getattr(model, "inputs", None):
        raise ValueError("`representative_data` needs a model whose input shapes are known. Received: a subclassed model. Export it as Functional.")
    if hasattr(data, "shape") or isinstance(data, dict) or (isinstance(data, (list, tuple)) and len(model.inputs) > 1 and _fits(model, data)):
        parts = [_batch(model, data)]
    else:
        try:
            batches = iter(data)
        except TypeError:
            raise ValueError(f"{_RULE} Received: {type(data).__name__}. Pass x_train[:200], for one.") from None
        parts, count = [], 0
        while count < REPRESENTATIVE_SAMPLES and (batch := list(itertools.islice(batches, 1))):
            parts.append(_batch(model, batch[0]))
            count += len(parts[-1][0])
    arrays = [np.concatenate(column)[:REPRESENTATIVE_SAMPLES] for column in zip(*parts)]
    if not arrays or not len(arrays[0]):
        raise ValueError(f"{_RULE} Received: no samples. A generator that was used up gives none: make it anew.")
    for array in arrays:
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise ValueError("`representative_data` must be finite: ranges are measured on it. Received: NaN or infinity. Leave those samples out.")
    return arrays


_RULE = "`representative_data` must be an array, one array an input, or batches of these, in the shapes of the model's inputs."


def _fits(model, x):
    arrays = flat(model, x)
    return len(arrays) == len(model.inputs) and all(
        array.ndim == len(spec.shape) and all(size in (None, given) for size, given in zip(spec.shape[1:], array.shape[1:]))
        for array, spec in zip(arrays, model.inputs)
    )


def _batch(model, batch):
    if isinstance(batch, tuple) and batch and not _fits(model, batch) and _fits(model, batch[0]):
        batch = batch[0]  # (x, y), as data sets give it
    if not _fits(model, batch):
        wanted, given = [tuple(spec.shape) for spec in model.inputs], [array.shape for array in flat(model, batch)]
        raise ValueError(f"{_RULE} Received: shapes {given} for inputs of shapes {wanted}. The first axis counts samples.")
    arrays = flat(model, batch)
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(f"{_RULE} Received: {[len(array) for array in arrays]} samples. Pass equally many for every input.")
    return [array.astype(keras.backend.standardize_dtype(spec.dtype)) for array, spec in zip(arrays, model.inputs)]
