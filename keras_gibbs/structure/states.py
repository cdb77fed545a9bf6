"""What is known of a tensor, of an axis of a weight, and of one call, when channels are followed."""

import dataclasses
from typing import Literal

import keras
import numpy as np

Role = Literal["produces", "follows", "carries", "consumes"]


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor.

    Attributes:
        axis: The axis that they run along, counted from the last: -1, -2, ...
        ids: int array, the channel at each position of the axis; a flattened image names each channel many times.
        values: float64 array, what a channel is equal to wherever it is constant, over all positions and samples; NaN where it varies.
    """

    axis: int
    ids: np.ndarray
    values: np.ndarray

    def with_values(self, values) -> "Channels":
        """The same channels with other values."""
        return dataclasses.replace(self, values=values)


@dataclasses.dataclass(frozen=True)
class Held:
    """A tensor that has to stay as it is, and why."""

    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """An axis of a weight that runs along channels."""

    layer: keras.layers.Layer
    path: str
    variable: keras.Variable
    axis: int
    ids: np.ndarray
    role: Role


@dataclasses.dataclass(frozen=True, eq=False)
class Size:
    """A number in the config of a layer that counts channels: where it stands there, such as `("filters",)` or `("target_shape", 2)`."""

    layer: keras.layers.Layer
    keys: tuple
    ids: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """Where channels end: a layer whose every output adds up its input channels.

    Attributes:
        path: The layer's path.
        mixing: Its weights, a `Mixing`.
        inputs: int array, the channels it reads.
        outputs: int array, the channels it makes.
        values: float64 array, the constants it reads, NaN where they vary.
    """

    path: str
    mixing: object
    inputs: np.ndarray
    outputs: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One call as the rules see it.

    Attributes:
        layer: The layer or operation that is called.
        path: Its path.
        shapes: The shapes of its input tensors.
        states: What is known of them.
        output_shape: The shape of its first output.
        args: Positional and keyword arguments of the call.
    """

    layer: keras.Operation
    path: str
    shapes: list[tuple]
    states: list[Channels | Held]
    output_shape: tuple
    args: tuple = ()

    def describe(self) -> str:
        """The class and path of the layer."""
        return f"{type(self.layer).__name__} {self.path!r}"
