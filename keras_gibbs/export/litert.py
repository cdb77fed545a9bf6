"""Run a .tflite file in LiteRT."""

import re

import numpy as np

from keras_gibbs.export.samples import padded

BATCH = 128
MISSING = "LiteRT is not installed; run `pip install keras_gibbs[litert]`"
REFUSED = "LiteRT does not run it"
SLOW = "LiteRT does not run it on XNNPACK, only on its slow kernels"
FLEX = "it holds operators that only TensorFlow's Flex delegate runs"


def interpreters():
    """LiteRT's module `interpreter`, or TensorFlow's, or None."""
    try:
        from ai_edge_litert import interpreter

        return interpreter
    except ImportError:
        try:
            from tensorflow.lite.python import interpreter

            return interpreter
        except ImportError:
            return None


def run(content: bytes, inputs: list[np.ndarray], names: list[str], batch: int | None) -> tuple[list[np.ndarray] | None, str | None]:
    """Run a file, on XNNPACK as a phone does, and without it where that fails.

    Args:
        content: The file.
        inputs: One array an input, in Keras's order.
        names: The inputs' names in that order.
        batch: The batch size the file is fixed to, or None.

    Returns:
        The outputs in Keras's order and None. If XNNPACK does not take the file, the outputs of the runtime's other kernels and what XNNPACK said; if
        nothing runs it, None and what was in the way.
    """
    runtime = interpreters()
    if runtime is None:
        return None, MISSING
    outputs, problem = _run(runtime, runtime.OpResolverType.AUTO, content, inputs, names, batch)
    if problem in (None, FLEX):
        return outputs, problem
    outputs, other = _run(runtime, runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, content, inputs, names, batch)
    return outputs, problem if other else SLOW


def _run(runtime, resolver, content, inputs, names, batch):
    count = len(inputs[0])
    inputs = [padded(a, batch) for a in inputs] if batch else inputs
    step = batch or BATCH
    try:
        runner = runtime.Interpreter(model_content=content, experimental_op_resolver_type=resolver).get_signature_runner()
        details = runner.get_input_details()
        keys = list(details) if len(details) == 1 else names
        results = []
        for start in range(0, len(inputs[0]), step):
            feed = {key: a[start : start + step].astype(details[key]["dtype"]) for key, a in zip(keys, inputs)}
            results.append({key: np.array(value) for key, value in runner(**feed).items()})
    except (RuntimeError, ValueError, KeyError) as error:
        if "Select TensorFlow op" in str(error):
            return None, FLEX
        return None, REFUSED
    keys = sorted(results[0], key=_output_order)
    return [np.concatenate([result[key] for result in results])[:count] for key in keys], None


def _output_order(key):
    """Lists are exported as output_0 ... output_10, which must not sort as text; dictionaries by their keys, as Keras flattens them."""
    number = re.fullmatch(r"output_(\d+)", key)
    return (0, int(number[1]), "") if number else (1, 0, key)
