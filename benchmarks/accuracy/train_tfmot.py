"""TF-MOT's magnitude pruning on the terms of `compare.py`, in a process of its own, since TF-MOT needs Keras 2.

The parent writes into a folder what both sides share: the images, the settings and the initial weights of the Keras 3 network. This process builds the same
network with tf_keras, trains it under `prune_low_magnitude`, strips it with TF-MOT, and writes the stripped weights and the history, which the parent puts
into the Keras 3 network: everything after training is measured by the same code for all methods.

    python benchmarks/accuracy/train_tfmot.py <folder>      # as `compare.py` calls it
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

PACKAGES = ("tensorflow_model_optimization", "tf_keras")


@dataclasses.dataclass(frozen=True)
class TFMOT:
    """`prune_low_magnitude` with `PolynomialDecay`.

    Attributes:
        sparsity: Final sparsity of every pruned layer.
        initial: Sparsity at `begin`.
        begin, end: When pruning begins and ends, as fractions of training.
        frequency: Masks are found anew every so many steps.
        power: Exponent of the decay.
    """

    sparsity: float
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.5
    frequency: int = 100
    power: float = 3

    def brief(self):
        return repr(self)

    def steps(self, total):
        """The first and the last step of pruning in a training of `total` steps; the last one is a step at which masks are found anew.

        Raises:
            ValueError: Training is too short for a `frequency` like this.
        """
        begin = round(self.begin * total)
        end = begin + max(1, round((self.end * total - begin) / self.frequency)) * self.frequency
        if end > total:
            raise ValueError(f"TF-MOT would not come to its sparsity in a training of {total} steps. Received: {self!r}. Take a smaller frequency.")
        return begin, end


def obstacle():
    """Why TF-MOT cannot run here, or None."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return f"TF-MOT is TensorFlow's, and this comparison runs on {keras.backend.backend()}"
    if missing := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
        return f"not installed: {', '.join(missing)}; pip install -e '.[tfmot]'"
    return None


def train(network, method, settings, images):
    """Train `network`, a Keras 3 model, with TF-MOT, and give it the stripped weights.

    Args:
        network: As initialized; its weights are replaced by the stripped ones.
        method: A `TFMOT`.
        settings: Dict for JSON: `network` (`{"builder", "options"}`), `shape`, `classes`, `layers` (names of those to prune), `seed`, `rate`, `epochs`,
            `steps`, `batch`, `augmented`.
        images: `(train, validation)`, each a pair of uint8 images and labels.

    Returns:
        The history and the times, as from `training.fit`.

    Raises:
        RuntimeError: The process failed; it has said why.
        ValueError: Training is too short for the method.
    """
    (x, y), (x_val, y_val) = images
    method.steps(settings["epochs"] * (settings["steps"] or len(x) // settings["batch"]))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        np.savez(folder / "images.npz", x=x, y=y, x_val=x_val, y_val=y_val)
        np.savez(folder / "initial.npz", **named_weights(network))
        (folder / "settings.json").write_text(json.dumps(settings | {"method": dataclasses.asdict(method)}))
        environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        code = subprocess.run([sys.executable, "-W", "ignore", __file__, str(folder)], env=environment).returncode
        if code:
            raise RuntimeError(f"TF-MOT's process ended with code {code}; above is what it said.")
        with np.load(folder / "final.npz") as final:
            set_named_weights(network, final)
        results = json.loads((folder / "history.json").read_text())
    return results["history"], results["times"]


def named_weights(model):
    """All weights of a flat model of either Keras, as `{"layer/index": array}`, the index being that of `layer.get_weights()`."""
    return {f"{layer.name}/{index}": weight for layer in model.layers for index, weight in enumerate(layer.get_weights())}


def set_named_weights(model, weights):
    """Give `model` the weights of `named_weights`; there must be one for each of its own, and no other."""
    found = set(named_weights(model))
    if found != set(weights):
        raise ValueError(f"The two networks have different weights: {sorted(found ^ set(weights))}.")
    for layer in model.layers:
        if count := len(layer.get_weights()):
            layer.set_weights([weights[f"{layer.name}/{index}"] for index in range(count)])


def _fraction_of_zeros(model):
    """Over all kernels: the weights with more than one axis, which biases and those of BatchNormalization do not have."""
    kernels = [weight for layer in model.layers for weight in getattr(layer, "layer", layer).get_weights() if weight.ndim > 1]
    return sum((kernel == 0).sum() for kernel in kernels) / sum(kernel.size for kernel in kernels)


def main(folder):
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from benchmarks.accuracy import training
    from benchmarks.common import data
    from benchmarks.common.networks import Network

    sparse = tfmot.sparsity.keras
    settings = json.loads((folder / "settings.json").read_text())
    with np.load(folder / "images.npz") as held:
        x, y, x_val, y_val = (held[name] for name in ("x", "y", "x_val", "y_val"))
    method, epochs, seed = TFMOT(**settings["method"]), settings["epochs"], settings["seed"]

    class Sequence(tf_keras.utils.Sequence):
        """`data.Batches` for tf_keras. It moves on by itself: tf_keras may ask for a batch before `on_epoch_begin`."""

        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            return batches[index]

        def on_epoch_end(self):
            batches.go_to(batches.epoch + 1)

    tf_keras.utils.set_random_seed(seed)
    network = Network(**settings["network"])(settings["shape"], settings["classes"], api=tf_keras)
    set_named_weights(network, np.load(folder / "initial.npz"))
    scaling = data.Scaling.of(x)
    options = {name: settings[name] for name in ("seed", "augmented", "steps")}
    batches = data.Batches(x, y, scaling, batch_size=settings["batch"], **options)
    begin, end = method.steps(epochs * len(batches))
    schedule = sparse.PolynomialDecay(method.initial, method.sparsity, begin, end, power=method.power, frequency=method.frequency)

    def wrap(layer):
        return sparse.prune_low_magnitude(layer, schedule) if layer.name in settings["layers"] else layer

    model = tf_keras.models.clone_model(network, clone_function=wrap)
    callbacks = [
        sparse.UpdatePruningStep(),
        tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(sparsity=_fraction_of_zeros(model))),
    ]
    validation = (scaling(x_val), y_val)
    history, times = training.fit(model, Sequence(), validation, epochs, settings["rate"], callbacks, api=tf_keras)
    np.savez(folder / "final.npz", **named_weights(sparse.strip_pruning(model)))
    (folder / "history.json").write_text(json.dumps({"history": history, "times": times}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    try:
        main(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)  # the parent has it too, and speaks
