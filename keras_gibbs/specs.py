"""What a state variable of a wrapper is, and how it is made."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops


@dataclasses.dataclass(frozen=True)
class Spec:
    """One state variable of a wrapper.

    Masks are bool and other whole numbers int32: dtypes that every strategy can hand round, as uint8 and uint32 are not.

    Attributes:
        value: Its first value, which also gives the shape.
        dtype: Its dtype.
        trainable: Whether the optimizer trains it.
        overwritten: Whether the step of training gives its new value where a gradient would be (Keras: `overwrite_with_gradient`).
        seeded: Whether its first value is the seed of the weight's noise, as the int32 halves that `Uniform` takes, instead of `value`.
    """

    value: Any
    dtype: str = "float32"
    trainable: bool = False
    overwritten: bool = False
    seeded: bool = False


def read(store) -> dict[str, np.ndarray]:
    """The values of a file by name, in the dtypes of today: files of version 0.1 hold masks and marks as uint8, and the state of the noise as uint32."""
    return {name: signed(store[name]) for name in store.keys()}


def signed(value) -> np.ndarray:
    """A value as an array without unsigned numbers: the bits of uint32 are those of int32, and uint8 is bool, or int32 where it is a scalar."""
    value = np.array(value)
    if value.dtype == "uint8":
        return value.astype("bool" if value.ndim else "int32")
    return value.view("int32") if value.dtype == "uint32" else value


def add_variable(owner, name: str, value, dtype: str = "float32", **options):
    """Add a variable that starts as `value` to a layer or a model, of one Keras or another; `options` are those of its `add_weight`."""
    value = np.asarray(value, dtype)
    return owner.add_weight(name=name, shape=value.shape, dtype=dtype, initializer=lambda shape, dtype=None: ops.convert_to_tensor(value, dtype), **options)
