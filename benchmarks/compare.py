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
import tempfile
from pathlib import Path

import data
import keras
import numpy as np
import recipe
import train_tfmot
from step_cost import RESULTS, environment, write
from suites import SUITES

import keras_gibbs as kg

CLASSES = {"cifar10": 10, "cifar100": 100, "fashion_mnist": 10}


def result_file(folder, suite, variant, seed):
    return Path(folder) / suite / f"{variant}-seed{seed}.json"


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
        Dict with `auto` (name of a form) and `forms`: raw and gzip bytes of each, whether it runs, and its accuracy where that was measured.
    """
    validation, test = ((images[:count], labels[:count]) for images, labels in (validation, test))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        report = kg.export_tflite(model, path, data=validation)
        forms = {row["encoding"]: {name: row[name] for name in ("raw_bytes", "gzip_bytes", "runs")} for row in report.rows}
        chosen = report.chosen["encoding"]
        for name in dict.fromkeys(("dense", chosen)):
            forms[name]["accuracy"] = kg.export_tflite(model, path, encoding=name, data=test).chosen["accuracy"]
    return {"auto": chosen, "images": len(test[0]), "forms": forms}


def train_ours(suite, method, rate, seed, network, batches, validation, folder):
    """Train a Keras 3 network, under a method or dense.

    Returns:
        The model, stripped if need be; the pruned one, or None; the history; the times.
    """
    classes = network.output_shape[-1]
    pruned = None if method is None else kg.prune(network, method, where=suite.where, seed=seed)
    callbacks = [batches.follow()] + ([] if method is None else [kg.GibbsPruningCallback()]) + [recipe.progress(suite.epochs), Stuck(classes)]
    if folder is not None:
        callbacks.append(keras.callbacks.BackupAndRestore(folder))
    history, times = recipe.fit(pruned or network, batches, validation, suite.epochs, rate, callbacks)
    return kg.strip_pruning(pruned) if pruned else network, pruned, history, times


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
    scaling, looked_at = data.Scaling.of(x), slice(suite.validated)
    keras.utils.set_random_seed(seed)
    network = suite.network(x.shape[1:], CLASSES[suite.dataset])
    method = variant.method(network, seed, earlier)
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
        "files": files(final, (x_val, y_val), (x_test, y_test)) if suite.exported else None,
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
    return {"configuration": configuration, **times, "history": history, "final": figures}


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
