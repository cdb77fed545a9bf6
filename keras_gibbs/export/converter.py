"""A model to .tflite files: in this process, or under another backend than TensorFlow in one of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from keras_gibbs.export.conversion import Conversion, calibration, explain
from keras_gibbs.export.encodings import ENCODINGS
from keras_gibbs.export.files import is_full
from keras_gibbs.export.inference import TRACING, input_names, save_inference
from keras_gibbs.model import pruned_layers, strip_pruning


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


def convert(
    model: keras.Model, folder: Path, encodings: list[str], samples: list[np.ndarray] | None = None
) -> Iterator[tuple[str, bytes | None, RuntimeError | None]]:
    """Convert a model to one file after the other.

    Args:
        model: A model without wrappers.
        folder: For files in between.
        encodings: Names in `ENCODINGS`.
        samples: One array an input, for the calibrated ones.

    Yields:
        The encoding; its file, or None; and else why there is none.

    Raises:
        OSError: The disk is full.
    """
    if keras.backend.backend() == "tensorflow":
        yield from _convert_here(model, folder, encodings, samples, input_names(model))
    else:
        problems = _convert_there(model, folder, encodings, samples)
        for name in encodings:
            if name in problems:
                text, cause = problems[name]
                problem = RuntimeError(text)
                problem.__cause__ = RuntimeError(cause)
                yield name, None, problem
            else:
                yield name, (folder / f"{name}.tflite").read_bytes(), None


def _convert_here(model, folder, encodings, samples, names):
    failed = {}

    def problem(name, error):
        if is_full(error):
            raise error
        failed[name] = RuntimeError(explain(model, name, error))
        failed[name].__cause__ = error
        return name, None, failed[name]

    try:
        with TRACING:
            _save(model, folder / "saved", names)
            conversion = Conversion(folder / "saved", lambda: calibration(model, names, samples))
    except Exception as error:
        yield from (problem(name, error) for name in encodings)
        return
    for name in encodings:
        if ENCODINGS[name].plain in failed:
            yield problem(name, failed[ENCODINGS[name].plain].__cause__)
            continue
        try:
            with TRACING:
                content = conversion.file(name)
        except Exception as error:
            yield problem(name, error)
            continue
        yield name, content, None


def _save(model, folder, names):
    try:
        save_inference(model, folder, names, tracked=False)
    except AssertionError:  # TensorFlow's word for tables that the function needs
        save_inference(model, folder, names)


def _convert_there(model, folder, encodings, samples):
    """Convert in a process with the TensorFlow backend, which leaves the files in `folder`; returns encoding -> why there is no file, and the cause."""
    model.save(folder / "model.keras")
    if samples is not None:
        np.savez(folder / "samples.npz", *samples)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # flags of another XLA would stop TensorFlow
    environment |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"  # this process may hold the GPU's memory
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # modules of the user's own layers
    program = "import sys; from keras_gibbs.export.converter import _convert_saved; _convert_saved(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(folder), json.dumps(input_names(model)), *encodings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    answer = json.loads((folder / "answer.json").read_text()) if (folder / "answer.json").exists() else {}
    if "full" in answer:
        raise OSError(answer["full"])
    if done.returncode:
        raise RuntimeError(
            f"The subprocess with TensorFlow that converts the saved model failed. Received: model={model.name!r}. If a layer of your own "
            f"was not found there, define it in a module that can be imported. The end of its messages:\n{done.stderr[-2000:]}"
        )
    return answer["problems"]


def _convert_saved(folder, names, *encodings):
    """The subprocess: convert the model saved in `folder` by `convert`."""
    folder, samples, problems = Path(folder), None, {}
    if (folder / "samples.npz").exists():
        with np.load(folder / "samples.npz") as stored:
            samples = [stored[name] for name in stored.files]
    model = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=False)  # the caller's own model, just saved
    try:
        for name, content, problem in _convert_here(model, folder, list(encodings), samples, json.loads(names)):
            if problem is None:
                (folder / f"{name}.tflite").write_bytes(content)
            else:
                problems[name] = str(problem), str(problem.__cause__)
        answer = {"problems": problems}
    except Exception as error:
        if not is_full(error):
            raise
        answer = {"full": str(error)}
    (folder / "answer.json").write_text(json.dumps(answer))
