"""Write the golden files: models of every method and structure, as version 0.1.0 saves them, with what they predicted and masked.

The files here were written by version 0.1.0 at commit 86fc4b8, on TensorFlow. Run this only with that version: files of another one would not show whether
saved models still load.

    KERAS_BACKEND=tensorflow KERAS_GIBBS_XLA=0 PYTHONPATH=.:tests python -m golden.make

Each case gives `<name>.keras`, repacked with compression, and `<name>.npz`: inputs and labels, the readings of `readings.py` taken from the loaded file, what
one more step logged, and the state of every wrapper under `state/<layer>/<variable>`.
"""

import dataclasses
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from golden.readings import layers_by_name, numpy, read, save, step
from keras import layers

import keras_gibbs as kg

FOLDER = Path(__file__).parent
BATCH = 8


def images():
    """A convolution of 108 weights, a Dense layer of 48, a classifier of 24, with biases that are not 0."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(6, 3, activation="relu", bias_initializer="random_normal", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(8, activation="relu", bias_initializer="random_normal", name="dense"),
            layers.Dense(3, name="scores"),
        ],
        name="images",
    )


def branches():
    """A Functional model with two branches that meet."""
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(6, 3, activation="relu", padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(6, 1, name="shortcut")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="sum")([x, y]))
    x = layers.Dense(8, activation="relu", name="dense")(x)
    return keras.Model(inputs, layers.Dense(3, name="scores")(x), name="branches")


def kinds():
    """Every kind of layer with a kernel."""
    inputs = keras.Input((4, 4, 4, 2), name="volume")
    x = layers.Conv3DTranspose(3, 2, name="conv3d_transpose")(layers.Conv3D(4, 2, name="conv3d")(inputs))
    volume = layers.GlobalAveragePooling3D(name="pool3d")(x)
    x = layers.Conv2D(6, 2, groups=2, name="conv2d_grouped")(layers.Reshape((4, 4, 8), name="image")(inputs))
    x = layers.Conv2DTranspose(3, 2, name="conv2d_transpose")(layers.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise2d")(x))
    image = layers.GlobalAveragePooling2D(name="pool2d")(x)
    x = layers.Conv1D(4, 3, strides=2, name="conv1d")(layers.Reshape((16, 8), name="sequence")(inputs))
    x = layers.Conv1DTranspose(4, 2, name="conv1d_transpose")(layers.DepthwiseConv1D(2, depth_multiplier=2, name="depthwise1d")(x))
    x = layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="einsum_heads")(x)
    x = layers.EinsumDense("abde,dec->abc", (None, 4), name="einsum_merge")(x)
    sequence = layers.GlobalAveragePooling1D(name="pool1d")(layers.Dense(5, name="dense_in_time")(x))
    x = layers.Concatenate(name="together")([volume, image, sequence])
    x = layers.EinsumDense("...x,xy->...y", 6, bias_axes="y", activation="relu", name="einsum")(x)
    return keras.Model(inputs, layers.Dense(3, name="scores")(x), name="kinds")


def nested():
    """Two inner models whose layers have the same names, and a layer that is called twice."""

    def inner(name):
        inputs = keras.Input((6,), name="features")
        x = layers.Dense(8, activation="relu", name="wide")(inputs)
        return keras.Model(inputs, layers.Dense(6, name="narrow")(x), name=name)

    inputs, shared = keras.Input((6,), name="features"), layers.Dense(6, activation="relu", name="shared")
    x = shared(inner("second")(shared(inner("first")(inputs))))
    return keras.Model(inputs, layers.Dense(3, name="scores")(x), name="nested")


def large():
    """A layer of 10,240 weights, whose threshold is tracked."""
    return keras.Sequential([keras.Input((128,)), layers.Dense(80, activation="relu", name="large"), layers.Dense(3, name="scores")], name="large")


def mixed():
    """Two layers that compute in bfloat16."""
    policy = keras.DTypePolicy("mixed_bfloat16")
    hidden = layers.Dense(8, activation="relu", dtype=policy, name="dense")
    return keras.Sequential([keras.Input((6,)), hidden, layers.Dense(3, dtype=policy, name="scores")], name="mixed")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, what it is pruned by, and how many of the epochs of its horizon it was trained for.

    `plain` is True for an optimizer without state, which keeps large files small.
    """

    method: Callable
    network: Callable = images
    epochs: int = 1
    horizon: int = 2
    plain: bool = False


def half_masks():
    """A mask that keeps half, for every layer of `images()`."""
    shapes = {"conv": (3, 3, 2, 6), "dense": (6, 8), "scores": (8, 3)}
    rng = np.random.default_rng(3)
    return {name: rng.permutation(np.arange(np.prod(shape)) % 2).reshape(shape) for name, shape in shapes.items()}


def curvature():
    return kg.Gibbs(0.5, criterion=kg.CurvatureEnergy(), scale="log", count="exact", settle=0.7, beta=kg.Geometric(1.0, 50.0))


def filters(hamiltonian):
    return kg.Gibbs(0.5, structure=kg.Filter(), hamiltonian=hamiltonian)


CASES = {
    "gibbs": Case(lambda: kg.Gibbs(0.5)),
    "gibbs-end": Case(lambda: kg.Gibbs(0.5), epochs=2),
    "gibbs-kernel": Case(lambda: kg.Gibbs(0.5, structure=kg.Kernel())),
    "gibbs-kernel-reference": Case(lambda: kg.Gibbs(0.5, structure=kg.Kernel(), hamiltonian=kg.KernelCoupling(convention="reference"))),
    "gibbs-filter": Case(lambda: filters(kg.FilterCoupling(sweeps=3))),
    "gibbs-filter-independent": Case(lambda: filters(kg.Independent())),
    "gibbs-scheduled": Case(lambda: kg.Gibbs(kg.Linear(0.5, 0.6), beta=kg.Constant(1.0))),
    "gibbs-curvature": Case(curvature),
    "gibbs-curvature-held": Case(curvature, epochs=3, horizon=4),
    "gibbs-recommended": Case(lambda: kg.Gibbs.recommended(0.6), horizon=4),
    "gibbs-recommended-held": Case(lambda: kg.Gibbs.recommended(0.6), epochs=2),
    "gibbs-global": Case(lambda: kg.Gibbs(0.5, scope="global", floor=0.5), epochs=2),
    "gibbs-mixed": Case(lambda: kg.Gibbs(0.5), mixed),
    "gibbs-large": Case(lambda: kg.Gibbs(0.9), large, plain=True),
    "gibbs-nested": Case(lambda: kg.Gibbs(0.5), nested),
    "gibbs-kinds-kernel": Case(lambda: kg.Gibbs(0.5, structure=kg.Kernel(), hamiltonian=kg.Independent()), kinds, plain=True),
    "magnitude": Case(lambda: kg.Magnitude(0.5), epochs=2),
    "magnitude-kernel": Case(lambda: kg.Magnitude(0.5, structure=kg.Kernel())),
    "magnitude-filter": Case(lambda: kg.Magnitude(0.5, structure=kg.Filter())),
    "magnitude-global": Case(lambda: kg.Magnitude(0.5, scope="global")),
    "magnitude-scheduled": Case(lambda: kg.Magnitude(kg.Polynomial(0.5, 0.75, end=0.5)), horizon=4),
    "magnitude-large": Case(lambda: kg.Magnitude(0.9), large, plain=True),
    "magnitude-kinds": Case(lambda: kg.Magnitude(0.5), kinds, plain=True),
    "magnitude-kinds-filter": Case(lambda: kg.Magnitude(0.5, structure=kg.Filter()), kinds, plain=True),
    "gumbel": Case(lambda: kg.GumbelSoftmax()),
    "gumbel-joint": Case(lambda: kg.GumbelSoftmax(train_weights=True), epochs=2),
    "gumbel-target": Case(lambda: kg.GumbelSoftmax(train_weights=True, sparsity=0.5, structure=kg.Kernel())),
    "supermask": Case(lambda: kg.Supermask(), epochs=2),
    "supermask-joint": Case(lambda: kg.Supermask(train_weights=True, rescale=None, structure=kg.Filter())),
    "edge-popup": Case(lambda: kg.EdgePopup(0.5, signed_constant="conv")),
    "edge-popup-joint": Case(lambda: kg.EdgePopup(0.5, train_weights=True)),
    "edropout": Case(lambda: kg.EDropout(4), horizon=4),
    "edropout-end": Case(lambda: kg.EDropout(4, objective=kg.IsingEnergy()), epochs=2),
    "edropout-functional": Case(lambda: kg.EDropout(5, objective=kg.CrossEntropyEnergy() + kg.KeepPenalty(0.5), rule="xor", search=1.0), branches),
    "fixed": Case(lambda: kg.Fixed(half_masks()), epochs=2),
}
WEIGHTS = ("gibbs", "gumbel")  # of these the weights alone, too


def trained(case):
    """A model in the midst or at the end of its training, two steps an epoch, with the batch it was trained on."""
    keras.utils.set_random_seed(1)
    network = case.network()
    rng = np.random.default_rng(2)
    inputs, labels = rng.normal(size=(2 * BATCH, *network.input_shape[1:])).astype("float32"), rng.integers(0, 3, 2 * BATCH)
    model = kg.prune(network, case.method(), seed=4)
    optimizer = keras.optimizers.SGD(0.05) if case.plain else keras.optimizers.Adam(0.02)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    pruning = kg.GibbsPruningCallback("batch", epochs=case.horizon)
    model.fit(inputs, labels, batch_size=BATCH, epochs=case.epochs, shuffle=False, verbose=0, callbacks=[pruning])
    return model, inputs[:BATCH], labels[:BATCH]


def pack(path):
    """Compress the members of a `.keras` file, which Keras stores as they are."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def state(model):
    """The variables of every wrapper, by layer and by their names in version 0.1.0."""
    return {
        f"state/{name}/{variable.name}": numpy(variable)
        for name, layer in layers_by_name(model).items()
        for variable in (*layer._state.values(), layer._progress, layer._key, layer._draws)
    }


def write(name, case):
    model, inputs, labels = trained(case)
    path = FOLDER / f"{name}.keras"
    model.save(path)
    pack(path)
    if name in WEIGHTS:
        model.save_weights(FOLDER / f"{name}.weights.h5")
    loaded = keras.models.load_model(path)
    record = {"inputs": inputs, "labels": labels} | state(loaded) | read(loaded, inputs) | step(loaded, inputs, labels)
    save(FOLDER / f"{name}.npz", record)
    return path.stat().st_size, float(record["sparsity"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # schedules that jump, and end before their horizon
    for name, case in CASES.items():
        size, sparsity = write(name, case)
        print(f"{name:26} {size:8} bytes, sparsity {sparsity:.3f}")
