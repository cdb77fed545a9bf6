"""What a layer adds up whose every output channel reads its input channels."""

import dataclasses
import functools

import keras
import numpy as np

from keras_gibbs.structure.constants import array_of


@dataclasses.dataclass(frozen=True, eq=False)
class Mixing:
    """What a layer adds up.

    Attributes:
        kernel: `(positions, inputs, outputs)`.
        bias: `(outputs,)`; None where there is none that could take a constant.
        uniform: Whether an input channel that is constant adds the same at every position: not where padding cuts it off.
        variable: The bias variable, or None.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    uniform: bool
    variable: keras.Variable | None = None

    @functools.cached_property
    def reads(self) -> np.ndarray:
        """bool `(inputs, outputs)`: whether an output depends on an input."""
        return (self.kernel != 0).any(0)

    @property
    def folds(self) -> bool:
        """Whether a constant input channel can move into the bias."""
        return self.uniform and self.bias is not None

    def sums(self, values: np.ndarray) -> np.ndarray:
        """What input channels of these constants add to each output, `(outputs,)`; NaN counts as zero."""
        chosen = np.flatnonzero(np.nan_to_num(values))
        return np.einsum("i,pio->o", values[chosen], self.kernel[:, chosen].astype("float64"))

    def constants(self, values: np.ndarray) -> np.ndarray:
        """The values of the outputs, NaN where they vary."""
        varying = ~np.isfinite(values) if self.uniform else values != 0  # NaN != 0
        outputs = self.sums(np.where(varying, 0.0, values)) + (0.0 if self.bias is None else self.bias)
        return np.where(self.reads[varying].any(0), np.nan, outputs)


def mixing_of(layer, kernel: np.ndarray, uniform: bool) -> Mixing:
    """What a layer with this kernel `(positions, inputs, outputs)` and its bias adds up."""
    bias = layer.bias
    return Mixing(kernel, None if bias is None else array_of(bias).reshape(-1), uniform, bias)
