"""The one alias of the annotations."""

from typing import Any, TypeAlias

Tensor: TypeAlias = Any  # a tensor of the active Keras backend: no common base class exists
