"""The inference function of a model, in the model's own shapes: what every export holds."""

import threading
from pathlib import Path

import keras
from keras import tree

TRACING = threading.RLock()  # Keras and TensorFlow's converter hold state for the whole process while they trace


def input_names(model: keras.Model) -> list[str]:
    """What the exports call the inputs of a model, in its order; empty for a subclassed model."""
    return [tensor.name for tensor in getattr(model, "inputs", None) or []]


def save_inference(model: keras.Model, folder: Path, names: list[str], tracked: bool = True) -> None:
    """Write a SavedModel whose only function, `serve`, is the model in inference: no augmentation, no dropout, the batch size as well if it is fixed.

    Args:
        model: A model without wrappers.
        folder: Where to write.
        names: From `input_names`, of this model or of the one that it was saved from.
        tracked: Whether it holds whatever belongs to the model, lookup tables for example. Else only the variables that the function uses, which takes
            half the time.

    Raises:
        AssertionError: The function needs something else than variables, and `tracked` is false.
    """
    with TRACING:
        archive = keras.export.ExportArchive()
        if tracked:
            archive.track(model)
        archive.add_endpoint("serve", lambda *inputs: model(*inputs, training=False), input_signature=_signature(model, names))
        archive.write_out(str(folder), verbose=False)


def _signature(model, names):
    """One structure of specs per argument of the model."""
    if getattr(model, "inputs", None):
        inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        specs = [keras.InputSpec(shape=spec.shape, dtype=spec.dtype, name=name) for spec, name in zip(model.inputs, names)]
        return [tree.pack_sequence_as(inputs, specs)]
    config = model.get_build_config()  # a subclassed model; the batch of the call that built it says nothing
    shapes = [config["input_shape"]] if "input_shape" in config else list(config["shapes_dict"].values())
    return [tree.map_shape_structure(lambda shape: keras.InputSpec(shape=(None, *shape[1:]), dtype=model.input_dtype), each) for each in shapes]
