"""What the golden files are compared by: figures of a loaded model, read through public names only."""

import keras
import numpy as np

import keras_gibbs as kg


def layers_by_name(model) -> dict[str, keras.layers.Layer]:
    """The pruned layers; a name that comes again gets `_1`, `_2` in the order of the model."""
    layers = {}
    for layer in kg.pruned_layers(model):
        name, repeats = layer.name, 0
        while name in layers:
            repeats += 1
            name = f"{layer.name}_{repeats}"
        layers[name] = layer
    return layers


def numpy(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def predict(model, inputs: np.ndarray) -> np.ndarray:
    """The model's predictions, float32. Eagerly: to compile a model takes longer than to call it once."""
    model.run_eagerly = True
    return model.predict(inputs, verbose=0).astype("float32")


def read(model, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of a model that has just been loaded; its draws move on by one mask a layer.

    Args:
        model: A pruned model.
        inputs: A batch for `predict`.

    Returns:
        Arrays by `"predictions"`, `"stripped"`, `"sparsity"`, and by `"progress/<layer>"`, `"mask/<layer>"`, `"figures/<layer>/<figure>"` and
        `"sample/<layer>"` for every pruned layer: masks as uint8.
    """
    readings = {
        "predictions": predict(model, inputs),
        "stripped": predict(kg.strip_pruning(model), inputs),
        "sparsity": np.float64(kg.sparsity(model)),
    }
    for name, layer in layers_by_name(model).items():
        readings[f"progress/{name}"] = np.float64(layer.progress)
        readings[f"mask/{name}"] = numpy(layer.mask()).astype("uint8")
        readings |= {f"figures/{name}/{figure}": np.float64(value) for figure, value in layer.figures().items()}
        readings[f"sample/{name}"] = numpy(layer.mask(training=True)).astype("uint8")
    return readings


def step(model, inputs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What one more step of training logs, the second half of a horizon of two epochs; after `read`."""
    pruning = kg.GibbsPruningCallback(epochs=2)
    history = model.fit(inputs, labels, batch_size=len(inputs), initial_epoch=1, epochs=2, shuffle=False, verbose=0, callbacks=[pruning]).history
    return {f"step/{name}": np.float64(history[name][0]) for name in ("loss", "sparsity")}


def save(path, readings: dict[str, np.ndarray]) -> None:
    """Write readings to an `.npz` file, all scalars in two of its arrays."""
    scalars = {name: value for name, value in readings.items() if np.ndim(value) == 0}
    arrays = {name: value for name, value in readings.items() if name not in scalars}
    np.savez_compressed(path, names=np.array(list(scalars)), scalars=np.array(list(scalars.values()), "float64"), **arrays)


def load(path) -> dict[str, np.ndarray]:
    """The readings that `save` wrote, with scalars as float64."""
    with np.load(path) as file:
        arrays = dict(file)
    return dict(zip(arrays.pop("names").tolist(), arrays.pop("scalars"), strict=True)) | arrays
