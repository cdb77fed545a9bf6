"""The aliases of the annotations."""

from typing import Any, TypeAlias

Tensor: TypeAlias = Any  # a tensor of the active Keras backend: no common base class exists
State: TypeAlias = dict[str, Tensor]  # the state of a method beside one weight, by name
