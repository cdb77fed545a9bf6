"""SynFlow's score: how much of the signal that a network of absolute weights passes on goes through a weight."""

import contextlib

import keras
import numpy as np
from keras import ops, tree

from keras_gibbs.numerics.autodiff import gradients, traced
from keras_gibbs.scores.losses import call
from keras_gibbs.structure.copying import transfer
from keras_gibbs.structure.graph import walk
from keras_gibbs.structure.prunable import Prunable, prunable_weights


class SynapticFlow:
    """|theta dR/dtheta|, where R is the sum of the outputs for an input of ones, with every parameter and statistic in its absolute value.

    The model itself stays as it is: a copy is called with the absolute values. In it bounded activations (softmax, sigmoid, tanh, relu6) are linear, as ReLU is
    to a signal that is never negative: the theory needs that, and a softmax has the same sum for any signal. In a deep network R leaves the range of float32:
    everything is then computed in float64.

    Args:
        model: A built Sequential or Functional model, whose inputs have a known shape.
        weights: List of its `Prunable`.

    Raises:
        ValueError: For inputs of unknown size, or a signal outside the range of float64 too.

    Reference: Tanaka et al. 2020, https://arxiv.org/abs/2006.05467; inference mode, as in the authors' code (Pruners/pruners.py).
    """

    def __init__(self, model, weights: list[Prunable]):
        self.paths = [weight.path for weight in weights]
        self.model = model
        self.signal = Signal(linearized(model, "float32"), self.paths)
        self.is_double = False

    def scores(self, masks: list[np.ndarray]) -> list[np.ndarray]:
        """The scores under `masks`, 0 where they remove, as fractions of the largest: float64 in the shapes of the weights."""
        if not self.is_double:
            found = self.signal.scores(masks)
            if _is_usable(found):
                return _relative(found)
            with double_precision():
                self.signal = Signal(linearized(self.model, "float64"), self.paths)
            self.is_double = True
        with double_precision():
            found = self.signal.scores(masks)
        if not _is_usable(found):
            raise ValueError(f"SynFlow needs a signal that is finite and not 0. Received: model {self.model.name!r}, whose signal is not, even in float64.")
        return _relative(found)


class Signal:
    """The signal through a `linearized` model, and the scores that follow from it, of the weights at `paths`."""

    def __init__(self, model, paths: list[str]):
        inputs = _ones(model)
        by_path = {weight.path: weight.variable for weight in prunable_weights(model)}
        scored = [by_path[path] for path in paths]
        known = {id(variable) for variable in scored}
        others = [variable for variable in model.variables if id(variable) not in known and "float" in variable.dtype]
        self.scored, self.others = ([ops.absolute(ops.convert_to_tensor(variable)) for variable in group] for group in (scored, others))

        def signal(values, rest):
            outputs = call(model, scored + others, values + rest, inputs)
            return sum(ops.sum(output) for output in tree.flatten(outputs))

        self._gradients = traced(lambda values, rest: gradients(lambda values: signal(values, rest), values))

    def scores(self, masks):
        values = [value * ops.cast(mask, value.dtype) for value, mask in zip(self.scored, masks, strict=True)]
        slopes = self._gradients(values, self.others)
        with np.errstate(invalid="ignore", over="ignore"):  # said by `_is_usable`
            return [np.abs(_double(value) * _double(slope)) for value, slope in zip(values, slopes, strict=True)]


def _double(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def _is_usable(scores):
    return all(np.isfinite(score).all() for score in scores) and any(score.any() for score in scores)


def _relative(scores):
    largest = max(score.max() for score in scores)
    return [score / largest for score in scores]


def _ones(model):
    def ones(tensor):
        if None in tensor.shape[1:]:
            raise ValueError(
                f"SynFlow sends ones through the model, so its inputs must have a size. Received: model {model.name!r} with an input of shape {tensor.shape}."
            )
        return ops.ones((tensor.shape[0] or 1, *tensor.shape[1:]), tensor.dtype)

    return tree.map_structure(ones, model.inputs[0] if isinstance(model, keras.Sequential) else model.input)


BOUNDED = ("softmax", "log_softmax", "sigmoid", "hard_sigmoid", "tanh", "relu6")


def linearized(model, dtype: str):
    """A copy of `model` that computes in `dtype`, without the activations that are bounded and would stop a large signal."""

    def changed(value):
        if isinstance(value, dict):
            if "DTypePolicy" in str(value.get("class_name")):
                return dtype
            if value.get("class_name") == "Softmax":
                value = {**value, "class_name": "Activation", "config": {"name": value["config"]["name"], "dtype": dtype, "activation": "linear"}}
            if value.get("class_name") == "ReLU":
                value = {**value, "config": {**value["config"], "max_value": None}}
            bounded = value.get("activation") in BOUNDED and "recurrent_activation" not in value
            return {key: "linear" if bounded and key == "activation" else changed(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(changed(part) for part in value)
        return dtype if isinstance(value, str) and value in ("float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16") else value

    copy = type(model).from_config(changed(model.get_config()), custom_objects={type(layer).__name__: type(layer) for layer in walk(model)})
    transfer(model, copy)
    return copy


def double_precision():
    """Let the backend compute in float64 within the context: JAX has to be asked."""
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)
