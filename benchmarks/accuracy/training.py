"""How every variant of a comparison is trained, on Keras 3 and, for TF-MOT, on tf_keras."""

import json
import time

import keras

from benchmarks.common.results import write_text


def compile_model(model, steps, rate, api=keras):
    """Adam along a cosine from `rate` to 0 in `steps`, and the cross-entropy of logits."""
    optimizer = api.optimizers.Adam(api.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, api.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])


def fit(model, batches, validation, epochs, rate, callbacks, folder=None, api=keras, compiled=False):
    """Compile and train: Adam along a cosine to 0, cross-entropy of logits, validation after every epoch.

    Args:
        model: A model with logits, of the Keras in `api`.
        batches: A `data.Batches`, or what hands it to tf_keras.
        validation: `(images, labels)`, scaled.
        epochs: Epochs of `fit`.
        rate: Learning rate at the start.
        callbacks: Of the Keras in `api`.
        folder: Where the last epoch is kept while the run lasts, to go on from after an interruption; None keeps nothing.
        api: The Keras that `model` is made with.
        compiled: Whether `compile_model` was called before.

    Returns:
        The history, `{name: [value of every epoch]}`, and the seconds that the epochs took, by the clock and of CPU time over all threads.
    """
    if not compiled:
        compile_model(model, epochs * len(batches), rate, api)
    record = Record(epochs, folder and folder / "history.json")
    callbacks = [*callbacks, api.callbacks.LambdaCallback(on_epoch_begin=record.begin, on_epoch_end=record.end)]
    if folder is not None:  # after the record: an epoch that is kept has its figures
        callbacks.append(api.callbacks.BackupAndRestore(folder / "model"))
    # The batches have their own order: Keras would shuffle them by Python's generator, which no seed of ours reaches after an interruption.
    model.fit(batches, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks, validation_data=validation, validation_batch_size=500)
    return record.history(), record.times()


class Record:
    """The figures of every epoch, one printed line each, and a file of them that an interrupted run finds again."""

    def __init__(self, epochs, file=None):
        self.epochs, self.file = epochs, file
        self.rows = json.loads(file.read_text()) if file and file.exists() else []

    def begin(self, epoch, logs=None):
        self.rows = self.rows[:epoch]  # an epoch that was cut off after its figures is trained again
        self.start = time.perf_counter(), time.process_time()

    def end(self, epoch, logs):
        seconds, cpu_seconds = (now - then for now, then in zip((time.perf_counter(), time.process_time()), self.start, strict=True))
        figures = {name: float(f"{float(value):.7g}") for name, value in logs.items()}
        self.rows.append({"figures": figures, "times": {"seconds": seconds, "cpu_seconds": cpu_seconds}})
        if self.file:
            write_text(self.file, json.dumps(self.rows))
        shown = ", ".join(f"{name} {figures[name]:.4f}" for name in ("loss", "val_accuracy", "sparsity") if name in figures)
        left = self.times()["seconds"] / len(self.rows) * (self.epochs - epoch - 1)
        print(f"  epoch {epoch + 1}/{self.epochs}: {shown}; {left:.0f} s left", flush=True)

    def history(self):
        return {name: [row["figures"].get(name) for row in self.rows] for name in self.rows[-1]["figures"]}

    def times(self):
        return {name: round(sum(row["times"][name] for row in self.rows), 1) for name in ("seconds", "cpu_seconds")}
