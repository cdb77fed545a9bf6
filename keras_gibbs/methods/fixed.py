"""A mask that is given and never changes."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_gibbs.configuration import register
from keras_gibbs.methods.base import PruningMethod
from keras_gibbs.methods.traits import DiffersByWeight
from keras_gibbs.specs import Spec


@register
@dataclasses.dataclass(frozen=True)
class Fixed(DiffersByWeight, PruningMethod):
    """Train under a mask that never changes: one found elsewhere, or none at all.

    Methods that score a network once and then train what they kept end here; so does sparse fine-tuning of a pruned model.

    Args:
        mask: Array of 0 and 1 in the weight's shape; for a whole model a dict from paths of weights, such as `"encoder/dense/kernel"`, or from layer names
            to such arrays (weights it does not name are kept); or None, which keeps every weight. The mask is saved with the weights, not with the
            configuration.
        found_by: What found the mask, for `summary`: the method in a few words.

    Raises:
        ValueError: For a mask with other values than 0 and 1, or (when a layer is wrapped) of another shape than its weight; for a name that fits no
            weight, or several.

    Example:

    >>> masks = {path: np.array(mask) for layer in kg.pruned_layers(pruned) for path, mask in layer.masks().items()}
    >>> again = kg.prune(fresh_model, kg.Fixed(masks))
    """

    mask: Any = dataclasses.field(default=None, compare=False, repr=False)
    found_by: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self):
        for mask in self.mask.values() if isinstance(self.mask, dict) else [self.mask]:
            if mask is not None and not np.isin(np.asarray(mask), (0, 1)).all():
                raise ValueError(f"`mask` holds 0 (removes) and 1 (keeps) only. Received: mask with values {np.unique(np.asarray(mask))[:5]}.")

    def brief(self):
        return self.found_by or super().brief()

    def get_config(self):
        return {"found_by": self.found_by} if self.found_by else {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def check_weights(self, weights):
        if not isinstance(self.mask, dict):
            return
        for key in self.mask:
            named = [weight.path for weight in weights if key in _names(weight)]
            if not named:
                raise ValueError(f"Every mask must belong to a prunable weight. Received: mask={{{key!r}: ...}}. There are {[w.path for w in weights]}.")
            if len(named) > 1 and key not in named:
                raise ValueError(f"A mask for a layer must name one weight. Received: mask={{{key!r}: ...}}, which fits {named}. Use one of these paths.")

    def for_weight(self, weight):
        if not isinstance(self.mask, dict):
            return self
        return Fixed(next((self.mask[name] for name in _names(weight) if name in self.mask), None), found_by=self.found_by)

    def check(self, weight):
        if self.mask is not None and np.shape(self.mask) != weight.shape:
            raise ValueError(
                f"A fixed mask must have the shape of its weight. Received: a mask of shape {np.shape(self.mask)} for weight {weight.path!r}, which has shape "
                f"{weight.shape}. For several weights pass a dict from paths or layer names to masks."
            )

    def state(self, shape):
        mask = np.ones(shape) if self.mask is None else np.reshape(self.mask, shape)
        return {"given_mask": Spec(mask.astype("bool"), "bool")}

    def mode(self, weight, state):
        return ops.cast(state["given_mask"], "float32")


def _names(weight):
    """By what a mask may be keyed: the path of its weight, that of the layer, or the layer's name."""
    return weight.path, weight.path.rpartition("/")[0], weight.owner.name
