"""Encodings of a .tflite file, and TensorFlow's converter that writes them: in this process, or in one of its own under another backend."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

from keras_gibbs.export.files import quiet
from keras_gibbs.export.samples import padded, static_batch
from keras_gibbs.model import pruned_layers, strip_pruning
from keras_gibbs.structure import graph


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the weights are stored.

    Attributes:
        optimizations: Names of `tf.lite.Optimize`.
        dtype: `"float32"`, `"float16"` or `"int8"`, of the weights.
        calibrated: Whether activations are int8 too, in ranges measured on representative data. Inputs and outputs stay float32.
        plain: Name of the same encoding without sparse storage.
    """

    optimizations: tuple[str, ...] = ()
    dtype: str = "float32"
    calibrated: bool = False
    plain: str | None = None

    @property
    def sparse(self) -> bool:
        """Whether only weights that are not zero are stored."""
        return self.plain is not None


def _with_sparse_forms(encodings):
    for name, encoding in encodings.items():
        yield name, encoding
        sparse = dataclasses.replace(encoding, optimizations=(*encoding.optimizations, "EXPERIMENTAL_SPARSITY"), plain=name)
        yield "sparse" if name == "dense" else f"sparse_{name}", sparse


# A new encoding is one line here.
ENCODINGS = dict(
    _with_sparse_forms(
        {
            "dense": Encoding(),
            "float16": Encoding(("DEFAULT",), "float16"),
            "dynamic_int8": Encoding(("DEFAULT",), "int8"),
            "int8": Encoding(("DEFAULT",), "int8", calibrated=True),
        }
    )
)


def exportable(model) -> keras.Model:
    """`model` without wrappers, if TensorFlow can convert it.

    Raises:
        ImportError: TensorFlow is not installed.
        TypeError: It is no Keras 3 model.
        ValueError: It is not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a Keras 3 model. "
            f"Received: {type(model).__module__}.{type(model).__name__}. Export a tf_keras model with `tf.lite.TFLiteConverter`."
        )
    if not model.built:
        raise ValueError(f"`model` must be built. Received: model={model.name!r}, not built. Call it on a batch, or use `keras.Input`.")
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError("Export needs TensorFlow, which is not installed. Run `pip install keras_gibbs[tensorflow]`.")
    return strip_pruning(model) if pruned_layers(model) else model


def convert(model: keras.Model, folder: Path, encodings: list[str], samples: list[np.ndarray] | None = None) -> tuple[list[str], dict[str, str]]:
    """Write `<encoding>.tflite` into `folder` for every encoding that the converter can make.

    Args:
        model: A model without wrappers.
        folder: Where to write.
        encodings: Names in `ENCODINGS`.
        samples: One array an input, for the calibrated ones.

    Returns:
        The names of the inputs in the model's order, and encoding -> why there is no such file.

    Raises:
        RuntimeError: The converter failed on the first encoding; with its message, and the layer it named.
    """
    if keras.backend.backend() == "tensorflow":
        return _convert_here(model, folder, encodings, samples)
    model.save(folder / "model.keras")
    if samples is not None:
        np.savez(folder / "samples.npz", *samples)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # flags of another XLA would stop TensorFlow
    environment |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"  # this process may hold the GPU's memory
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # modules of the user's own layers
    program = "import sys; from keras_gibbs.export.converter import _convert_saved; _convert_saved(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(folder), *encodings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    answer = json.loads((folder / "answer.json").read_text()) if (folder / "answer.json").exists() else {}
    if "problem" in answer:
        raise RuntimeError(answer["problem"])
    if done.returncode:
        raise RuntimeError(
            f"The subprocess with TensorFlow that converts the saved model failed. Received: model={model.name!r}. If a layer of your own "
            f"was not found there, define it in a module that can be imported. The end of its messages:\n{done.stderr[-2000:]}"
        )
    return answer["names"], answer["problems"]


def _convert_saved(folder, *encodings):
    """The subprocess: convert the model saved in `folder` by `convert`."""
    folder, samples = Path(folder), None
    if (folder / "samples.npz").exists():
        with np.load(folder / "samples.npz") as stored:
            samples = [stored[name] for name in stored.files]
    model = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=False)  # the caller's own model, just saved
    try:
        names, problems = _convert_here(model, folder, encodings, samples)
        answer = {"names": names, "problems": problems}
    except RuntimeError as error:
        answer = {"problem": str(error)}
    (folder / "answer.json").write_text(json.dumps(answer))


def _convert_here(model, folder, encodings, samples):
    saved, names, problems = folder / "saved", [tensor.name for tensor in getattr(model, "inputs", None) or []], {}
    with quiet():
        for name in encodings:
            try:
                if not saved.exists():
                    model.export(str(saved), format="tf_saved_model", verbose=False)
                content = _converted(saved, ENCODINGS[name], lambda: _calibration(model, names, samples))
                (folder / f"{name}.tflite").write_bytes(content)
            except Exception as error:
                problems[name] = _explain(model, name, error)
                if name == encodings[0]:
                    raise RuntimeError(problems[name]) from error
    return names, problems


def _converted(saved, encoding, calibration):
    """The .tflite file of a SavedModel."""
    import tensorflow as tf

    for operators in _operator_sets(tf.lite.OpsSet, encoding):
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        converter.experimental_enable_resource_variables = True
        converter.optimizations = [getattr(tf.lite.Optimize, each) for each in encoding.optimizations]
        converter.target_spec.supported_ops = operators
        converter.target_spec.supported_types = [tf.float16] if encoding.dtype == "float16" else []
        if encoding.calibrated:
            converter.representative_dataset = calibration
        try:
            return converter.convert()
        except Exception as error:
            problem = error
    raise problem


def _operator_sets(known, encoding):
    """Sets of operators to try in turn. A file with TensorFlow's own needs a larger runtime: only where there is no other way."""
    if encoding.calibrated:
        yield [known.TFLITE_BUILTINS_INT8]
    yield [known.TFLITE_BUILTINS]
    yield [known.TFLITE_BUILTINS, known.SELECT_TF_OPS]


def _calibration(model, names, samples):
    step = static_batch(model) or 1
    samples = [padded(array, step) for array in samples]
    for start in range(0, len(samples[0]), step):
        batch = [array[start : start + step] for array in samples]
        yield batch if len(batch) == 1 else dict(zip(names, batch))


def _explain(model, encoding, problem):
    """The converter's message without its stack of locations, and the layers it came from."""
    text = str(problem)
    operators = sorted(set(re.findall(r"'(\S+)' op is neither a custom op nor a flex op", text)))
    paths = re.findall(r'fused\["[^"]*", "([^"@]+)', text)
    components = {re.sub(r"_\d+$", "", part) for path in paths for part in path.split("/")} | {part for path in paths for part in path.split("/")}
    layers = [layer.name for layer in graph.walk(model) if not isinstance(layer, keras.Model) and layer.name in components]
    where = f" in layer {', '.join(map(repr, layers))}" if layers else ""
    if operators:
        return (
            f"The converter has no operator for {', '.join(operators)}{where}, not even with TensorFlow's own operators. "
            f"Received: model={model.name!r}, encoding={encoding!r}. Build the layer from others. The converter's message: {text[:500]}"
        )
    return f"The converter failed{where}. Received: model={model.name!r}, encoding={encoding!r}. Its message: {text[:2000]}"
