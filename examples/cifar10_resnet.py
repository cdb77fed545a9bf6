"""Gibbs pruning of a ResNet on CIFAR-10, by the recipe of its authors.

    python examples/cifar10_resnet.py                                          # ResNet-20, 90 %, 200 epochs: for a GPU
    python examples/cifar10_resnet.py --structure kernel --limit 512 --epochs 1   # a look, in a minute or two
    KERAS_BACKEND=jax python examples/cifar10_resnet.py --depth 56

The data comes through tensorflow-datasets: from --data-dir or TFDS_DATA_DIR, or it is downloaded. The same command after an interruption
goes on where the last epoch ended. Recipe: j201/gibbs-pruning, example.py (Labach & Valaee 2020, https://arxiv.org/abs/2006.04981).
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow_datasets as tfds

import keras_gibbs as kg

FOLDER = Path(__file__).resolve().parent.parent / "build" / "cifar10"
METHODS = {
    "unstructured": lambda sparsity: kg.Gibbs(sparsity),
    "kernel": lambda sparsity: kg.Gibbs(sparsity, structure=kg.Kernel(), hamiltonian=kg.KernelCoupling(c=0.01, convention="reference")),
    "filter": lambda sparsity: kg.Gibbs(sparsity, structure=kg.Filter()),
}


def resnet(depth):
    """Three stages of 3x3 convolutions, 16, 32 and 64 channels wide, and a classifier; `depth` is 6n + 2."""

    def convolution(x, name, filters, size=3, strides=1):
        penalty = keras.regularizers.L2(1e-4)
        settings = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal", "kernel_regularizer": penalty}
        return keras.layers.Conv2D(filters, size, strides=strides, name=name, **settings)(x)

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(convolution(inputs, "stem", 16)))
    for width in (16, 32, 64):
        for block in range((depth - 2) // 6):
            strides = 2 if width > 16 and block == 0 else 1
            name = f"width{width}_block{block}"
            y = keras.layers.BatchNormalization()(convolution(x, f"{name}_conv1", width, strides=strides))
            y = keras.layers.BatchNormalization()(convolution(keras.layers.ReLU()(y), f"{name}_conv2", width))
            if strides > 1:
                x = convolution(x, f"{name}_shortcut", width, size=1, strides=strides)
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(10, kernel_initializer="he_normal", name="classifier")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")


class Batches(keras.utils.PyDataset):
    """Batches, shifted by up to a tenth and flipped at random: a function of (seed, epoch, index), so a resumed run sees the same."""

    def __init__(self, images, labels, batch_size, seed):
        super().__init__()
        self.images, self.labels, self.batch_size, self.seed = images, labels, min(batch_size, len(images)), seed
        self.begin_epoch(0)

    def begin_epoch(self, epoch, logs=None):
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.images))

    def __len__(self):
        return len(self.images) // self.batch_size

    def __getitem__(self, index):
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        images = self.images[chosen]
        images = np.where(rng.random(len(images))[:, None, None, None] < 0.5, images[:, :, ::-1], images)
        for axis in (1, 2):
            images = shift(images, rng.uniform(-0.1, 0.1, len(images)) * images.shape[axis], axis)
        return images, self.labels[chosen]


def shift(images, offsets, axis):
    """Move every image along an axis by its own number of pixels, interpolated; the edge is repeated."""
    images = np.moveaxis(images, axis, 1)
    whole, number = np.floor(offsets).astype(int), np.arange(len(images))[:, None]
    share = (offsets - whole).astype("float32").reshape(-1, 1, 1, 1)
    at = np.arange(images.shape[1]) + whole[:, None]
    lower, upper = (images[number, np.clip(index, 0, images.shape[1] - 1)] for index in (at, at + 1))
    return np.moveaxis(lower * (1 - share) + upper * share, 1, axis)


def load(data_dir, limit):
    """Scaled images and labels, to train and to test on: one mean and one deviation over all pixels of the training images."""
    train, test = (
        tfds.as_numpy(tfds.load("cifar10", split=split, batch_size=-1, as_supervised=True, data_dir=data_dir))
        for split in (f"train[:{limit}]" if limit else "train", "test")
    )
    mean, deviation = train[0].mean(dtype="float64"), train[0].std(dtype="float64")
    return (*(((images - np.float32(mean)) / np.float32(deviation), labels) for images, labels in (train, test)),)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20, help="6n + 2: 20, 32, 56 ...")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--structure", choices=METHODS, default="unstructured")
    parser.add_argument("--epochs", type=int, default=200, help="learning rate and beta schedule are stretched to it")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, help="train on so many images only")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results (%(default)s)")
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    method = METHODS[args.structure](args.sparsity)
    # The first convolution and the classifier stay dense.
    pruned = kg.prune(resnet(args.depth), method, where=lambda layer: layer.name not in ("stem", "classifier"), seed=args.seed)
    train, test = load(args.data_dir, args.limit)
    batches = Batches(*train, args.batch_size, args.seed)
    pruned.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])

    run = f"{pruned.name}_{args.structure}_{args.sparsity}_{args.epochs}x{args.limit or 50000}_{args.batch_size}_{args.seed}"
    (args.out / run).mkdir(parents=True, exist_ok=True)

    def learning_rate(epoch):
        return 10.0 ** -(3 + sum(200 * epoch / args.epochs > drop for drop in (80, 120, 160)))

    callbacks = [
        keras.callbacks.LambdaCallback(on_epoch_begin=batches.begin_epoch),
        keras.callbacks.LearningRateScheduler(learning_rate),
        kg.GibbsPruningCallback(),
        keras.callbacks.CSVLogger(args.out / run / "history.csv", append=True),
        keras.callbacks.BackupAndRestore(args.out / run / "backup"),
    ]
    # The test images are watched while training, as in the authors' script; nothing is chosen by them.
    pruned.fit(batches, epochs=args.epochs, validation_data=test, callbacks=callbacks)

    print(kg.summary(pruned))
    final = kg.strip_pruning(pruned)  # a plain Keras model
    final.save(args.out / run / "model.keras")
    report = kg.export_tflite(final, args.out / run / "model.tflite", data=test)
    print(report)
    print(f"Test accuracy of the stripped model: {report.accuracy:.2%}, {kg.sparsity(final):.1%} zeros. Written: {args.out / run}")


if __name__ == "__main__":
    main()
