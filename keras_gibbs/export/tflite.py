"""A .tflite file, with a report that says what was checked.

The way: strip -> convert every encoding into a folder beside `path` -> read and run each file -> move the chosen one to `path`.
"""

import gzip
import os
from pathlib import Path

import keras

from keras_gibbs.arguments import require_path
from keras_gibbs.export import samples, tflite_file
from keras_gibbs.export.advisor import advise, advise_file, has_open_sizes
from keras_gibbs.export.choice import choose
from keras_gibbs.export.comparison import compare_on
from keras_gibbs.export.converter import ENCODINGS, convert, exportable
from keras_gibbs.export.files import folder_beside
from keras_gibbs.export.litert import FLEX, MISSING, run
from keras_gibbs.export.reports import ExportReport
from keras_gibbs.export.zeros import kernels_with_zeros, zeros_kept

_PREFERENCES = ("raw", "gzip", "arm64")


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

    Every weight that is zero in the Keras model has to be zero in the file: kernels are compared with the file's tensors position by position, in
    float16 and at the zero points of int8 too. Where the converter has merged or split kernels, so that there is no pairing, a note in the report
    names them.

    `"auto"` builds the encodings that apply: the sparse forms where the model has zeros, int8 where there is representative data. It writes the best
    one by `prefer` among those that run in LiteRT, whose outputs differ from the Keras model's by at most 5 % of the largest absolute value of that
    output, and, with labels in `data`, that lose at most one point of accuracy. An encoding in float16 or int8 may therefore be written without being
    asked for, never unchecked: where LiteRT is not installed or there is nothing to compare on, only the float32 forms are considered. The sparse
    form is not written for a network that it stops from running on ARM64 (see `advise`).

    Args:
        model: A built Keras model, pruned or plain. A pruned one is stripped first; `model` itself is not changed.
        path: File to write, ending in `.tflite`. Missing folders are made. A file that is there already is replaced only once the new
            one is complete and checked.
        encoding: One of

            - `"dense"`: float32;
            - `"float16"`: weights in float16, which a CPU unpacks at load;
            - `"dynamic_int8"`: weights in int8, ranges of the activations found while running;
            - `"int8"`: weights and activations in int8, inputs and outputs in float32; needs `representative_data`;
            - `"sparse"`, `"sparse_float16"`, `"sparse_dynamic_int8"`, `"sparse_int8"`: the same, with only the weights stored that are not zero. LiteRT
              2.3.0 does not run the int8 ones on XNNPACK (it does on its slow kernels); the report says so;
            - `"auto"`.
        prefer: What is best to `"auto"`: the fewest `"raw"` bytes, the fewest bytes after `"gzip"`, as an app package stores it, or the form that runs
            fastest on a phone's CPU, `"arm64"`: sparse float32 if XNNPACK runs so much of it sparse that it is estimated 1.5 x as fast as dense
            or faster, else int8 (3 x), dynamic int8 (2 x), sparse or dense, by what is there and the estimates.
        representative_data: Inputs that activations are measured on for int8, of any number; the first 500 samples count. An array; a dict, list or
            tuple of arrays for several inputs; or an iterable of batches of these, as `fit` takes them, with or without labels.
        data: `(x, y)` to compare on and to measure the accuracy of the file: x as for `predict`, y integer labels or one-hot. A model
            with a single score counts it as class 1 above one half if all scores are probabilities, else above 0. With y None the
            predictions are compared and no accuracy measured. Without `data` the comparison is on representative data or on a few random inputs.

    Returns:
        An `ExportReport`.

    Raises:
        ImportError: TensorFlow is not installed.
        OSError: The folder cannot be written.
        RuntimeError: The converter failed, a zero weight is not zero in the file, or `"auto"` found nothing that may be written. What was at `path`
            is still there.
        ValueError: An argument is wrong; raised before anything is written.

    Example:

    >>> report = kg.export_tflite(pruned, "model.tflite", representative_data=x_train[:200], data=(x_test, y_test))
    >>> print(report)
    """
    require_path(path)
    path = Path(path)
    _check_arguments(path, encoding, prefer, representative_data, data)
    model = exportable(model)
    calibration = None if representative_data is None else samples.representative(model, representative_data)
    comparison = compare_on(model, data, calibration)

    rows, notes, graphs = [], [], {}
    with folder_beside(path) as work:
        encodings = _that_apply(model, calibration) if encoding == "auto" else [encoding]
        names, failed = convert(model, work, encodings, calibration)
        notes += [f"Not built: {each}. {why}" for each, why in failed.items()]
        for each in (each for each in encodings if each not in failed):
            content = (work / f"{each}.tflite").read_bytes()
            graphs[each] = tflite_file.read(content)
            row, problems = _examine(model, each, content, graphs[each], names, comparison)
            rows.append(row)
            notes += problems
        rows, dropped = _without_larger_sparse_forms(rows, prefer)
        advice = advise(model) if has_open_sizes(model) else advise_file(model, graphs.get("dense") or graphs[encodings[0]])
        chosen, reason, excluded = choose(rows, encoding, prefer, comparison.accuracy, advice)
        chosen["chosen"] = True
        os.replace(work / f"{chosen['encoding']}.tflite", path)
    if comparison.inputs is None or chosen["max_difference"] is not None:
        notes.insert(0, comparison.note)
    return ExportReport(path, rows, reason, list(dict.fromkeys(notes + dropped + excluded)), advice, comparison.accuracy)


def _examine(model, encoding, content, graphs, names, comparison):
    """The row of one file, and what could not be checked in it."""
    tensors = zeros_kept(model, tflite_file.weights(graphs))
    outputs, problem, notes = None, None, []
    if comparison.inputs is not None:
        outputs, problem = run(content, comparison.inputs, names, samples.static_batch(model))
    if outputs is not None and not comparison.fits(outputs):
        outputs, problem = None, "its outputs have other shapes than the Keras model's"
    unchecked = comparison.inputs is None or problem in (MISSING, FLEX)
    if problem == FLEX:
        problem += f": {', '.join(tflite_file.flex_operators(graphs))}"
    row = {
        "encoding": encoding,
        "raw_bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, mtime=0)),
        "zeros": sum(tensor["kept"] for tensor in tensors),
        "tensors": tensors,
        "densify": tflite_file.count(graphs, "DENSIFY"),
        "runs": None if unchecked else not problem,
        "problem": problem or "",
        **comparison.measure(outputs),
        "chosen": False,
    }
    if problem and outputs is None:
        notes.append(f"Not checked: predictions of the {encoding} file ({problem}).")
    elif problem:
        notes.append(f"Not for XNNPACK: the {encoding} file ({problem}).")
    if ENCODINGS[encoding].calibrated and (floats := tflite_file.float_operators(graphs)):
        notes.append(f"Computed in float32 in the {encoding} file: {', '.join(floats)}.")
    if counted := [tensor["kernel"] for tensor in tensors if tensor["checked"] == "count"]:
        notes.append(f"Checked by their number only: zeros of {', '.join(counted)} in the {encoding} file (stored in another order).")
    if unpaired := [tensor["kernel"] for tensor in tensors if tensor["checked"] is None]:
        notes.append(f"Not checked: zeros of {', '.join(unpaired)} in the {encoding} file (merged or split by the converter).")
    return row, notes


def _that_apply(model, calibration):
    zeros = bool(kernels_with_zeros(model))
    return [name for name, form in ENCODINGS.items() if (zeros or not form.sparse) and (calibration is not None or not form.calibrated)]


def _without_larger_sparse_forms(rows, prefer):
    """The rows without the sparse forms of float16 and int8 that are no smaller than the plain ones, and a note about these."""
    key = "gzip_bytes" if prefer == "gzip" else "raw_bytes"
    sizes = {row["encoding"]: row[key] for row in rows}

    def larger(row):
        form = ENCODINGS[row["encoding"]]
        return form.sparse and form.dtype != "float32" and row[key] >= sizes.get(form.plain, float("inf"))

    names = [f"{row['encoding']} ({row[key]:,} bytes)" for row in rows if larger(row)]
    return [row for row in rows if not larger(row)], [f"Left out, because no smaller than without sparse storage: {', '.join(names)}."] if names else []


def _check_arguments(path, encoding, prefer, representative_data, data):
    if path.suffix != ".tflite":
        fixed = str(path.with_suffix(".tflite")) if path.name else "model.tflite"
        raise ValueError(f"`path` must end in `.tflite`. Received: path={str(path)!r}. Use {fixed!r}.")
    if path.is_dir():
        raise ValueError(f"`path` must name a file. Received: path={str(path)!r}, a folder. Choose another name.")
    if encoding not in ("auto", *ENCODINGS):
        known = ", ".join(repr(name) for name in ("auto", *ENCODINGS))
        raise ValueError(f"`encoding` must be one of {known}. Received: encoding={encoding!r}. Use 'auto' if in doubt.")
    if prefer not in _PREFERENCES:
        known = ", ".join(map(repr, _PREFERENCES))
        raise ValueError(f"`prefer` must be one of {known}, what counts to 'auto'. Received: prefer={prefer!r}. Use 'raw' if in doubt.")
    calibrated = encoding == "auto" or ENCODINGS[encoding].calibrated
    if representative_data is None and encoding != "auto" and calibrated:
        raise ValueError(
            f"encoding={encoding!r} needs `representative_data` to measure the ranges of activations on. "
            "Received: representative_data=None. Pass x_train[:200], for one, or use 'dynamic_int8'."
        )
    if representative_data is not None and not calibrated:
        raise ValueError(
            "`representative_data` serves the encodings 'int8', 'sparse_int8' and 'auto' only. "
            f"Received: representative_data of type {type(representative_data).__name__} with encoding={encoding!r}. Leave it out."
        )
    if data is not None:
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise ValueError(f"`data` must be a pair (x, y) of arrays. Received: {type(data).__name__}. Collect a data set into arrays.")
        lengths = [len(a) for a in (*keras.tree.flatten(data[0]), data[1]) if a is not None]
        if len(set(lengths)) != 1 or not lengths[0]:
            raise ValueError(f"x and y of `data` must be of one length, at least 1. Received: lengths {lengths}. Pass (x, y) as arrays.")
