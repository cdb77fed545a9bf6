"""What follows the pooling of a network, and the constants of hard sigmoids that its 1x1 convolutions can take."""

import keras
from keras import tree

from keras_gibbs.export import turning
from keras_gibbs.export.wiring import Wiring, output_of


class Regions:
    """What pooled tensors are for: a gate is multiplied with feature maps again, a head never meets them.

    Attributes:
        gates: The calls between a pooling and the product with feature maps, by their ids.
        heads: The calls behind a pooling that never meet feature maps, by their ids.
        scales: What kernels are multiplied by, by the id of the layer: constants that stood between layers.
        shifts: What is added to biases, likewise.
        skipped: The ids of the calls whose constants these are.
        rows: What changes, one dict each: `layer` and `change`.
        left: What cannot be changed: `layer` and `why`.
    """

    def __init__(self, wiring: Wiring):
        self._wiring = wiring
        self.rows, self.left = [], []
        self.gates, self.heads = {}, {}
        self.scales, self.shifts, self.skipped = {}, {}, set()
        self._find()
        for call in self.gates.values():
            self._fold(call)

    def note(self, layer, change: str) -> None:
        """Note a change of a layer, once."""
        if {"layer": layer.name, "change": change} not in self.rows:
            self.rows.append({"layer": layer.name, "change": change})

    def _find(self):
        for pool in self._wiring.calls:
            if isinstance(pool.operation, turning.GLOBAL_POOLS) and pool.operation.data_format == "channels_last":
                inside, meets = [pool], False
                for call in inside:
                    for reader in (reader for tensor in tree.flatten(call.outputs) for reader in self._wiring.readers(tensor)):
                        if any(turning.is_map(tensor) for tensor in reader.inputs):
                            meets = True
                        elif reader not in inside:
                            inside.append(reader)
                if meets and all(self._fits_gate(call) for call in inside):
                    self.gates |= {id(call): call for call in inside}
                elif not meets and pool.operation.keepdims:
                    self.heads |= {id(call): call for call in inside if self._fits_head(call)}
                elif meets:
                    self.left.append({"layer": pool.operation.name, "why": "not all that follows it has a form with 1x1 convolutions"})

    @staticmethod
    def _fits_gate(call):
        layer, shape = call.operation, output_of(call).shape
        if isinstance(layer, keras.layers.Reshape):
            return len(shape) == 4 and tuple(shape[1:3]) == (1, 1)
        dense = type(layer) is keras.layers.Dense and len(shape) == 2
        return dense or is_1x1(layer) or isinstance(layer, turning.GLOBAL_POOLS) or turning.is_pointwise(layer)

    @staticmethod
    def _fits_head(call):
        layer, shape = call.operation, output_of(call).shape
        if isinstance(layer, (keras.layers.Reshape, keras.layers.Flatten)):
            return len(shape) == 2
        return is_1x1(layer) or isinstance(layer, turning.GLOBAL_POOLS) or turning.is_pointwise(layer)

    def _fold(self, call):
        """Take the constants of a hard sigmoid, relu6(x + 3) / 6, into the convolutions around it: XNNPACK has no channels-first form of them."""
        layer = call.operation
        if activation_of(layer) == "hard_sigmoid" and isinstance(layer, keras.layers.Activation):
            before, after = self._convolution_before(call), self._convolution_after(call)
            if before and after:
                self.shifts[id(before.operation)], self.scales[id(after.operation)] = 3.0, 1 / 6
                self.note(layer, "its constants taken into the convolutions around it")
        elif scalar_of(call) is not None and type(layer).__name__ == "Add" and (before := self._convolution_before(call)):
            self.shifts[id(before.operation)] = scalar_of(call)
            self._skip(call)
        elif scalar_of(call) is not None and type(layer).__name__ == "Multiply" and (after := self._convolution_after(call)):
            self.scales[id(after.operation)] = scalar_of(call)
            self._skip(call)

    def _skip(self, call):
        self.skipped.add(id(call))
        self.note(call.operation, "left out: its constant is taken into a convolution")

    def _convolution_before(self, call):
        """The 1x1 convolution with a bias whose only reader a call is."""
        before = self._wiring.giver(call.inputs[0])
        fits = before and is_1x1(before.operation) and before.operation.use_bias and activation_of(before.operation) == "linear"
        return before if fits and self._is_alone(before) else None

    def _convolution_after(self, call):
        """The 1x1 convolution that alone reads the product of a gate and feature maps."""
        product = self._wiring.readers(output_of(call))
        if len(product) != 1 or not any(turning.is_map(tensor) for tensor in product[0].inputs) or type(product[0].operation).__name__ != "Multiply":
            return None
        after = self._wiring.readers(output_of(product[0]))
        outputs = {id(tensor) for tensor in tree.flatten(self._wiring.outputs)}
        fits = len(after) == 1 and is_1x1(after[0].operation) and id(output_of(product[0])) not in outputs
        return after[0] if fits and self._is_alone(after[0], readers=None) else None

    def _is_alone(self, call, readers=1):
        calls = sum(each.operation is call.operation for each in self._wiring.calls)
        return calls == 1 and readers in (None, len(self._wiring.readers(output_of(call))))


def is_1x1(layer) -> bool:
    """Whether a layer is a 1x1 convolution of stride 1."""
    return type(layer) is keras.layers.Conv2D and layer.kernel_size == (1, 1) and layer.strides == (1, 1) and layer.groups == 1


def activation_of(layer):
    """The name of the activation of a convolution or activation layer, or None."""
    return layer.get_config().get("activation") if isinstance(layer, (keras.layers.Activation, keras.layers.Conv2D)) else None


def scalar_of(call):
    """The number that an operation between layers adds or multiplies by, or None."""
    if isinstance(call.operation, keras.layers.Layer) or len(call.inputs) != 1 or len(call.args) != 2:
        return None
    [other] = [each for each in call.args if each is not call.inputs[0]] or [None]
    return float(other) if isinstance(other, (int, float)) else None
