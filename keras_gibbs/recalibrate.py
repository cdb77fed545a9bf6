"""New BatchNorm statistics for the final mask."""

import contextlib
import operator
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops, tree

from keras_gibbs.checks import describe_foreign
from keras_gibbs.structure import graph

BATCH_SIZE = 128


def recalibrate(model: keras.Model, data, *, batch_size: int = BATCH_SIZE) -> keras.Model:
    """Set the statistics of every BatchNormalization to those of `data` under the final mask, in one pass.

    Removing weights moves the means and variances inside a network; the moving averages of training remember those of earlier masks. Here each
    BatchNormalization normalizes by the statistics of the batch, as in training, while all else runs as at inference: deterministic masks, no dropout.
    Its mean and variance over all of `data` are then stored, exact but for rounding: batches count by their size, and nothing decays.

    Args:
        model: A built model, pruned, stripped or plain; nested and subclassed ones included. Its BatchNorm statistics are set in place, nothing else.
        data: Inputs of the model, as `predict` takes them: an array, a list or dict of arrays, or batches of these (a data set, a generator). A tuple is
            (inputs, labels ...), here and in batches. A few thousand samples, with large batches, suffice.
        batch_size: Int, samples a batch where `data` is arrays.

    Returns:
        `model` itself. One without BatchNormalization is as it was.

    Raises:
        TypeError: For something that is not a Keras 3 model.
        ValueError: For a model that is not built, data without samples, or statistics that are not finite; the model is then as it was.

    Example:

    >>> final = kg.recalibrate(kg.strip_pruning(pruned), x_train[:5000])

    Reference: adaptive BatchNorm of Li et al. 2020, "EagleEye", https://arxiv.org/abs/2007.02491, which keeps a moving average.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(describe_foreign(model))
    if not model.built:
        raise ValueError(f"`recalibrate` needs a built model. Received: model={model.name!r}, which has no weights yet. Call it on an input first.")
    moments = [_Moments(layer) for layer in graph.walk(model) if isinstance(layer, keras.layers.BatchNormalization)]
    try:
        with contextlib.ExitStack() as stack:
            for each in moments:
                stack.enter_context(each.observing())
            batches = 0
            for batches, inputs in enumerate(_batches(data, batch_size), 1):  # noqa: B007
                model(inputs, training=False)
        if not batches:
            raise ValueError(f"`recalibrate` needs samples. Received: none in {type(data).__name__}. A generator that was used up gives none: make it anew.")
        for each in moments:
            each.check()
    except BaseException:
        for each in moments:
            each.restore()
        raise
    for each in moments:
        each.store()
    return model


def _batches(data, batch_size) -> Iterator:
    """Batches of inputs, without what stands behind them."""
    batches = data[0] if isinstance(data, tuple) else data
    if hasattr(batches, "shape") or isinstance(batches, dict) or (isinstance(batches, list) and all(hasattr(array, "shape") for array in batches)):
        arrays, sizes = batches, [len(array) for array in tree.flatten(batches)]
        batches = (tree.map_structure(operator.itemgetter(slice(start, start + batch_size)), arrays) for start in range(0, max(sizes, default=0), batch_size))
    for batch in batches:
        yield tree.map_structure(ops.convert_to_tensor, batch[0] if isinstance(batch, tuple) else batch)


class _Moments:
    """The moments of what one BatchNormalization reads, over all its calls."""

    def __init__(self, layer):
        self.layer = layer
        self.count, self.sum, self.squares = 0.0, 0.0, 0.0
        self._before = [ops.convert_to_numpy(variable) for variable in self._variables]

    @property
    def _variables(self):
        return [self.layer.moving_mean, self.layer.moving_variance]

    @contextlib.contextmanager
    def observing(self):
        """While this lasts, the layer normalizes by the statistics of its input and adds them up."""
        call = self.layer.call

        def observed(inputs, training=None, mask=None):
            self._assign(*self._add(inputs, mask))
            return call(inputs, training=False)

        self.layer.call = observed
        try:
            yield
        finally:
            del self.layer.call

    def _add(self, inputs, mask):
        """Mean and variance of one input, over its unmasked positions, and both added to the total."""
        values = np.moveaxis(ops.convert_to_numpy(ops.cast(inputs, "float32")).astype("float64"), self.layer.axis, -1)
        values = values.reshape(-1, values.shape[-1]) if mask is None else values[ops.convert_to_numpy(mask).astype(bool)].reshape(-1, values.shape[-1])
        if not len(values):
            return self._before
        mean = values.mean(0)
        variance = values.var(0)
        self.count += len(values)
        self.sum += len(values) * mean
        self.squares += len(values) * (variance + mean**2)
        return mean, variance

    def check(self):
        """Raise where the statistics are not finite."""
        if self.count and not np.isfinite(self.sum + self.squares).all():
            raise ValueError(f"`recalibrate` found NaN or infinite values before {self.layer.name!r}. The weights or the data are not finite.")

    def store(self):
        """Give the layer the statistics of all that was read; one that was never called keeps its own."""
        if not self.count:
            return self.restore()
        mean = self.sum / self.count
        return self._assign(mean, np.maximum(self.squares / self.count - mean**2, 0.0))

    def restore(self):
        """Give the layer back what it had."""
        self._assign(*self._before)

    def _assign(self, mean, variance):
        for variable, value in zip(self._variables, (mean, variance)):
            variable.assign(ops.cast(ops.convert_to_tensor(np.asarray(value, "float32")), variable.dtype))
