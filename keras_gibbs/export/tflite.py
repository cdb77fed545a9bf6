"""A .tflite file, with a report that says what was checked.

The way: strip -> convert one encoding after the other in a folder beside `path` -> read and run each file -> move the chosen one to `path`.
"""

import os
from pathlib import Path

import keras

from keras_gibbs.arguments import require_path
from keras_gibbs.export import samples
from keras_gibbs.export.advisor import advise, advise_file, has_open_sizes
from keras_gibbs.export.choice import choose, worth_rewriting
from keras_gibbs.export.comparison import compare_on
from keras_gibbs.export.converter import convert, exportable
from keras_gibbs.export.encodings import ENCODINGS, alike
from keras_gibbs.export.examination import Distrusted, Examiner
from keras_gibbs.export.files import folder_beside, is_full
from keras_gibbs.export.progress import Progress
from keras_gibbs.export.reports import ExportReport
from keras_gibbs.export.rewrite import rewrite
from keras_gibbs.export.zeros import has_sparse_pointwise, kernels_with_zeros

_PREFERENCES = ("raw", "gzip", "arm64")


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    encoding: str = "auto",
    prefer: str = "raw",
    representative_data=None,
    data: tuple | None = None,
    verbose: int = 1,
) -> ExportReport:
    """Write a .tflite file, run it, and report sizes, zeros kept and predictions against the Keras model.

    Every weight that is zero in the Keras model has to be zero in the file: kernels are compared with the file's tensors position by position, in
    float16 and at the zero points of int8 too. Where the converter has merged or split kernels, so that there is no pairing, a note in the report
    names them. A sparse file must hold the weights of the same encoding without sparse storage and predict what that predicts. An encoding that cannot be
    built or read, or that does not predict finite numbers where the Keras model does, is left out with a note, and is an error if it was asked for by name.

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
            - `"sparse_ready"`, `"sparse_ready_float16"`: `"sparse"` and `"sparse_float16"` of the network as `sparse_ready` rewrites it, with the same
              predictions, so that an ARM64 CPU runs it sparse;
            - `"auto"`.
        prefer: What is best to `"auto"`:

            - `"raw"`: the fewest bytes;
            - `"gzip"`: the fewest bytes after `gzip`, as an app package stores it. Of the network as it is and as `sparse_ready` rewrites it, which take the
              same bytes, either takes the one that is estimated to run faster; int8 forms gain nothing by rewriting, for XNNPACK runs nothing sparse in int8;
            - `"arm64"`: the form that runs fastest on a phone's CPU: sparse float32, of the network as it is or as `sparse_ready` rewrites it, if XNNPACK
              runs so much of it sparse that it is estimated 1.5 x as fast as dense or faster, else int8 (3 x), dynamic int8 (2 x), sparse or dense, by
              what is there and the estimates.
        representative_data: Inputs that activations are measured on for int8, of any number; the first 500 samples count. An array; a dict, list or
            tuple of arrays for several inputs; or an iterable of batches of these, as `fit` takes them, with or without labels.
        data: `(x, y)` to compare on and to measure the accuracy of the file: x as for `predict`, y integer labels or one-hot. A model
            with a single score counts it as class 1 above one half if all scores are probabilities, else above 0. With y None, or where y holds other
            numbers than classes, the predictions are compared and no accuracy measured. Without `data` the comparison is on representative data or on a
            few random inputs.
        verbose: 1 prints a line for every encoding as soon as it is built and checked, 0 nothing.

    Returns:
        An `ExportReport`.

    Raises:
        ImportError: TensorFlow is not installed.
        OSError: The folder cannot be written, or the disk is full.
        RuntimeError: The encoding that was asked for cannot be built, read or trusted (a zero weight is not zero in the file, what it predicts is not
            finite, or not what the same encoding without sparse storage predicts), or `"auto"` found nothing that may be written. What was at `path` is
            still there.
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

    wanted = _that_apply(model, calibration, prefer) if encoding == "auto" else [encoding]
    maker = _Maker(model, comparison, calibration, Progress(f"{path.name}:", verbose))
    with folder_beside(path) as work:
        maker.make(work, wanted)
        if not maker.rows:
            raise maker.problems[0]
        advice, failure = _advice(model, maker.graphs) if maker.graphs else (maker.ready, [])

        def pick():
            rows, dropped = _without_larger_sparse_forms(maker.rows, prefer)
            return rows, dropped, *choose(rows, encoding, prefer, comparison.accuracy, advice, maker.ready)

        rows, dropped, chosen, reason, excluded = pick()
        if encoding == "auto" and prefer != "arm64" and has_sparse_pointwise(model) and (name := worth_rewriting(rows, chosen, prefer)):
            maker.rewritten(work, name, asked=False)
            rows, dropped, chosen, reason, excluded = pick()
        chosen["chosen"] = True
        new = work / path.name
        new.write_bytes(maker.contents[chosen["encoding"]])
        os.replace(new, path)
    notes = maker.notes + dropped + excluded + failure
    if comparison.inputs is None or chosen["max_difference"] is not None:
        notes.insert(0, comparison.note)
    advice = maker.ready if ENCODINGS[chosen["encoding"]].rewritten else advice
    return ExportReport(path, rows, reason, list(dict.fromkeys(notes)), advice, comparison.accuracy)


class _Maker:
    """Makes and examines the files.

    Attributes:
        rows: Of the report.
        notes: For the report.
        problems: Why there are no rows for other encodings.
        contents: Encoding -> file.
        graphs: Encoding -> subgraphs of the file, for the network as it is.
        ready: Advice on the rewritten network, or None.
    """

    def __init__(self, model, comparison, calibration, progress):
        self.rows, self.notes, self.problems, self.contents, self.graphs, self.ready = [], [], [], {}, {}, None
        self._model, self._comparison, self._calibration, self._progress = model, comparison, calibration, progress

    def make(self, work, wanted):
        """The files in the encodings that are wanted."""
        plain = [ENCODINGS[name].plain for name in wanted]
        as_it_is = [name for name in ENCODINGS if name in wanted + plain and not ENCODINGS[name].rewritten]
        if any(not ENCODINGS[name].rewritten for name in wanted):
            self.graphs = self._files(self._model, work, as_it_is, wanted).graphs
        for name in (name for name in wanted if ENCODINGS[name].rewritten):
            self.rewritten(work, name)

    def rewritten(self, work, name, asked=True):
        """The file of the rewritten network in the encoding `name`; where there is none, and it was not asked for, not a word."""
        try:
            rewritten, report = rewrite(self._model)
            problem = None if report.rows else RuntimeError(" ".join(["Nothing in the network can be rewritten.", *report.why()]))
        except ValueError as error:
            problem = error
        if problem is not None:
            if asked:
                self._leave_out(name, problem)
            return
        stored = next(each for each in ENCODINGS if alike(each, name))
        graphs = self._files(rewritten, work / "ready", [ENCODINGS[name].plain, stored], [stored], {stored: name}).graphs
        if graphs:
            self.ready = _advice(rewritten, graphs)[0]
            self.notes.append(f"Rewritten in the {name} file: {report.summary()}.")

    def _files(self, model, work, names, wanted, rename=None):
        """Convert a model to files and examine them; those not `wanted` are there to compare with."""
        examiner, rename = Examiner(model, self._comparison), rename or {}
        work.mkdir(exist_ok=True)
        for name, content, problem in convert(model, work, names, self._calibration):
            row, found, label = None, [], rename.get(name, name)
            if problem is None:
                try:
                    row, found = examiner.examine(name, content)
                except Distrusted as error:
                    problem = error
            if name not in wanted:
                continue
            if problem is not None:
                self._leave_out(label, problem)
                continue
            row["encoding"] = label
            self.rows.append(row)
            self.notes += found
            self.contents[label] = content
            self._progress.line(row, label)
        return examiner

    def _leave_out(self, name, problem):
        self.problems.append(problem)
        self.notes.append(f"Left out: {name}. {problem}")
        self._progress.line(None, name)


def _advice(model, graphs):
    """The advice on a model, or None with a note: it must not cost the file."""
    try:
        return advise(model) if has_open_sizes(model) else advise_file(model, graphs.get("dense") or next(iter(graphs.values()))), []
    except Exception as error:
        if is_full(error):
            raise
        return None, [f"Not found out: what runs sparse on a phone ({type(error).__name__} while advising)."]


def _that_apply(model, calibration, prefer):
    zeros = bool(kernels_with_zeros(model))

    def applies(name, form):
        if form.rewritten:
            return zeros and prefer == "arm64" and name == "sparse_ready"  # where size decides, `choice.worth_rewriting` tells later
        return (zeros or not form.sparse) and (calibration is not None or not form.calibrated)

    return [name for name, form in ENCODINGS.items() if applies(name, form)]


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
