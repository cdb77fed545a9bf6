"""Train the variants of a suite on the same terms, and keep every result.

    python benchmarks/compare.py extraction                     # all variants, seeds 0 and 1
    python benchmarks/compare.py extraction --seeds 0 --only dense
    python benchmarks/report.py extraction                      # the table and the plot, at any time

Every finished run is one JSON file in benchmarks/results/<suite>/; a run whose file is there is not repeated, and Ctrl-C keeps what is finished. Seeds are
paired: one seed is one initialization and one order of the batches for all variants. Test images are looked at once, after the last epoch, with the
stripped model.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import data
import keras
import numpy as np
from step_cost import RESULTS, environment, write
from suites import SUITES

import keras_gibbs as kg

CLASSES = {"cifar10": 10, "cifar100": 100, "fashion_mnist": 10}


def result_file(folder, suite, variant, seed):
    return Path(folder) / suite / f"{variant}-seed{seed}.json"


class Progress(keras.callbacks.Callback):
    """One line after every epoch, in place of Keras's own bar."""

    def on_train_begin(self, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        passed, epochs = time.perf_counter() - self.start, self.params["epochs"]
        figures = ", ".join(f"{name} {logs[name]:.4f}" for name in ("loss", "val_accuracy", "sparsity") if name in logs)
        print(f"  epoch {epoch + 1}/{epochs}: {figures}; {passed / (epoch + 1) * (epochs - epoch - 1):.0f} s left", flush=True)


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


def train(suite, variant, seed, earlier, images, folder=None):
    """One run.

    Args:
        suite: A `Suite`.
        variant: One of its variants.
        seed: Of the initialization, the masks and the order of the batches.
        earlier: The results of the variants it needs, by name.
        images: `(train, validation, test)`, each a pair of uint8 images and labels.
        folder: Where the run keeps its last epoch, to go on from after an interruption; None keeps nothing.

    Returns:
        Dict with the history and the final figures.
    """
    (x, y), (x_val, y_val), (x_test, y_test) = images
    scaling = data.Scaling.of(x)
    keras.utils.set_random_seed(seed)
    network = suite.network(x.shape[1:], CLASSES[suite.dataset])
    method = variant.method(network, seed, earlier)
    model = network if method is None else kg.prune(network, method, where=suite.where, seed=seed)
    batches = data.Batches(x, y, scaling, batch_size=suite.batch, seed=seed, augmented=suite.augmented, steps=suite.steps)
    rate = keras.optimizers.schedules.CosineDecay(variant.rate, suite.epochs * len(batches))
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    callbacks = [batches.follow()] + ([] if method is None else [kg.GibbsPruningCallback()]) + [Progress(), Stuck(CLASSES[suite.dataset])]
    if folder is not None:
        callbacks.append(keras.callbacks.BackupAndRestore(folder))
    start = time.perf_counter()
    validation = (scaling(x_val[: suite.validated]), y_val[: suite.validated])
    history = model.fit(batches, epochs=suite.epochs, verbose=0, callbacks=callbacks, validation_data=validation, validation_batch_size=500)
    seconds = time.perf_counter() - start

    final = model if method is None else kg.strip_pruning(model)
    x_test, x_val = scaling(x_test), scaling(x_val)
    figures = {
        "sparsity": kg.sparsity(final),
        "pruned_sparsity": kg.summary(model).wrapped_sparsity,
        "parameters": final.count_params(),
        "test": accuracy(final, x_test, y_test),
        "validation": accuracy(final, x_val, y_val),
        "test_unmasked": None if method is None else accuracy(unmasked(network, model), x_test, y_test),
    }
    configuration = {
        "network": network.name,
        "dataset": suite.dataset,
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
    history = {name: [round(float(value), 6) for value in values] for name, values in history.history.items()}
    return {"configuration": configuration, "seconds": round(seconds, 1), "history": history, "final": figures}


def load_images(suite, folder=None, limit=None):
    """Training, validation and test images of a suite; `limit` keeps the first so many of each, for a look."""
    x, y = data.load(suite.dataset, "train", folder)
    (x, y), (x_val, y_val) = data.holdout(x, y, suite.validation)
    return [(a[:limit], b[:limit]) for a, b in ((x, y), (x_val, y_val), data.load(suite.dataset, "test", folder))]


def run(name, suite, seeds, only, out, images):
    """Every run of a suite that is not there yet; returns how many were made."""
    made = 0
    chosen = [variant for variant in suite.variants if not only or variant.name in only]
    pending = [(seed, variant) for seed in seeds for variant in chosen if not result_file(out, name, variant.name, seed).exists()]
    for seed, variant in pending:
        earlier = {need: result_file(out, name, need, seed) for need in variant.needs}
        missing = [need for need, file in earlier.items() if not file.exists()]
        if missing:
            print(f"Left out: {variant.name}, seed {seed}: it follows {missing}, which is not there.", flush=True)
            continue
        made += 1
        print(f"{name}: {variant.name}, seed {seed} ({made} of {len(pending)})", flush=True)
        file = result_file(out, name, variant.name, seed)
        result = train(suite, variant, seed, {need: read(path) for need, path in earlier.items()}, images, file.with_suffix(".resume"))
        write(file, {"suite": name, "variant": variant.name, "seed": seed, "environment": environment(), **result})
        keras.backend.clear_session()
    return made


def read(file):
    return json.loads(Path(file).read_text())


def main():
    parser = argparse.ArgumentParser(description="Train the variants of a suite and keep every result.")
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="some of the suite's variants")
    parser.add_argument("--dataset", choices=data.DATASETS, help="another data set than the suite's; results go to <suite>-<dataset>")
    parser.add_argument("--data", type=Path, help="a folder of .npz parts instead of tensorflow-datasets")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results (%(default)s)")
    arguments = parser.parse_args()
    known = [variant.name for variant in SUITES[arguments.suite].variants]
    if unknown := set(arguments.only or ()) - set(known):
        parser.error(f"unknown variants {sorted(unknown)}; {arguments.suite} has {', '.join(known)}")
    name, suite = arguments.suite, SUITES[arguments.suite]
    if arguments.dataset:
        name, suite = f"{name}-{arguments.dataset}", dataclasses.replace(suite, dataset=arguments.dataset)
    try:
        made = run(name, suite, arguments.seeds, arguments.only, arguments.out, load_images(suite, arguments.data))
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. Finished runs are kept, and the same command goes on from the last epoch of this one.") from None
    print(f"{made} runs made; results in {arguments.out / name}. The table: python benchmarks/report.py {name}")


if __name__ == "__main__":
    main()
