"""The callback that anneals and folds a pruned tf_keras model."""

import warnings

import tf_keras

from keras_gibbs.callbacks import Annealing
from keras_gibbs.model import distribute
from keras_gibbs.tfmot.optimizers import clear_slots
from keras_gibbs.tfmot.wrapper import pruned_layers


class GibbsPruningCallback(Annealing, tf_keras.callbacks.Callback):
    """Anneals a pruned tf_keras model during `fit` as `keras_gibbs.GibbsPruningCallback` does, and folds its masks into its weights.

    Masks are folded when an epoch's batches are done, before validation, and at the end of `fit`: what is validated, what an epoch-end checkpoint holds and
    what TF-MOT's `strip_pruning` gives are the same. Schedules have then come to the end of that epoch. The dense weights stay beside the folded ones,
    in the checkpoint too, and training goes on from them.

    Other callbacks, `ModelCheckpoint`, TF-MOT's `UpdatePruningStep` and `PruningSummaries`, may stand before or after it. Only where the data do not say how
    long an epoch is, and nothing is validated, a `ModelCheckpoint` before it saves the first epoch without its masks; a warning says so.

    At the end of every epoch `sparsity` (over the weights that are pruned) and the method's own figures join the logs.

    A training loop of your own calls `set_model`, then `on_train_begin`, `on_epoch_begin(epoch)`, `on_train_batch_begin(batch)`, `on_epoch_end(epoch)` and
    `on_train_end`, and passes `epochs`; with `set_params({"steps": ...})` schedules move per batch.

    Args:
        update_freq, epochs, restart: As in `keras_gibbs.GibbsPruningCallback`.

    Raises:
        ValueError: When `fit` begins on a model with nothing pruned by a method.

    Example:

    >>> pruned.fit(x, y, epochs=60, callbacks=[kg_tfmot.GibbsPruningCallback(), tf_keras.callbacks.ModelCheckpoint("last.h5")])
    """

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._closed = None  # the last epoch that was brought to its end
        for layer in self._layers:
            layer.start()

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        for layer in self._built():
            layer.unfold()

    def on_train_batch_end(self, batch, logs=None):
        if self._steps and batch + 1 >= self._steps:
            self._close(self._epoch)

    def on_test_begin(self, logs=None):
        if self._epoch is not None:
            self._close(self._epoch)

    def on_epoch_end(self, epoch, logs=None):
        if self._closed != epoch and self._steps is None and "steps" in getattr(self, "params", ()):
            warnings.warn(
                "The data do not say how long an epoch is: a `ModelCheckpoint` that is listed before `GibbsPruningCallback` has saved this epoch without "
                "its masks in the weights. List it after, or call `keras_gibbs.tfmot.fold` on what it saved.",
                stacklevel=2,
            )
        if self._closed != epoch or not self._is_restored():
            self._close(epoch)
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self._epoch = None
        self._fold()

    def _epoch_after(self, progress):
        return round(progress * self._horizon)

    def _close(self, epoch):
        """Bring the model into the state that `epoch` ends with."""
        self._closed = epoch
        self._move((epoch + 1) / self._horizon)
        self.distribute(self.model, self._layers)
        self._fold()

    def _fold(self):
        for layer in self._built():
            layer.fold()

    def _built(self):
        return [layer for layer in self._layers if layer.built]

    # What `Annealing` asks.

    _epoch = None

    def layers(self):
        layers = pruned_layers(self.model)
        if not layers:
            raise ValueError(
                f"`GibbsPruningCallback` found nothing that a method prunes in model {self.model.name!r}: wrap it first with "
                "`keras_gibbs.tfmot.prune(model, method)`. What TF-MOT itself prunes is trained with its `UpdatePruningStep()`."
            )
        return layers

    def sparsity(self):
        weights = [weight.numpy() for layer in self._built() for weight in layer.prunable_weights]
        return 1.0 - sum(int((weight != 0).sum()) for weight in weights) / sum(weight.size for weight in weights)

    def forget(self, model, variable, where):
        if getattr(model, "optimizer", None) is not None:
            clear_slots(model.optimizer, model.trainable_variables, variable, where)

    def distribute(self, model, layers=None, progress=None):
        distribute(model, self._built() if layers is None else layers, progress)
