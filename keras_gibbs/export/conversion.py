"""TensorFlow's converter: one SavedModel to files in several encodings, with no work done twice.

A sparse file is made from the plain one, and a calibrated one from the float32 one, by the steps that the converter itself ends with; so the eight
encodings take three conversions. The bytes were compared with those of eight conversions: they differ in metadata only. Files in int8 then hold equal lists
of numbers once, such as the zero points of their channels.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from keras_gibbs.export import tflite_file
from keras_gibbs.export.encodings import ENCODINGS
from keras_gibbs.export.samples import padded, static_batch
from keras_gibbs.export.sharing import shared
from keras_gibbs.structure import graph

LOOPS = {"WHILE", "IF"}  # TensorFlow 2.21's calibrator crashes the whole process on these


class Conversion:
    """The files of one SavedModel, each made once.

    Args:
        saved: Folder of the SavedModel.
        calibration: Gives the batches to measure ranges on, as `representative_dataset` of TensorFlow's converter.
    """

    def __init__(self, saved: Path, calibration: Callable):
        import tensorflow as tf

        self._lite = tf.lite
        self._float16 = tf.float16
        self._converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        self._converter.experimental_enable_resource_variables = True
        self._calibration = calibration
        self.file = functools.lru_cache(maxsize=None)(self._file)

    def _file(self, encoding: str) -> bytes:
        """The .tflite file in an encoding."""
        content = self._converted(encoding)
        return shared(content) if ENCODINGS[encoding].dtype == "int8" else content

    def _converted(self, encoding):
        from tensorflow.lite.python.convert import mlir_sparsify

        form = ENCODINGS[encoding]
        if form.sparse:
            return bytes(mlir_sparsify(self.file(form.plain)))
        if form.calibrated:
            return self._quantized(self.file("dense"))
        known, problem = self._lite.OpsSet, None
        # A file with TensorFlow's own operators needs a larger runtime: only where there is no other way.
        for operators in ([known.TFLITE_BUILTINS], [known.TFLITE_BUILTINS, known.SELECT_TF_OPS]):
            self._converter.target_spec.supported_ops = operators
            self._converter.target_spec.supported_types = [self._float16] if form.dtype == "float16" else []
            self._converter.optimizations = [] if form.dtype == "float32" else [self._lite.Optimize.DEFAULT]
            try:
                return self._converter.convert()
            except Exception as error:
                problem = error
        raise problem

    def _quantized(self, content):
        """A float32 file with weights and activations in int8."""
        from tensorflow.lite.python.convert import mlir_quantize
        from tensorflow.lite.python.optimize import calibrator

        if LOOPS & {operator.name for graph in tflite_file.read(content) for operator in graph.operators}:
            raise NotImplementedError(LOOPS)
        content = calibrator.add_intermediate_tensors(content)
        return bytes(mlir_quantize(calibrator.Calibrator(content, [], []).calibrate(self._calibration)))


def calibration(model: keras.Model, names: list[str], samples: list[np.ndarray]):
    """Batches of the samples to measure ranges on."""
    step = static_batch(model) or 1
    samples = [padded(array, step) for array in samples]
    for start in range(0, len(samples[0]), step):
        batch = [array[start : start + step] for array in samples]
        yield batch if len(batch) == 1 else dict(zip(names, batch))


def explain(model: keras.Model, encoding: str, problem: Exception) -> str:
    """Why there is no file, in words of the user's model: the operators that are missing, and the layers they came from."""
    text = str(problem)
    operators = sorted(set(re.findall(r"'(\S+)' op is neither a custom op nor a flex op", text)))
    paths = re.findall(r'fused\["[^"]*", "([^"@]+)', text)
    components = {re.sub(r"_\d+$", "", part) for path in paths for part in path.split("/")} | {part for path in paths for part in path.split("/")}
    layers = [layer.name for layer in graph.walk(model) if not isinstance(layer, keras.Model) and layer.name in components]
    where = f" in layer {', '.join(map(repr, layers))}" if layers else ""
    if operators:
        return (
            f"The converter has no operator for {', '.join(operators)}{where}, not even with TensorFlow's own operators. "
            f"Received: model={model.name!r}, encoding={encoding!r}. Build the layer from others."
        )
    if isinstance(problem, NotImplementedError) and problem.args == (LOOPS,):
        return (
            "Ranges cannot be measured inside loops, which recurrent layers become. "
            f"Received: model={model.name!r}, encoding={encoding!r}. Use 'dynamic_int8'."
        )
    if "Select TensorFlow op" in text:
        return (
            "Ranges cannot be measured in a file with operators that only TensorFlow's Flex delegate runs. "
            f"Received: model={model.name!r}, encoding={encoding!r}. Use 'dynamic_int8', or build the layer from others."
        )
    return f"TensorFlow's converter failed{where}. Received: model={model.name!r}, encoding={encoding!r}."
