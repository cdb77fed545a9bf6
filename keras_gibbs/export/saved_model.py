"""A SavedModel."""

import os
from pathlib import Path

import keras

from keras_gibbs.arguments import require_path
from keras_gibbs.export.converter import exportable
from keras_gibbs.export.files import folder_beside, quiet


def export_saved_model(model: keras.Model, path: str | os.PathLike) -> None:
    """Write a SavedModel that any TensorFlow serves, without Keras and without keras_gibbs.

    Args:
        model: A built Keras model, pruned or plain. A pruned one is stripped first; `model` itself is not changed.
        path: Folder to write. Missing parents are made. A SavedModel that is there already is replaced once the new one is complete.

    Raises:
        ImportError: TensorFlow is not installed.
        OSError: The folder cannot be written.
        ValueError: `model` is not built, or `path` holds something that is not a SavedModel.

    Example:

    >>> kg.export_saved_model(pruned, "build/digits")
    >>> tf.saved_model.load("build/digits").serve(images)
    """
    require_path(path)
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists()):
        raise ValueError(
            "`path` must be new, an empty folder, or a SavedModel that may be replaced. "
            f"Received: path={str(path)!r}, which holds other files. Choose a folder of its own."
        )
    model = exportable(model)
    with folder_beside(path) as work:
        with quiet():
            model.export(str(work / "new"), format="tf_saved_model", verbose=False)
        try:
            if path.exists():
                os.replace(path, work / "old")
            os.replace(work / "new", path)
        finally:
            if (work / "old").exists() and not path.exists():  # failed or interrupted in between
                os.replace(work / "old", path)
