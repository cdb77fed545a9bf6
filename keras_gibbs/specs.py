"""What a state variable of a wrapper is."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spec:
    """One state variable of a wrapper.

    Attributes:
        value: Its first value, which also gives the shape.
        dtype: Its dtype.
        trainable: Whether the optimizer trains it.
        overwritten: Whether the step of training gives its new value where a gradient would be (Keras: `overwrite_with_gradient`).
    """

    value: Any
    dtype: str = "float32"
    trainable: bool = False
    overwritten: bool = False
