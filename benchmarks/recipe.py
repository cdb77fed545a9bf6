"""How every variant of a comparison is trained, on Keras 3 and, for TF-MOT, on tf_keras."""

import time

import keras


def fit(model, batches, validation, epochs, rate, callbacks, api=keras):
    """Compile and train: Adam along a cosine to 0, cross-entropy of logits, validation after every epoch.

    Args:
        model: A model with logits, of the Keras in `api`.
        batches: A `data.Batches`, or what hands it to tf_keras.
        validation: `(images, labels)`, scaled.
        epochs: Epochs of `fit`.
        rate: Learning rate at the start.
        callbacks: Of the Keras in `api`.
        api: The Keras that `model` is made with.

    Returns:
        The history, `{name: [value of every epoch]}`, and the seconds that `fit` took, by the clock and of CPU time over all threads.
    """
    optimizer = api.optimizers.Adam(api.optimizers.schedules.CosineDecay(rate, epochs * len(batches)))
    model.compile(optimizer, api.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    start, cpu = time.perf_counter(), time.process_time()
    # The batches have their own order: Keras would shuffle them by Python's generator, which no seed of ours reaches after an interruption.
    history = model.fit(batches, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks, validation_data=validation, validation_batch_size=500).history
    times = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    return {name: [round(float(value), 6) for value in values] for name, values in history.items()}, times


def progress(epochs, api=keras):
    """A callback that prints one line after every epoch, in place of Keras's own bar."""
    start = time.perf_counter()

    def line(epoch, logs):
        passed, left = time.perf_counter() - start, epochs - epoch - 1
        figures = ", ".join(f"{name} {logs[name]:.4f}" for name in ("loss", "val_accuracy", "sparsity") if name in logs)
        print(f"  epoch {epoch + 1}/{epochs}: {figures}; {passed / (epoch + 1) * left:.0f} s left", flush=True)

    return api.callbacks.LambdaCallback(on_epoch_end=line)
