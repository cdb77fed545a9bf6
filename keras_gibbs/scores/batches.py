"""The data that scores are taken on."""

import itertools

import keras
import numpy as np
from keras import tree

BATCH_SIZE = 128  # of arrays
WAY_OUT = "Pass `data=(x, y)`, arrays of one length, or a data set of such batches."


def batches(data) -> list[tuple]:
    """`data` as a list of batches `(x, y)` or `(x, y, sample_weight)` of NumPy arrays.

    Args:
        data: A tuple of arrays (or of nested structures of them), which is cut into batches of 128; or an iterable of such batches, as a
            `tf.data.Dataset` or a `keras.utils.PyDataset`, all of which are taken: say how many by `dataset.take(10)`.

    Raises:
        ValueError: Where there is no data, no label, an endless data set, arrays of different lengths, or a value that is not finite.
    """
    if data is None:
        raise ValueError(f"The method finds its masks on data. Received: data=None. {WAY_OUT}")
    if isinstance(data, (tuple, list)):
        found = list(_cut(_arrays(data)))
    else:
        found = [_arrays(batch) for batch in _listed(data)]
    if not found:
        raise ValueError(f"There must be at least one batch. Received: data={data!r}, which holds none. {WAY_OUT}")
    return found


def _listed(data):
    if isinstance(data, keras.utils.PyDataset):
        return [data[index] for index in range(len(data))]
    endless = hasattr(data, "cardinality") and int(data.cardinality()) == -1  # of a `tf.data.Dataset`
    if endless or not hasattr(data, "__iter__") or hasattr(data, "shape"):
        raise ValueError(f"`data` must be a tuple of arrays, or a data set that ends. Received: data={data!r}. {WAY_OUT}")
    return data


def _arrays(batch):
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise ValueError(f"A batch is `(x, y)` or `(x, y, sample_weight)`. Received: {type(batch).__name__} in place of it. {WAY_OUT}")
    batch = tuple(tree.map_structure(keras.ops.convert_to_numpy, part) for part in batch if part is not None)
    for array in tree.flatten(batch):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError("`data` must be finite. Received: a batch with NaN or infinite values, on which no weight has a score.")
    lengths = {array.shape[0] if array.ndim else None for array in tree.flatten(batch)}
    if len(lengths) != 1 or not lengths.pop():
        raise ValueError(f"`data` must hold arrays of one length, at least 1. Received: shapes {[array.shape for array in tree.flatten(batch)]}. {WAY_OUT}")
    return batch


def _cut(arrays):
    length = len(tree.flatten(arrays)[0])
    for begin, end in itertools.pairwise([*range(0, length, BATCH_SIZE), length]):
        yield tree.map_structure(lambda array: array[begin:end], arrays)  # noqa: B023 - called at once
