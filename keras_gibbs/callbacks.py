"""Move the schedules of a pruned model while it trains, and log what happens."""

import keras
import numpy as np

from keras_gibbs import notices
from keras_gibbs.arguments import require_flag
from keras_gibbs.early_variables import build_early
from keras_gibbs.layers import pruned_layers
from keras_gibbs.methods.traits import ChecksTraining, SearchesModel, scope_of
from keras_gibbs.model import distribute, sparsity
from keras_gibbs.optimizers import clear_slots
from keras_gibbs.search.population import Searching
from keras_gibbs.wrapping import mean_figures

SHARING = 1 / 256  # of training, after which the layers share out anew what is kept; they do at the beginning of every epoch, too
MANY_EPOCHS = 20  # from so many epochs on, "auto" moves schedules once an epoch


class Annealing:
    """What moves the schedules of a pruned model, as a mixin for the callback of one Keras or another.

    A callback names its `layers()`, which have `built`, `method`, `progress`, `anneal` and `masked_weights` as `Pruned` has them, and the `sparsity()` of its
    model, and shares out what is kept in `distribute()`.
    """

    def __init__(self, update_freq="auto", epochs: int | None = None, restart: bool = False):
        super().__init__()
        by_name = update_freq in ("auto", "epoch", "batch")
        if not by_name and (isinstance(update_freq, bool) or not isinstance(update_freq, int) or update_freq < 1):
            raise ValueError(f"`update_freq` must be 'auto', 'epoch', 'batch' or a positive number of batches. Received: update_freq={update_freq!r}.")
        if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
            raise ValueError(f"`epochs` must be a positive int, the horizon of the schedules, or None for that of `fit`. Received: epochs={epochs!r}.")
        require_flag(restart=restart)
        self.update_freq = update_freq
        self.epochs = epochs
        self.restart = restart
        self._told = False

    def layers(self):
        """The pruned layers of the model, of which there must be some."""
        raise NotImplementedError

    def sparsity(self) -> float:
        """Fraction of zeros in the model's kernels, as they are under the deterministic masks."""
        raise NotImplementedError

    def distribute(self, model, layers=None, progress=None) -> None:
        """Share out what is kept at `progress`, by default where the model stands, among `layers`, by default all of the model's."""
        raise NotImplementedError

    def forget(self, model, variable, where) -> None:
        """Let the optimizer of `model` forget what it remembers of `variable` at `where`, a bool array: the method has written these entries."""

    def on_train_begin(self, logs=None):
        layers = self.layers()
        self._layers = layers
        self._check_search(layers)
        for method in {layer.method for layer in layers}:
            if isinstance(method, ChecksTraining):
                method.check_training(getattr(self.model, "optimizer", None), [layer for layer in layers if layer.method == method])
        params = getattr(self, "params", None) or {}  # Keras 2 has none before `fit`
        self._horizon = self.epochs or params.get("epochs")
        if self._horizon is None:
            raise ValueError("In a training loop of your own nothing says how long it is. Received: epochs=None. Pass `GibbsPruningCallback(epochs=...)`.")
        self._steps = params.get("steps")
        self._epoch, self._last_epoch, self._last_batch = None, None, 0
        self._over, self._shared, self._moved_to = None, None, None

    def _check_search(self, layers):
        if not isinstance(self.model, Searching) and any(isinstance(layer.method, SearchesModel) for layer in layers):
            raise ValueError(
                "EDropout searches a whole model: `keras_gibbs.prune(model, keras_gibbs.EDropout())` returns one that does, for tf_keras that of "
                f"`keras_gibbs.tfmot`. Received: model {self.model.name!r} of class {type(self.model).__name__!r}, whose layers were wrapped one by one, or "
                "which was built anew from such layers."
            )

    def _begin(self, epoch):
        """Find out where the model stands; only now, since another callback may have restored it in `on_train_begin`."""
        if self.restart and isinstance(self.model, Searching):
            self.model.restart()
        self._over = not self.restart and all(layer.progress >= 1.0 for layer in self._layers)
        if not self._over:
            self._check_length()
            self._tell_of_begin(epoch)
        elif not self._told:
            self._told = True
            notices.tell_of_end()

    def _check_length(self):
        moving = notices.schedules_of(self._layers) or any(getattr(layer.method, "settle", None) is not None for layer in self._layers)
        if self._horizon == 1 and not self._steps and moving:
            raise ValueError(
                "The data do not say how many batches they hold, and in a training of one epoch nothing else says when schedules move. Received: "
                "epochs=1 and data of unknown length. Pass `steps_per_epoch` to `fit`, several `epochs`, or, where this epoch is one of several calls, "
                "`GibbsPruningCallback(epochs=...)`; in a loop of your own call `callback.set_params({'steps': ...})` first."
            )

    def _tell_of_begin(self, epoch):
        every = self._every()
        if not every or self._steps:
            notices.tell_of_jumps(self._layers, self._horizon * (max(1, self._steps // every) if every else 1), self._horizon)
        if not self.restart:
            iterations = getattr(getattr(self.model, "optimizer", None), "iterations", None)
            done = None if iterations is None else int(iterations.numpy() if hasattr(iterations, "numpy") else iterations)  # of accumulated steps a tensor
            notices.tell_of_setback(max(layer.progress for layer in self._layers), epoch, self._horizon, self._steps, done)

    def _every(self):
        """After how many batches schedules move; None for once an epoch."""
        if self.update_freq == "epoch" or (self.update_freq == "auto" and self._horizon >= MANY_EPOCHS):
            return None
        return self.update_freq if isinstance(self.update_freq, int) else 1

    def on_epoch_begin(self, epoch, logs=None):
        if self._over is None:
            self._begin(epoch)
        self._epoch = epoch
        self._shared = None  # so that a run that is resumed here shares when one that was not interrupted does
        self._move(epoch / self._horizon)

    def on_train_batch_begin(self, batch, logs=None):
        every = self._every()
        if every and self._steps and batch and batch // every > (batch - self._stride(batch)) // every:
            self._move((self._epoch + batch / self._steps) / self._horizon)
        self._last_batch = batch

    def _stride(self, batch):
        """Batches since the last call: more than one with `steps_per_execution`."""
        return batch - self._last_batch if batch > self._last_batch else 1

    def on_epoch_end(self, epoch, logs=None):
        self._last_epoch = epoch
        if not self._steps:
            self._steps = max(1, self._last_batch)  # of data that say by ending how many batches they hold, Keras announces one more than there are
        if logs is not None:
            logs.update(self._figures())

    def on_train_end(self, logs=None):
        if self._last_epoch is None:
            return  # not one epoch was trained
        if not self._over:
            self._end()
        self.distribute(self.model, self._layers)

    def _end(self):
        """Bring the schedules to where training has come: to their end, unless it was stopped early or another callback has restored weights."""
        layers = [layer for layer in self._layers if layer.built]
        restored = self._is_restored()
        if not restored and not self._is_stopped():
            self._move(1.0 if self.epochs is None else (self._last_epoch + 1) / self.epochs)
        elif all(layer.has_ended() for layer in layers):
            self._move(1.0)  # which changes nothing but that a later `fit` keeps what there is
        else:
            progress = max(layer.progress for layer in layers)
            epoch = self._epoch_after(progress) if restored else self._last_epoch + 1
            notices.tell_of_stop(layers, progress, epoch, self._horizon, restored)

    def _is_restored(self):
        """Whether another callback has given the model weights that were trained at another progress than the last."""
        return any(layer.built and np.float32(layer.progress) != np.float32(self._moved_to) for layer in self._layers)

    def _is_stopped(self):
        """Whether `fit` has ended before its last epoch, or within it."""
        epochs = (getattr(self, "params", None) or {}).get("epochs")
        if epochs is None:
            return False
        cut = getattr(self.model, "stop_training", False) and self._last_batch + getattr(self.model, "steps_per_execution", 1) < (self._steps or 0)
        return cut or self._last_epoch + 1 < epochs

    def _epoch_after(self, progress):
        """The epoch that comes after the one that ended with `progress`."""
        return int(progress * self._horizon + notices.EPSILON) + 1

    def _move(self, progress):
        if self._over:
            return
        progress = self._moved_to = min(1.0, progress)
        model = self.model  # on JAX this access is what hands the state of training to the layers, and takes it back
        layers = [layer for layer in self._layers if layer.built]  # a subclassed model may build its layers in the first step; they start where schedules do
        if self._is_time_to_share(progress):
            self._shared = progress
            self.distribute(model, layers, progress)
        for layer in layers:
            for variable, where in layer.anneal(progress):
                self.forget(model, variable, where)

    def _is_time_to_share(self, progress):
        """Whether it is time to share out anew what is kept: now and then, and when a method holds its mask."""
        shared = {layer.method for layer in self._layers if scope_of(layer.method) != "layer"}
        if not shared:
            return False
        if self._shared is None or not 0 <= progress - self._shared < SHARING:
            return True
        return any(method.settle is not None and self._shared < method.settle <= progress for method in shared)

    def _figures(self):
        rows = [layer.figures() for layer in self.layers() if layer.built]
        return {"sparsity": self.sparsity(), **mean_figures(rows), **self._figures_of_search()}

    def _figures_of_search(self):
        if not isinstance(self.model, Searching):
            return {}
        self.model.check_energies()
        return self.model.figures()


class GibbsPruningCallback(Annealing, keras.callbacks.Callback):
    """Anneals a pruned model during `fit`; it serves every method.

    Schedules move with the progress of training: 0 when the first epoch begins, 1 when `fit` has ended. Progress honours `initial_epoch`, so a run
    that is resumed goes on where it was. When the horizon has ended the model keeps its final state, also in a later `fit` (fine-tuning).

    A `fit` that is stopped early leaves the schedules where the last validation saw them, and weights that another callback restored, such as
    `EarlyStopping(restore_best_weights=True)`, keep the progress that they were trained at; a warning says how to go on. Other callbacks may stand before
    or after this one.

    Data that do not say how long they are (generators) are counted in the first epoch: schedules stand still until it ends, and move with every batch
    from the second one on. Where there is only one epoch they are refused.

    At the end of every epoch `sparsity` (of the deterministic masks, over all kernels) and the method's own figures, averaged over the layers, join the
    logs: for Gibbs `beta`, `kept` (fraction of a random sample that is kept) and `energy` (per group). History always sees them; list CSVLogger
    and TensorBoard after this callback and they do too. The figures are those the epoch ended with: after the last one schedules move once more, to 1.

    Args:
        update_freq: When schedules move: `"epoch"`, `"batch"`, or an int, every so many batches. `"auto"` is per epoch in a run of 20 epochs or more,
            else per batch. With `steps_per_execution=n` batches come n at a time.
        epochs: The horizon: the number of epochs over which progress goes from 0 to 1. By default the `epochs` of the `fit`; a larger number
            spreads the schedules over several calls with `initial_epoch`.
        restart: True to begin again with a model whose horizon has ended.

    Raises:
        TypeError: For a `restart` that is not a bool.
        ValueError: For an `update_freq` or `epochs` that is none of these, and when `fit` begins on a model with nothing wrapped, or with one epoch of data
            of unknown length.

    Example:

    >>> pruned.fit(x, y, epochs=60, callbacks=[kg.GibbsPruningCallback()])

    In a training loop of your own, of a model that is compiled or not:

    >>> callback = kg.GibbsPruningCallback(epochs=60)
    >>> callback.set_model(pruned), callback.on_train_begin()
    >>> for epoch in range(60):
    ...     callback.on_epoch_begin(epoch)
    ...     train_and_validate(pruned)  # `pruned(x, training=True)` draws the masks
    ...     callback.on_epoch_end(epoch)
    >>> callback.on_train_end()

    Call `callback.set_params({"steps": n})` first and `callback.on_train_batch_begin(batch)` before every batch to move schedules within epochs. On JAX, write
    the state of training back into the model's variables before each of these calls.
    """

    def layers(self):
        layers = pruned_layers(self.model)
        if not layers:
            raise ValueError(
                f"`GibbsPruningCallback` found nothing to prune in model {self.model.name!r}: wrap it first with `pruned = keras_gibbs.prune(model, method)`"
                " and call `fit` on the result."
            )
        return layers

    def sparsity(self):
        return sparsity(self.model)

    def distribute(self, model, layers=None, progress=None):
        distribute(model, layers, progress)

    def forget(self, model, variable, where):
        if getattr(model, "optimizer", None) is not None:
            clear_slots(model.optimizer, model.trainable_variables, variable, where)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        build_early(self.model)

    def on_test_begin(self, logs=None):
        if self.model is not None:
            self.distribute(self.model)

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        for layer in pruned_layers(self.model):
            if layer.built:
                layer.note_change()  # an optimizer that averages weights has written them after the last validation
