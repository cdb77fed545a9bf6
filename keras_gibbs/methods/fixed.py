"""A mask that is given and never changes."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_gibbs.configuration import register
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.specs import Spec


@register
@dataclasses.dataclass(frozen=True)
class Fixed(PruningMethod):
    """Train under a mask that never changes: one found elsewhere, or none at all.

    Methods that score a network once and then train what they kept end here; so does sparse fine-tuning of a pruned model.

    Args:
        mask: Array of 0 and 1 in the kernel's shape; a dict from layer names to such arrays, for a whole model (layers it does not name keep every
            weight); or None, which keeps every weight. The mask is saved with the weights, not with the configuration.

    Raises:
        ValueError: For a mask with other values than 0 and 1, or (when a layer is wrapped) of another shape than its kernel.

    Example:

    >>> masks = {layer.name: np.array(layer.mask()) for layer in kg.pruned_layers(pruned)}
    >>> again = kg.prune(fresh_model, kg.Fixed(masks))
    """

    mask: Any = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self):
        for mask in self.mask.values() if isinstance(self.mask, dict) else [self.mask]:
            if mask is not None and not np.isin(np.asarray(mask), (0, 1)).all():
                raise ValueError(f"A mask holds 0 (removes) and 1 (keeps) only. Received: values {np.unique(np.asarray(mask))[:5]}.")

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()

    def check_names(self, names):
        unknown = sorted(set(self.mask) - set(names)) if isinstance(self.mask, dict) else []
        if unknown:
            raise ValueError(f"Every mask must belong to a layer with a kernel. Received: masks for {unknown}, which are none. There are {names}.")

    def for_layer(self, layer):
        return Fixed(self.mask.get(layer.name)) if isinstance(self.mask, dict) else self

    def check(self, layer, kernel_shape):
        if kernel_shape is not None and self.mask is not None and np.shape(self.mask) != tuple(kernel_shape):
            raise ValueError(
                f"A fixed mask must have its kernel's shape. Received: a mask of shape {np.shape(self.mask)} for layer {layer.name!r}, whose kernel "
                f"has shape {tuple(kernel_shape)}. For several layers pass a dict from layer names to masks."
            )

    def state(self, shape):
        mask = np.ones(shape) if self.mask is None else np.reshape(self.mask, shape)
        return {"given_mask": Spec(mask.astype("uint8"), "uint8")}

    def sample(self, kernel, state, uniform):
        return self.mode(kernel, state)

    def mode(self, kernel, state):
        return ops.cast(state["given_mask"], "float32")
