"""One run of a comparison: train a variant of a suite, strip it, and measure what came out."""

import dataclasses
import importlib.util
import math
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_gibbs as kg
from benchmarks.accuracy import train_tfmot, train_tickets, training
from benchmarks.common import data


class Stuck(keras.callbacks.Callback):
    """Ends a run whose loss has been that of a guess for two epochs: all units are dead, and do not come back."""

    def __init__(self, classes):
        super().__init__()
        self.guess, self.epochs = math.log(classes), 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs = self.epochs + 1 if abs(logs["loss"] - self.guess) < 1e-3 else 0
        if self.epochs == 2:
            print("  The loss is that of a guess: the run ends here.", flush=True)
            self.model.stop_training = True


def accuracy(model, images, labels):
    """Top-1 and top-5 accuracy of a model with logits, as fractions."""
    logits = model.predict(images, batch_size=500, verbose=0)
    right = np.take_along_axis(logits, labels[:, None], 1)
    tied = (logits == right) & (np.arange(logits.shape[1]) < labels[:, None])  # of equal scores the first counts, as in `argmax`
    ahead = np.sum((logits > right) | tied, axis=1)
    known = np.isfinite(logits).all(axis=1)
    return {"top1": float(np.mean(known & (ahead < 1))), "top5": float(np.mean(known & (ahead < 5)))}


def unmasked(network, model):
    """`network` with the weights of `model`, a pruned copy of it, without any mask."""
    for layer in network.layers:
        trained = model.get_layer(layer.name)
        layer.set_weights((trained.layer if isinstance(trained, kg.Pruned) else trained).get_weights())
    return network


def files(model, validation, test, count=1000):
    """The .tflite files of a final model: what each form weighs, which one "auto" writes, and the accuracy of that and of the dense one in LiteRT.

    Args:
        model: A plain Keras model.
        validation: Scaled images and labels, of which "auto" looks at `count` to choose.
        test: The same; the accuracy is that of the first `count`.
        count: A number of images.

    Returns:
        Dict with `auto` (name of a form) and `forms`: raw and gzip bytes of each, whether it runs, and its accuracy where that was measured. None on a machine
        without TensorFlow, which writes the files.
    """
    if importlib.util.find_spec("tensorflow") is None:
        return None
    validation, test = ((images[:count], labels[:count]) for images, labels in (validation, test))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        report = kg.export_tflite(model, path, data=validation)
        forms = {row["encoding"]: {name: row[name] for name in ("raw_bytes", "gzip_bytes", "runs")} for row in report.rows}
        chosen = report.chosen["encoding"]
        for name in dict.fromkeys(("dense", chosen)):
            forms[name]["accuracy"] = kg.export_tflite(model, path, encoding=name, data=test).chosen["accuracy"]
    return {"auto": chosen, "images": len(test[0]), "forms": forms}


def shrunken(model, images, test):
    """What `shrink` makes of a final model.

    Args:
        model: A plain Keras model.
        images: Scaled training images, by which it is recalibrated.
        test: Scaled images and labels.

    Returns:
        Dict with `parameters` and `macs` left, those of the model before (`parameters_before`, `macs_before`), and the accuracy once it is recalibrated.
    """
    report = kg.shrink(model, plan_only=True)
    figures = {name: report.total(f"{name}_after") for name in ("parameters", "macs")}
    figures |= {f"{name}_before": report.total(name) for name in ("parameters", "macs")}
    small = kg.shrink(model)
    kg.recalibrate(small, images)
    return figures | {"recalibrated": accuracy(small, *test)}


def train_ours(suite, method, rate, seed, network, batches, validation, folder):
    """Train a Keras 3 network, under a method or dense.

    Returns:
        The model, stripped if need be; the pruned one, or None; the history; the times.
    """
    tickets = isinstance(method, train_tickets.Tickets)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    given = kg.Fixed() if tickets else method
    pruned = None if method is None else kg.prune(network, given, where=suite.where, seed=seed, data=examples(batches), loss=loss)

    def callbacks():
        return [batches.follow()] + ([] if method is None else [kg.GibbsPruningCallback()]) + [Stuck(network.output_shape[-1])]

    if tickets:
        history, times = train_tickets.train(pruned, method, batches, validation, suite.epochs, rate, callbacks)
    else:
        history, times = training.fit(pruned or network, batches, validation, suite.epochs, rate, callbacks(), folder)
    return kg.strip_pruning(pruned) if pruned else network, pruned, history, times


def examples(batches, count=10):
    """The first `count` training images of every class, scaled, and their labels: what methods score a network on."""
    chosen = np.concatenate([np.flatnonzero(batches.labels == label)[:count] for label in np.unique(batches.labels)])
    return batches.scaling(batches.images[chosen]), batches.labels[chosen]


def train_theirs(suite, method, rate, seed, network, images):
    """Train the network with TF-MOT; returns as `train_ours`."""
    (x, _), _ = images
    settings = {
        "network": dataclasses.asdict(suite.network),
        "shape": x.shape[1:],
        "classes": network.output_shape[-1],
        "layers": [layer.name for layer in network.layers if suite.where(layer)],
        "seed": seed,
        "rate": rate,
        **{name: getattr(suite, name) for name in ("epochs", "steps", "batch", "augmented")},
    }
    history, times = train_tfmot.train(network, method, settings, images)
    return network, None, history, times


def train(suite, variant, seed, earlier, images, folder=None, start=None):
    """One run.

    Args:
        suite: A `Suite`.
        variant: One of its variants.
        seed: Of the initialization, the masks and the order of the batches.
        earlier: The results of the variants it needs, by name.
        images: `(train, validation, test)`, each a pair of uint8 images and labels.
        folder: Where the run keeps its last epoch, to go on from after an interruption; None keeps nothing.
        start: Initial weights as from `train_tfmot.named_weights`; None for random ones.

    Returns:
        Dict with the history and the final figures, and the final model, stripped.
    """
    (x, y), (x_val, y_val), (x_test, y_test) = images
    scaling, looked_at = data.Scaling.of(x), slice(suite.validated)
    keras.utils.set_random_seed(seed)
    network = suite.network(x.shape[1:], data.DATASETS[suite.dataset])
    if start is not None:
        train_tfmot.set_named_weights(network, start)
    method = variant.method_for(network, seed, earlier)
    batches = data.Batches(x, y, scaling, batch_size=suite.batch, seed=seed, augmented=suite.augmented, steps=suite.steps)
    if isinstance(method, train_tfmot.TFMOT):
        shown = ((x, y), (x_val[looked_at], y_val[looked_at]))
        final, pruned, history, times = train_theirs(suite, method, variant.rate, seed, network, shown)
    else:
        validation = (scaling(x_val[looked_at]), y_val[looked_at])
        final, pruned, history, times = train_ours(suite, method, variant.rate, seed, network, batches, validation, folder)

    x_test, x_val = scaling(x_test), scaling(x_val)
    counted = {layer.name for layer in (filter(suite.where, network.layers) if suite.where else kg.pruned_layers(pruned or network))}
    figures = {
        "sparsity": kg.sparsity(final),
        "pruned_sparsity": None if method is None else kg.sparsity(final, where=lambda layer: layer.name in counted),
        "parameters": final.count_params(),
        "test": accuracy(final, x_test, y_test),
        "validation": accuracy(final, x_val, y_val),
        "test_unmasked": accuracy(unmasked(network, pruned), x_test, y_test) if pruned else None,
        "shrunken": shrunken(final, scaling(x[:5000]), (x_test, y_test)) if suite.shrunken else None,
        "files": files(final, (x_val, y_val), (x_test, y_test)) if suite.exported else None,
    }
    configuration = {
        "network": network.name,
        "options": getattr(suite.network, "options", None),
        "dataset": suite.dataset,
        "start": suite.start,
        "train": len(x),
        "validation": len(x_val),
        "epochs": suite.epochs,
        "steps": len(batches),
        "batch": suite.batch,
        "augmented": suite.augmented,
        "optimizer": "Adam, cosine decay to 0",
        "rate": variant.rate,
        "method": None if method is None else method.brief(),
    }
    return {"configuration": configuration, **times, "history": history, "final": figures}, final
