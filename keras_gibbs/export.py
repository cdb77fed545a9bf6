"""From a pruned model to files: a SavedModel, and a .tflite file with a report that says what was checked.

The way: strip -> convert every encoding into a folder beside `path` -> read and run each file -> move the chosen one to `path`.
TensorFlow converts, so it is imported inside functions; under another backend a subprocess with TensorFlow converts the saved model.
"""

import contextlib
import dataclasses
import gzip
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_gibbs.tables import render

# Encoding -> the converter's settings. A new encoding is one line here.
_ENCODINGS = {
    "dense": lambda tf: {},
    "sparse": lambda tf: {"optimizations": [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]},
}
_WEIGHT_TYPES = {0: np.float32, 1: np.float16, 9: np.int8}  # the file format's TensorType numbers
_RANDOM_SAMPLES = 8
_BATCH = 128


@dataclasses.dataclass
class ExportReport:
    """What `export_tflite` wrote and what it found out about it; `print(report)` shows a table.

    Attributes:
        path: The file that was written.
        rows: One dict per encoding that was built: `encoding`, `raw_bytes`, `gzip_bytes`, `zeros` (zero weights of the Keras model found
            again in the file), `densify` (DENSIFY operators: sparse weights the runtime may have to unpack), `max_difference` (largest
            absolute difference from the Keras model's outputs; None if the file was not run), `accuracy` (None without `data`) and
            `chosen` (True for the one written).
        reason: Why that one, in a sentence.
        notes: What was compared with what, and what was not checked.
        accuracy: Accuracy of the Keras model itself on `data`, or None.
    """

    path: Path
    rows: list[dict]
    reason: str
    notes: list[str]
    accuracy: float | None = None

    @property
    def chosen(self) -> dict:
        """The row of the file that was written."""
        return next(row for row in self.rows if row["chosen"])

    def __str__(self) -> str:
        headings = ("raw bytes", "gzip bytes", "zeros kept", "DENSIFY", "max difference", "accuracy")
        cells = []
        for row in self.rows:
            name = row["encoding"] + (" (written)" if row["chosen"] else "")
            counts = [f"{row[key]:,}" for key in ("raw_bytes", "gzip_bytes", "zeros", "densify")]
            difference = "not run" if row["max_difference"] is None else f"{row['max_difference']:.1e}"
            accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
            cells.append([name, *counts, difference, accuracy])
        columns = [("encoding", "left"), *((heading, "right") for heading in headings)]
        return render(str(self.path), columns, cells, [self.reason, *self.notes])


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
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists()):
        raise ValueError(
            "`path` must be new, an empty folder, or a SavedModel that may be replaced. "
            f"Received: path={str(path)!r}, which holds other files. Choose a folder of its own."
        )
    _require_tensorflow()
    model = _stripped(model)
    with _folder_beside(path) as work:
        with _quiet():
            model.export(str(work / "new"), format="tf_saved_model", verbose=False)
        if path.exists():
            os.replace(path, work / "old")
        try:
            os.replace(work / "new", path)
        except OSError:
            if (work / "old").exists():
                os.replace(work / "old", path)
            raise


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    encoding: str = "auto",
    prefer: str = "raw",
    representative_data=None,
    data: tuple | None = None,
) -> ExportReport:
    """Write a .tflite file, run it, and report sizes, zeros kept and predictions against the Keras model.

    Every weight that is zero in the Keras model has to be zero in the file. Kernels and the file's weight tensors are paired by their
    number of elements and compared by their counts of exact zeros; where the converter has merged or split tensors, so that there is no
    pairing, a note in the report names the kernels.

    Args:
        model: A built Keras model, pruned or plain. A pruned one is stripped first; `model` itself is not changed.
        path: File to write, ending in `.tflite`. Missing folders are made. A file that is there already is replaced only once the new
            one is complete and checked.
        encoding: `"dense"`, `"sparse"` (only the weights that are not zero are stored), or `"auto"`: build both and write the smaller.
        prefer: What "smaller" means to `"auto"`: `"raw"` bytes of the file, or bytes after `"gzip"`, as an app package stores it.
        representative_data: For integer encodings; none exists yet, so it must be None.
        data: `(x, y)` to compare on and to measure the accuracy of the file: x as for `predict`, y integer labels or one-hot. A model
            with a single score counts it as class 1 above one half if all scores are probabilities, else above 0. With y None the
            predictions are compared and no accuracy measured. Without `data` the comparison is on a few random inputs.

    Returns:
        An `ExportReport`.

    Raises:
        ImportError: TensorFlow is not installed.
        OSError: The folder cannot be written.
        RuntimeError: The converter failed, or a zero weight is not zero in the file. What was at `path` is still there.
        ValueError: An argument is wrong; raised before anything is written.

    Example:

    >>> report = kg.export_tflite(pruned, "model.tflite", data=(x_test, y_test))
    >>> print(report)
    """
    path = Path(path)
    _check_arguments(path, encoding, prefer, representative_data, data)
    _require_tensorflow()
    model = _stripped(model)
    inputs, expected, compared = _reference(model, data)
    labels = None if data is None or data[1] is None else np.asarray(data[1])
    keras_accuracy = None if labels is None else _accuracy(expected, labels, expected)

    encodings = list(_ENCODINGS) if encoding == "auto" else [encoding]
    rows, notes = [], []
    with _folder_beside(path) as work:
        names = _convert(model, work, encodings)
        for each in encodings:
            content = (work / f"{each}.tflite").read_bytes()
            tensors, densify = _weights_of(content)
            zeros, unpaired = _zeros_kept(model, tensors)
            outputs, problem = (None, None) if inputs is None else _run(content, inputs, names, _static_batch(model))
            if problem is None and outputs is not None and [a.shape for a in outputs] != [a.shape for a in expected]:
                outputs, problem = None, "its outputs have other shapes than the Keras model's"
            rows.append(
                {
                    "encoding": each,
                    "raw_bytes": len(content),
                    "gzip_bytes": len(gzip.compress(content, mtime=0)),
                    "zeros": zeros,
                    "densify": densify,
                    "max_difference": None if outputs is None else _difference(outputs, expected),
                    "accuracy": None if outputs is None or labels is None else _accuracy(outputs, labels, expected),
                    "chosen": False,
                }
            )
            if problem:
                notes.append(f"Not checked: predictions of the {each} file ({problem}).")
            if unpaired:
                notes.append(f"Not checked: zeros of {', '.join(unpaired)} in the {each} file (merged or split by the converter).")
        chosen, reason = _choose(rows, encoding, prefer)
        chosen["chosen"] = True
        os.replace(work / f"{chosen['encoding']}.tflite", path)
    if inputs is None or chosen["max_difference"] is not None:
        notes.insert(0, compared)
    return ExportReport(path, rows, reason, notes, keras_accuracy)


def _check_arguments(path, encoding, prefer, representative_data, data):
    if path.suffix != ".tflite":
        fixed = str(path.with_suffix(".tflite")) if path.name else "model.tflite"
        raise ValueError(f"`path` must end in `.tflite`. Received: path={str(path)!r}. Use {fixed!r}.")
    if path.is_dir():
        raise ValueError(f"`path` must name a file. Received: path={str(path)!r}, a folder. Choose another name.")
    if encoding not in ("auto", *_ENCODINGS):
        known = ", ".join(repr(name) for name in ("auto", *_ENCODINGS))
        raise ValueError(f"`encoding` must be one of {known}. Received: encoding={encoding!r}. Other encodings do not exist yet.")
    if prefer not in ("raw", "gzip"):
        raise ValueError(f"`prefer` must be 'raw' or 'gzip', the size that counts. Received: prefer={prefer!r}. Use 'raw' if in doubt.")
    if representative_data is not None:
        raise ValueError(
            "`representative_data` serves integer encodings only. "
            f"Received: representative_data of type {type(representative_data).__name__} with encoding={encoding!r}. Leave it out."
        )
    if data is not None:
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise ValueError(f"`data` must be a pair (x, y) of arrays. Received: {type(data).__name__}. Collect a data set into arrays.")
        lengths = [len(a) for a in (*keras.tree.flatten(data[0]), data[1]) if a is not None]
        if len(set(lengths)) != 1 or not lengths[0]:
            raise ValueError(f"x and y of `data` must be of one length, at least 1. Received: lengths {lengths}. Pass (x, y) as arrays.")


def _require_tensorflow():
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError("Export needs TensorFlow, which is not installed. Run `pip install keras_gibbs[tensorflow]`.")


def _stripped(model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a Keras 3 model. "
            f"Received: {type(model).__module__}.{type(model).__name__}. Export a tf_keras model with `tf.lite.TFLiteConverter`."
        )
    if not model.built:
        raise ValueError(f"`model` must be built. Received: model={model.name!r}, not built. Call it on a batch, or use `keras.Input`.")
    from keras_gibbs.model import pruned_layers, strip_pruning

    return strip_pruning(model) if pruned_layers(model) else model


@contextlib.contextmanager
def _folder_beside(path):
    """A temporary folder on the file system of `path`, so that moving its content to `path` is one step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(
            f"`path` must lie in a folder that can be written. Received: path={str(path)!r} ({error}). "
            f"Make {str(path.parent)!r} writable or choose another folder."
        ) from error
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def _quiet():
    """Hold back what C++ code writes to standard output and error; show it if the block fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as restore:
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            restore.callback(os.close, saved)
            restore.callback(os.dup2, saved, descriptor)
            os.dup2(held.fileno(), descriptor)
        try:
            yield
        except Exception:
            restore.close()
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise


def _convert(model, folder, encodings):
    """Write `<encoding>.tflite` into `folder` for every encoding; return the names of the inputs in the model's order."""
    if keras.backend.backend() == "tensorflow":
        return _convert_here(model, folder, encodings)
    model.save(folder / "model.keras")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # flags of another XLA would stop TensorFlow
    environment |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"  # this process may hold the GPU's memory
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # modules of the user's own layers
    program = "import sys; from keras_gibbs.export import _convert_saved; _convert_saved(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(folder), *encodings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"The subprocess with TensorFlow that converts the saved model failed. Received: model={model.name!r}. If a layer of your own "
            f"was not found there, define it in a module that can be imported. The end of its messages:\n{done.stderr[-2000:]}"
        )
    return json.loads((folder / "names.json").read_text())


def _convert_saved(folder, *encodings):
    """The subprocess: convert the model saved in `folder` by `_convert`."""
    folder = Path(folder)
    model = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=False)  # the caller's own model, just saved
    (folder / "names.json").write_text(json.dumps(_convert_here(model, folder, encodings)))


def _convert_here(model, folder, encodings):
    import tensorflow as tf

    builtin, flex = [tf.lite.OpsSet.TFLITE_BUILTINS], [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    # A file with TensorFlow's own operators needs a larger runtime: only where there is no other way.
    with _quiet():
        for encoding in encodings:
            file, settings = str(folder / f"{encoding}.tflite"), _ENCODINGS[encoding](tf)
            for operators in (builtin, flex):
                try:
                    model.export(file, format="litert", verbose=False, target_spec={"supported_ops": operators}, **settings)
                    break
                except Exception as error:
                    problem = error
            else:
                message = f"The converter failed for model={model.name!r}, encoding={encoding!r}: {problem}"
                raise RuntimeError(message) from problem
    return [tensor.name for tensor in getattr(model, "inputs", None) or []]


def _static_batch(model):
    inputs = getattr(model, "inputs", None)
    return inputs[0].shape[0] if inputs else None


def _reference(model, data):
    """Flat inputs to compare on, the Keras model's flat outputs for them, and a note that says which they are."""
    specs = getattr(model, "inputs", None)
    if data is not None:
        x = data[0]
        by_name = isinstance(x, dict) and specs and {spec.name for spec in specs} <= set(x)
        flat = [np.asarray(x[spec.name]) for spec in specs] if by_name else [np.asarray(a) for a in keras.tree.flatten(x)]
        if specs and len(flat) != len(specs):
            raise ValueError(f"x of `data` must hold one array per input. Received: {len(flat)} for {len(specs)} inputs. Pass arrays.")
        note = f"Predictions compared on the {len(flat[0])} given samples."
    elif specs is None:
        return None, None, "Not checked: predictions (a subclassed model has no input shapes; pass `data=(x, y)`)."
    elif any(keras.backend.standardize_dtype(spec.dtype) == "string" for spec in specs):
        return None, None, "Not checked: predictions (no random inputs of type string; pass `data=(x, y)`)."
    else:
        flat = [_random_input(spec, np.random.default_rng(index)) for index, spec in enumerate(specs)]
        note = f"Predictions compared on {len(flat[0])} random samples; pass `data=(x, y)` for real ones and the accuracy."
    batch = _static_batch(model) or _BATCH
    count = len(flat[0])
    padded = [_padded(a, batch) for a in flat] if _static_batch(model) else flat
    packed = padded[0] if len(padded) == 1 else keras.tree.pack_sequence_as(model.input, padded) if specs else data[0]
    outputs = model.predict(packed, batch_size=batch, verbose=0)
    return flat, [np.asarray(a)[:count] for a in keras.tree.flatten(outputs)], note


def _random_input(spec, rng):
    shape = (spec.shape[0] or _RANDOM_SAMPLES, *(size or 32 for size in spec.shape[1:]))  # 32: any size, of a dimension left open
    dtype = keras.backend.standardize_dtype(spec.dtype)
    if "float" in dtype:
        return rng.standard_normal(shape).astype("float32")
    return rng.integers(0, 2, shape).astype(dtype)  # 0 and 1 are valid for every vocabulary


def _padded(array, batch):
    """Repeat the last sample until the batches are full."""
    return np.concatenate([array, np.repeat(array[-1:], -len(array) % batch, axis=0)])


def _difference(outputs, expected):
    return max(float(np.max(np.abs(a.astype("float64") - b.astype("float64")), initial=0.0)) for a, b in zip(outputs, expected))


def _accuracy(outputs, labels, expected):
    """Accuracy of one output of scores; `expected`, the Keras model's, decides whether single scores are probabilities."""
    if len(outputs) != 1:
        raise ValueError(f"`data` measures models with one output. Received: a model with {len(outputs)}. Pass `data=(x, None)`.")
    scores = outputs[0]
    if labels.size not in (scores.size, scores[..., 0].size):
        raise ValueError(
            f"y of `data` must hold integer labels or one-hot rows. Received: y of shape {labels.shape} for outputs of shape {scores.shape}. Reshape y."
        )
    if scores.shape[-1] == 1:
        probabilities = expected[0].min() >= 0 and expected[0].max() <= 1
        return float(np.mean((scores > (0.5 if probabilities else 0.0)).ravel() == (labels.ravel() > 0.5)))
    if labels.size == scores.size:
        labels = labels.reshape(scores.shape).argmax(-1)
    return float(np.mean(scores.argmax(-1).ravel() == labels.ravel()))


def _weights_of(content):
    """Read a .tflite file: `(elements, zeros)` of each constant of rank 2 or more, and the number of DENSIFY operators.

    A sparse tensor stores its non-zero values (and, in blocks, some zeros), so elements less stored non-zeros are the zeros of both kinds.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    weights, densify = {}, 0
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        codes = [model.OperatorCodes(graph.Operators(i).OpcodeIndex()).BuiltinCode() for i in range(graph.OperatorsLength())]
        densify += codes.count(schema.BuiltinOperator.DENSIFY)
        for tensor in (graph.Tensors(i) for i in range(graph.TensorsLength())):
            buffer = model.Buffers(tensor.Buffer())
            sparse = tensor.Sparsity() is not None  # one with nothing but zeros has an empty buffer
            if tensor.ShapeLength() >= 2 and (buffer.DataLength() or sparse) and tensor.Type() in _WEIGHT_TYPES:
                data = buffer.DataAsNumpy().tobytes() if buffer.DataLength() else b""
                elements = int(np.prod(tensor.ShapeAsNumpy()))
                nonzeros = int(np.count_nonzero(np.frombuffer(data, _WEIGHT_TYPES[tensor.Type()])))
                weights[tensor.Buffer() if data else tensor.Name()] = (elements, elements - nonzeros)
    return list(weights.values()), densify


def _zeros_kept(model, tensors):
    """Pair the model's kernels with the file's tensors by size, most zeros first: zeros found again, and kernels without a partner."""
    kernels = {}  # size -> {content: (zeros, path)}; kernels of equal content may share one tensor of the file
    for weight in model.weights:
        if len(weight.shape) >= 2 and weight.name != "bias":  # a GRU has biases of rank 2
            value = keras.ops.convert_to_numpy(weight)
            zeros = value.size - int(np.count_nonzero(value))
            kernels.setdefault(value.size, {})[value.tobytes()] = (zeros, weight.path)
    kept, unpaired = 0, []
    for size, group in kernels.items():
        wanted = sorted(group.values(), reverse=True)
        found = sorted((zeros for elements, zeros in tensors if elements == size), reverse=True)
        if len(found) < len(wanted):
            unpaired += [path for zeros, path in wanted if zeros]
            continue
        for (zeros, path), present in zip(wanted, found):
            if present < zeros:
                raise RuntimeError(
                    "A weight that is zero in the Keras model must be zero in the file. "
                    f"Received: {present} zeros of {zeros} in the kernel {path!r}. Nothing was written; please report the model."
                )
            kept += zeros
    return kept, unpaired


def _run(content, inputs, names, static_batch):
    """Run a .tflite file in LiteRT: its outputs in Keras's order and None, or None and what was in the way."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            import tensorflow as tf

            Interpreter = tf.lite.Interpreter
        except (ImportError, AttributeError):
            return None, "LiteRT is not installed; run `pip install keras_gibbs[litert]`"

    batch, count = static_batch or _BATCH, len(inputs[0])
    padded = [_padded(a, batch) for a in inputs] if static_batch else inputs
    try:
        with _quiet():
            runner = Interpreter(model_content=content).get_signature_runner()
            details = runner.get_input_details()
            keys = list(details) if len(details) == 1 else names
            results = []
            for start in range(0, len(padded[0]), batch):
                feed = {key: a[start : start + batch].astype(details[key]["dtype"]) for key, a in zip(keys, padded)}
                results.append(runner(**feed))
    except (RuntimeError, ValueError, KeyError) as error:
        if "Select TensorFlow op" in str(error):
            return None, "it holds operators that only TensorFlow's Flex delegate runs"
        return None, f"LiteRT does not run it: {str(error).strip()}"
    keys = sorted(results[0], key=_output_order)
    return [np.concatenate([result[key] for result in results])[:count] for key in keys], None


def _output_order(key):
    """Lists are exported as output_0 ... output_10, which must not sort as text; dictionaries by their keys, as Keras flattens them."""
    number = re.fullmatch(r"output_(\d+)", key)
    return (0, int(number[1]), "") if number else (1, 0, key)


def _choose(rows, encoding, prefer):
    """The row to write, and why."""
    if encoding != "auto":
        return rows[0], f"Written: {encoding}, as asked for."
    ran = [row for row in rows if row["max_difference"] is not None] or rows  # a file that does not run here is no candidate
    best = min(ran, key=lambda row: row[f"{prefer}_bytes"])
    others = ", ".join(f"{row[f'{prefer}_bytes']:,} ({row['encoding']})" for row in rows if row is not best)
    if len(ran) < len(rows):
        return best, f"Written: {best['encoding']}, because LiteRT does not run {', '.join(r['encoding'] for r in rows if r not in ran)}."
    return best, f"Written: {best['encoding']}, the smallest by {prefer} size: {best[f'{prefer}_bytes']:,} bytes against {others}."
