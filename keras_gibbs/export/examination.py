"""Read and run a .tflite file, and say whether it may be trusted."""

import zlib

import keras
import numpy as np

from keras_gibbs.export import samples, tflite_file
from keras_gibbs.export.comparison import Comparison, differences
from keras_gibbs.export.encodings import ENCODINGS
from keras_gibbs.export.inference import input_names
from keras_gibbs.export.litert import FLEX, MISSING, run
from keras_gibbs.export.zeros import zeros_kept

# A sparse file computes with the weights of its plain form, in other kernels: rounding may differ, in int8 by a few times what the plain form is off.
LARGEST_FROM_PLAIN = {"float32": 1e-4, "float16": 1e-3, "int8": 0.03}
_TIMES_ITS_OWN = 3


class Distrusted(RuntimeError):
    """A file must not be written; says why."""


class Examiner:
    """Examines the files of one model: plain forms first, for sparse ones are compared with them.

    Attributes:
        contents: Encoding -> the file.
        graphs: Encoding -> its subgraphs.
    """

    def __init__(self, model: keras.Model, comparison: Comparison):
        self.contents, self.graphs, self._outputs = {}, {}, {}
        self._model, self._comparison = model, comparison
        self._names = input_names(model)

    def examine(self, encoding: str, content: bytes) -> tuple[dict, list[str]]:
        """The row of one file for the report, and notes on what could not be checked.

        Raises:
            Distrusted: The file cannot be read, has lost zeros, does not predict finite numbers where the Keras model does, or is no sparse form of its
                plain one.
        """
        comparison = self._comparison
        try:
            graphs = tflite_file.read(content)
        except Exception as error:  # whatever the reader stumbles over: such a file is not run either
            why = str(error) if type(error) is ValueError else "its format is not that of a .tflite file"
            raise Distrusted(f"The {encoding} file cannot be read: {why}.") from error
        try:
            tensors = zeros_kept(self._model, tflite_file.weights(graphs))
        except RuntimeError as error:
            raise Distrusted(str(error)) from error
        if ENCODINGS[encoding].sparse:
            self._check_weights(encoding, graphs)
        outputs, problem, notes = None, None, []
        if comparison.inputs is not None:
            outputs, problem = run(content, comparison.inputs, self._names, samples.static_batch(self._model))
        if outputs is not None and not comparison.fits(outputs):
            outputs, problem = None, "its outputs have other shapes than the Keras model's"
        measured = comparison.measure(outputs)
        if outputs is not None:
            if not np.isfinite(measured["relative_difference"]):
                raise Distrusted(f"The {encoding} file does not predict finite numbers where the Keras model does.")
            if ENCODINGS[encoding].sparse:
                self._check_outputs(encoding, outputs)
        self.contents[encoding], self.graphs[encoding], self._outputs[encoding] = content, graphs, outputs
        unchecked = comparison.inputs is None or problem in (MISSING, FLEX)
        if problem == FLEX:
            problem += f": {', '.join(tflite_file.flex_operators(graphs))}"
        row = {
            "encoding": encoding,
            "raw_bytes": len(content),
            "gzip_bytes": _gzip_bytes(content),
            "zeros": sum(tensor["kept"] for tensor in tensors),
            "tensors": tensors,
            "densify": tflite_file.count(graphs, "DENSIFY"),
            "runs": None if unchecked else not problem,
            "problem": problem or "",
            **measured,
            "chosen": False,
        }
        if problem and outputs is None:
            notes.append(f"Not checked: predictions of the {encoding} file ({problem}).")
        elif problem:
            notes.append(f"Not for XNNPACK: the {encoding} file ({problem}).")
        return row, notes + _remarks(encoding, graphs, tensors)

    def _check_weights(self, encoding, graphs):
        """A sparse file must hold every constant of its plain form."""
        plain = ENCODINGS[encoding].plain
        if plain not in self.graphs:
            raise Distrusted(f"The {encoding} file cannot be compared with the {plain} file, which was left out.")
        if _contents(self.graphs[plain]) - _contents(graphs):
            raise Distrusted(f"The {encoding} file does not hold the weights of the {plain} file.")

    def _check_outputs(self, encoding, outputs):
        """... and predict what that predicts."""
        form = ENCODINGS[encoding]
        if self._outputs[form.plain] is not None:
            plain = self._outputs[form.plain]
            off, own = differences(outputs, plain)[1], self._comparison.measure(plain)["relative_difference"]
            if not off <= max(LARGEST_FROM_PLAIN[form.dtype], _TIMES_ITS_OWN * own if form.dtype == "int8" else 0.0):
                raise Distrusted(f"The {encoding} file does not predict in LiteRT what the {form.plain} file predicts: off by {off:.1%} of the largest output.")


def _contents(graphs):
    return {(tensor.shape, tensor.dtype, (tensor.values + 0).tobytes()) for tensor in tflite_file.weights(graphs)}  # + 0: -0.0 is not stored


def _gzip_bytes(content):
    """The size that `gzip` makes of a file, at its usual level."""
    return len(zlib.compress(content, 6, wbits=31))


def _remarks(encoding, graphs, tensors):
    notes = []
    if ENCODINGS[encoding].calibrated and (floats := tflite_file.float_operators(graphs)):
        notes.append(f"Computed in float32 in the {encoding} file: {', '.join(floats)}.")
    if ENCODINGS[encoding].calibrated and tflite_file.count(graphs, "RSQRT"):
        notes.append(f"Coarse in the {encoding} file: a norm or variance is computed from a sum with 256 steps (RSQRT), so short vectors come out wrong.")
    if counted := [tensor["kernel"] for tensor in tensors if tensor["checked"] == "count"]:
        notes.append(f"Checked by their number only: zeros of {', '.join(counted)} in the {encoding} file (stored in another order).")
    if unpaired := [tensor["kernel"] for tensor in tensors if tensor["checked"] is None]:
        notes.append(f"Not checked: zeros of {', '.join(unpaired)} in the {encoding} file (merged or split by the converter).")
    return notes
