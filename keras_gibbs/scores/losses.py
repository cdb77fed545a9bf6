"""The loss of a model as a pure function of some of its weights."""

import keras
from keras import ops, tree

from keras_gibbs.numerics.autodiff import gradients, traced
from keras_gibbs.typing import Tensor


class ModelLoss:
    """The mean loss of a model over some batches, as a function of some of its weights; nothing is written, and regularizers do not count.

    The model runs in inference mode: statistics as they are, no dropout.

    Args:
        model: A built Keras 3 model.
        variables: The weights that vary, a list of the model's variables.
        batches: List of `(x, y)` or `(x, y, sample_weight)`, from `batches`.
        loss: A Keras loss, its name, or a function `(y_true, y_pred)`; None for the one that the model is compiled with.
        temperature: What the outputs of the model are divided by.

    Raises:
        ValueError: Where there is no loss, where the data does not fit the model, or where the loss is not finite.
    """

    def __init__(self, model, variables, batches, loss=None, temperature: float = 1.0):
        if loss is None and (not getattr(model, "compiled", False) or getattr(model, "loss", None) is None):
            raise ValueError(
                f"A score on data needs a loss, and model {model.name!r} is not compiled with one. Received: loss=None. "
                "Compile the model, or pass `loss='sparse_categorical_crossentropy'`, a Keras loss or a function `(y_true, y_pred)`."
            )
        self.model, self.variables, self.batches, self.temperature = model, variables, batches, temperature
        self._loss = None if loss is None else keras.losses.get(loss)
        self._check()
        self._gradients = traced(lambda values, batch: gradients(lambda values: self.of(values, batch), values))
        self._products = traced(self._product)

    def values(self) -> list[Tensor]:
        """The weights as they are."""
        return [ops.convert_to_tensor(variable) for variable in self.variables]

    def of(self, values: list[Tensor], batch) -> Tensor:
        """The mean loss over one batch, a scalar, where the weights have these values."""
        x, y, *weight = batch
        outputs = tree.map_structure(lambda output: output / self.temperature, call(self.model, self.variables, values, x))
        if self._loss is None:
            # Regularizers see the variables, not `values`; and the means that a loss of several outputs follows stay as they are.
            with keras.StatelessScope(state_mapping=[(own, own.value) for own in self.model.variables]):
                return self.model.compute_loss(x, y, outputs, *weight, training=False)
        loss = self._loss(y, outputs, *weight) if isinstance(self._loss, keras.losses.Loss) else self._loss(y, outputs)
        return ops.mean(loss if isinstance(self._loss, keras.losses.Loss) or not weight else loss * weight[0])

    def gradients(self, values: list[Tensor]) -> list[Tensor]:
        """The gradients of the mean loss over all batches."""
        return self._mean(lambda batch: self._gradients(values, batch))

    def hessian_products(self, values: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
        """The Hessian of the mean loss over all batches times `vectors`."""
        return self._mean(lambda batch: self._products(values, vectors, batch))

    def _product(self, values, vectors, batch):
        def along(values):
            slopes = gradients(lambda values: self.of(values, batch), values)
            return sum(ops.sum(slope * vector) for slope, vector in zip(slopes, vectors, strict=True))

        return gradients(along, values)

    def _mean(self, function):
        sizes = [len(tree.flatten(batch)[0]) for batch in self.batches]
        total = None
        for batch, size in zip(self.batches, sizes, strict=True):
            found = [part * (size / sum(sizes)) for part in function(batch)]
            total = found if total is None else [one + other for one, other in zip(total, found, strict=True)]
        return total

    def _check(self):
        """Try one batch, eagerly: what does not fit is said now, and a compiled loss makes its variables outside of a trace."""
        try:
            if self._loss is None:
                x, y, *weight = self.batches[0]
                self.model.compute_loss(x, y, self.model(x, training=False), *weight, training=False)
            loss = float(ops.convert_to_numpy(self.of(self.values(), self.batches[0])))
        except Exception as error:
            shapes = [array.shape for array in tree.flatten(self.batches[0])]
            raise ValueError(f"`data` does not fit model {self.model.name!r} and its loss. Received: arrays of shapes {shapes}. {error}") from error
        if not abs(loss) < float("inf"):
            raise ValueError(f"The loss on `data` must be finite. Received: a loss of {loss} for model {self.model.name!r}.")


def call(model, variables, values, x):
    """The outputs of `model` for `x` in inference mode, as if `variables` had other `values`; nothing is written."""
    given = {id(variable): value for variable, value in zip(variables, values, strict=True)}
    trainable, others = ([given.get(id(own), own.value) for own in group] for group in (model.trainable_variables, model.non_trainable_variables))
    outputs, _ = model.stateless_call(trainable, others, x, training=False)
    return outputs
