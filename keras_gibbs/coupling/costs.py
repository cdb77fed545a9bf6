"""What a model costs once channels have left it."""

import dataclasses
import math
from collections.abc import Mapping

import keras

from keras_gibbs.coupling.plan import removable_groups
from keras_gibbs.structure.costs import multiply_adds
from keras_gibbs.structure.trace import trace


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: The number of its weights.
        macs: Multiply-adds for one sample, as a `ShrinkReport` counts them.
    """

    parameters: int
    macs: int


class ChannelCosts:
    """The cost of a model as a function of how many channels of every group it keeps.

    It is what `shrink` leaves of the model when the other channels are zero; where these were all that read another channel, `shrink` takes that as well, and
    the model costs less.

    Args:
        model: A built Sequential or Functional model, pruned or not.

    Attributes:
        groups: The channels that can be removed, `ChannelGroup`s by path: that of the first weight that makes them, as in `kg.prune`.

    Example:

    >>> costs = ChannelCosts(model)
    >>> half = costs({path: group.size // 2 for path, group in costs.groups.items()})
    >>> half.macs / costs({}).macs
    """

    def __init__(self, model: keras.Model):
        self.groups = removable_groups(model)
        calls = trace(model).calls
        self._calls = calls
        layers = {id(call.operation): call.operation for call in calls if isinstance(call.operation, keras.layers.Layer)}.values()
        self._variables = list({id(variable): variable for layer in layers for variable in layer.weights}.values())
        self._axes = {}  # of each weight, by its id: its axes, each with the groups along it and how many places a channel has there
        for path, group in self.groups.items():
            for member in group.members:
                self._axes.setdefault(id(member.variable), {}).setdefault(member.axis, []).append((path, member.indices.shape[1]))

    def __call__(self, kept: Mapping[str, int]) -> Cost:
        """The cost with `kept` channels in the groups at these paths, and all in the others."""

        def size(variable):
            axes = self._axes.get(id(variable), {})
            return math.prod(length - self._missing(axes.get(axis, ()), kept) for axis, length in enumerate(variable.shape))

        return Cost(sum(map(size, self._variables)), sum(multiply_adds(self._calls, size).values()))

    def _missing(self, along, kept):
        return sum(repeats * (self.groups[path].size - kept[path]) for path, repeats in along if path in kept)
