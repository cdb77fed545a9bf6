"""The data of the benchmarks: images as uint8 arrays, and the authors' preparation of them, for every backend.

Images come through tensorflow-datasets (from `TFDS_DATA_DIR` where that is set; else tfds downloads), or from a folder of `.npz` parts on
a machine without it. Batches are made in NumPy, and each is a function of (seed, epoch, index): a run that is resumed sees what it would
have seen.
"""

import dataclasses
from pathlib import Path

import keras
import numpy as np

DATASETS = {"cifar10": 10, "cifar10_16": 10, "cifar100": 100, "fashion_mnist": 10}  # name -> classes


def load(name, split="train", folder=None):
    """Images and labels of one split.

    Args:
        name: One of `DATASETS`; `"cifar10_16"` is CIFAR-10 at 16x16 (see `halved`), made from what there is of `"cifar10"`.
        split: `"train"`, `"test"`, or a slice of one as tfds writes it, such as `"train[:1000]"` (from tfds only).
        folder: Where `write_parts` wrote; by default the data comes from tensorflow-datasets.

    Returns:
        uint8 array (n, height, width, channels) and int32 array (n,).
    """
    if name not in DATASETS:
        raise ValueError(f"`name` must be one of {tuple(DATASETS)}. Received: name={name!r}.")
    if name == "cifar10_16":
        images, labels = load("cifar10", split, folder)
        return halved(images), labels
    if folder is not None:
        return _read_parts(Path(folder), f"{name}-{split}-")
    import tensorflow_datasets as tfds

    builder = tfds.builder(name)  # in TFDS_DATA_DIR, where that is set
    if not builder.is_prepared():
        builder.download_and_prepare()
    images, labels = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True, shuffle_files=False))
    return images, labels.astype("int32")


def halved(images):
    """Images of half the height and width: the mean of every 2x2 pixels, rounded.

    Args:
        images: uint8 array (n, height, width, channels); height and width are even.

    Returns:
        uint8 array (n, height / 2, width / 2, channels).
    """
    number, height, width, channels = images.shape
    sums = images.reshape(number, height // 2, 2, width // 2, 2, channels).sum(axis=(2, 4), dtype="uint16")
    return ((sums + 2) // 4).astype("uint8")


def _read_parts(folder, prefix):
    files = sorted(folder.glob(f"{prefix}*.npz"))
    if not files:
        raise FileNotFoundError(f"No files {prefix}*.npz in {folder}. `write_parts` makes them on a machine with tensorflow-datasets.")
    parts = [np.load(file) for file in files]
    return np.concatenate([part["images"] for part in parts]), np.concatenate([part["labels"] for part in parts]).astype("int32")


def write_parts(folder, name, split, images, labels, size=5000):
    """Write a split as compressed `.npz` parts of `size` images, `<name>-<split>-<number>.npz`, which `load(..., folder=)` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(images), size)):
        part = slice(start, start + size)
        np.savez_compressed(folder / f"{name}-{split}-{number:03d}.npz", images=images[part], labels=labels[part].astype("uint8"))


def holdout(images, labels, count, seed=0):
    """Put `count` training images aside for validation.

    Returns:
        `(images, labels)` to train on and `(images, labels)` to validate on, both in their old order.
    """
    chosen = np.zeros(len(images), bool)
    chosen[np.random.default_rng(seed).permutation(len(images))[:count]] = True
    return (images[~chosen], labels[~chosen]), (images[chosen], labels[chosen])


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The authors' normalisation: one mean and one standard deviation over all pixels and channels of the training set."""

    mean: float
    std: float

    @classmethod
    def of(cls, images):
        """The scaling of uint8 training images, exact: from a histogram of their 256 values."""
        counts = np.bincount(images.reshape(-1), minlength=256)
        values = np.arange(256)
        mean = float(counts @ values / counts.sum())
        return cls(mean, float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum())))

    def __call__(self, images):
        """float32 images of mean 0 and standard deviation 1."""
        return (images.astype("float32") - np.float32(self.mean)) / np.float32(self.std + 1e-7)


def augment(images, rng, shift=0.1):
    """Shift every image by up to `shift` of its height and width, and flip every other one.

    Like the authors' `ImageDataGenerator`: offsets are continuous, pixels in between are interpolated, and an edge is repeated outward.

    Args:
        images: Array (n, height, width, channels).
        rng: `numpy.random.Generator`.
        shift: Largest offset, as a fraction.

    Returns:
        float32 array of the same shape.
    """
    number, height, width, _ = images.shape
    flipped = rng.random(number) < 0.5
    images = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    images = _shift(images, rng.uniform(-shift, shift, number) * height, axis=1)
    return _shift(images, rng.uniform(-shift, shift, number) * width, axis=2)


def _shift(images, offsets, axis):
    """Move every image along one axis by its own offset, in pixels."""
    whole = np.floor(offsets).astype(int)
    fraction = (offsets - whole).astype("float32")[:, None, None, None]
    length = images.shape[axis]
    index = np.arange(length) + whole[:, None]  # (n, length)
    number = np.arange(len(images))[:, None]
    before, after = np.clip(index, 0, length - 1), np.clip(index + 1, 0, length - 1)
    take = (lambda at: images[number, at]) if axis == 1 else (lambda at: images.transpose(0, 2, 1, 3)[number, at].transpose(0, 2, 1, 3))
    return take(before) * (1 - fraction) + take(after) * fraction


class Batches(keras.utils.PyDataset):
    """Shuffled and augmented training batches, for `fit` on any backend.

    Pass `batches.follow()` to the callbacks of `fit`: it tells the batches which epoch they are in, also after `BackupAndRestore`. The last
    images that do not fill a batch are left out (another few in every pass), as in the authors' run.

    Args:
        images: uint8 array (n, height, width, channels).
        labels: int array (n,).
        scaling: The `Scaling` of the training set.
        batch_size: Images in a batch.
        seed: Seed of order and augmentation.
        augmented: False to only shuffle.
        steps: Batches in an epoch, where that is not a pass over the images; every image is still seen once in a pass.
        **kwargs: `workers` and the like, for `PyDataset`.
    """

    def __init__(self, images, labels, scaling, batch_size=128, seed=0, augmented=True, steps=None, **kwargs):
        super().__init__(**kwargs)
        self.images, self.labels, self.scaling = images, labels, scaling
        self.batch_size, self.seed, self.augmented = min(batch_size, len(images)), seed, augmented
        self.whole = len(images) // self.batch_size
        self.steps = steps or self.whole
        self.go_to(0)

    def go_to(self, epoch):
        """Make the batches those of `epoch`."""
        self.epoch = epoch
        passes = {number // self.whole for number in (epoch * self.steps, (epoch + 1) * self.steps - 1)}
        self.orders = {number: np.random.default_rng([self.seed, number]).permutation(len(self.images)) for number in range(min(passes), max(passes) + 1)}

    def follow(self):
        """A callback that keeps the batches at the epoch of `fit`."""
        return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: self.go_to(epoch))

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        number, place = divmod(self.epoch * self.steps + index, self.whole)
        chosen = self.orders[number][place * self.batch_size : (place + 1) * self.batch_size]
        images = self.images[chosen]
        if self.augmented:
            images = augment(images, np.random.default_rng([self.seed, self.epoch, index]))
        return self.scaling(images), self.labels[chosen]
