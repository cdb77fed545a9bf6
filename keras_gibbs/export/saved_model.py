"""A SavedModel."""

import os
from pathlib import Path

import keras

from keras_gibbs.arguments import require_path
from keras_gibbs.export.converter import exportable
from keras_gibbs.export.files import folder_beside, replace_folder
from keras_gibbs.export.inference import input_names, save_inference

_CONTENT = {"saved_model.pb", "fingerprint.pb", "variables", "assets"}  # of what TensorFlow writes


def export_saved_model(model: keras.Model, path: str | os.PathLike) -> None:
    """Write a SavedModel that any TensorFlow serves, without Keras and without keras_gibbs: the inference function, with the model's own shapes.

    Args:
        model: A built Keras model, pruned or plain. A pruned one is stripped first; `model` itself is not changed.
        path: Folder to write. Missing parents are made. A SavedModel that is there already is replaced once the new one is complete: at every moment one of
            them is at `path` (on Linux and macOS; elsewhere the next export brings back the old one, should the process die between two moves).

    Raises:
        ImportError: TensorFlow is not installed.
        OSError: The folder cannot be written, or the disk is full.
        ValueError: `model` is not built, or `path` holds other files than those of a SavedModel.

    Example:

    >>> kg.export_saved_model(pruned, "build/digits")
    >>> served = tf.saved_model.load("build/digits")
    >>> served.serve(images)
    """
    require_path(path)
    path = Path(os.path.realpath(path))  # a link keeps pointing to the model
    others = _other_files(path)
    if others:
        raise ValueError(
            "`path` must be new, an empty folder, or a SavedModel without other files, which may be replaced. "
            f"Received: path={str(path)!r}, which holds other files ({', '.join(others)}). Choose a folder of its own."
        )
    model = exportable(model)
    with folder_beside(path) as work:
        save_inference(model, work / "new", input_names(model))
        replace_folder(work / "new", path, work)


def _other_files(path):
    """A few names of what an export to `path` would destroy that is no part of a SavedModel."""
    if not path.is_dir():
        return [path.name] if path.exists() else []
    names = {entry.name for entry in path.iterdir()}
    variables = [f"variables/{entry.name}" for entry in (path / "variables").glob("*") if not entry.name.startswith("variables.")]
    return sorted(names - _CONTENT if "saved_model.pb" in names else names)[:5] + variables[:5]
