"""Which slices of which weights are one channel: they live or die together."""

import dataclasses
from collections.abc import Iterable

import keras
import numpy as np
from keras import layers, tree

from keras_gibbs.structure.flow import Flow
from keras_gibbs.structure.graph import has_graph
from keras_gibbs.structure.rules import OPERATIONS, RULES
from keras_gibbs.structure.states import Channels, Held, Role, Site
from keras_gibbs.structure.trace import Trace, tensors, trace

AT_OUTPUT = "it is an output of the model"
ALIKE_IN_TRAINING = (layers.Resizing,)  # whose `training` is True by default, and changes nothing


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """An axis of a weight along which channels run.

    Attributes:
        layer: The layer that owns the weight.
        path: The layer's path: the names on the way from the model to it, joined by `/`.
        variable: The weight.
        axis: Its axis, from 0.
        indices: int array `(channels, repeats)`: row i names the places of channel i along the axis, several where a layer reads a flattened image.
        role: `"produces"`: the slice makes the channel. `"follows"`: bias, gamma, beta; zero where the channel is removed. `"carries"`: goes with the
            channel, whatever it holds: depthwise kernels, BatchNorm statistics. `"consumes"`: reads the channel.
    """

    layer: keras.layers.Layer
    path: str
    variable: keras.Variable
    axis: int
    indices: np.ndarray
    role: Role

    @property
    def name(self) -> str:
        """The weight's path, such as `"block/conv/kernel"`."""
        return f"{self.path}/{self.variable.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels of a model that are made, carried and read by the same weights. Each of them lives or dies as a whole, one apart from the other.

    Attributes:
        size: How many channels.
        members: The weights, each with the places of every channel.
        reason: Why these channels cannot be removed; None where they can.
    """

    size: int
    members: tuple[Member, ...]
    reason: str | None

    def of_role(self, role: Role) -> list[Member]:
        """The members of one role."""
        return [member for member in self.members if member.role == role]

    def zero(self, channels: Iterable[int]) -> None:
        """Set what makes these channels to zero, in place: their slices of kernels, of biases, and of the scale and offset behind.

        Args:
            channels: Ints in `[0, size)`.

        Raises:
            ValueError: For channels that cannot be removed.
        """
        if self.reason is not None:
            raise ValueError(f"These channels cannot be removed: {self.reason}. Received: a group of {[member.name for member in self.of_role('produces')]}.")
        for member in self.members:
            if member.role in ("produces", "follows"):
                value = np.array(keras.ops.convert_to_numpy(member.variable))
                places = member.indices[np.asarray(list(channels), dtype=int)].reshape(-1)
                np.moveaxis(value, member.axis, 0)[places] = 0
                member.variable.assign(value)


def channel_groups(model: keras.Model) -> list[ChannelGroup]:
    """The channels of a model.

    Args:
        model: A built Sequential or Functional model, not pruned (`strip_pruning` makes it so); nested models and shared layers included.

    Returns:
        All groups, those that cannot be removed too, in the order in which the model makes them. A layer of which nothing is known keeps the channels
        that it reads; so do an output of the model, and an activation whose value at zero no following bias can take.

    Example:

    >>> groups = channel_groups(keras.applications.ResNet50(weights=None))
    >>> [member.name for member in groups[1].of_role("produces")]
    """
    calls = trace(model)
    flow = follow(calls)
    return grouped(flow, reasons_to_stay(calls, flow))


def follow(calls: Trace, first: Flow | None = None) -> Flow:
    """Follow the channels through the calls of a model; a second time, with the first flow, as if all channels that can go had zero weights."""
    flow = Flow(first)
    states = {id(tensor): Held("it is an input of the model") for tensor in calls.inputs}
    for call in calls.calls:
        inputs = call.inputs
        known = [states.get(id(tensor), Held("it is a constant of the model")) for tensor in inputs]
        outputs = tensors(call.outputs)
        shape = tuple(outputs[0].shape) if outputs else ()
        site = Site(call.operation, call.path, [tuple(tensor.shape) for tensor in inputs], known, shape, (call.args, call.kwargs))
        flow.enter(site)
        if has_graph(call.operation):
            continue
        state = _apply(flow, site)
        for tensor in outputs:
            states[id(tensor)] = state if len(outputs) == 1 else flow.release(state, f"{site.describe()} has several outputs")
    for tensor in calls.outputs:
        flow.release(states[id(tensor)], AT_OUTPUT)
    return flow


def _apply(flow, site):
    layer = site.layer
    args, kwargs = site.args
    flags = tree.flatten((args, {name: value for name, value in kwargs.items() if name != "use_causal_mask"}))
    if isinstance(layer, layers.Layer) and type(layer) not in ALIKE_IN_TRAINING and any(leaf is True for leaf in flags):
        return flow.stop(site, f"{site.describe()} is called as in training, always")
    if type(layer) is layers.TimeDistributed:
        return _in_time(flow, site)
    rule = RULES.get(type(layer))
    if rule is None and not isinstance(layer, keras.layers.Layer) and type(layer).__module__.startswith("keras."):
        rule = OPERATIONS.get(type(layer).__name__)
    if rule is None or getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        return flow.stop(site, f"{site.describe()} reads it, and is not known to keep channels apart")
    return rule(flow, site)


def _in_time(flow, site):
    """The wrapped layer on one step, which lacks axis 1; channels along that axis are followed no further."""
    reason = f"{site.describe()} runs along it"
    states = [
        flow.release(state, reason) if isinstance(state, Channels) and len(shape) + state.axis == 1 else state for shape, state in zip(site.shapes, site.states)
    ]
    inside = dataclasses.replace(
        site,
        layer=site.layer.layer,
        path=f"{site.path}/{site.layer.layer.name}",
        shapes=[shape[:1] + shape[2:] for shape in site.shapes],
        states=states,
        output_shape=site.output_shape[:1] + site.output_shape[2:],
    )
    return _apply(flow, inside)


def reasons_to_stay(calls: Trace, flow: Flow) -> dict[int, str]:
    """Why channels cannot be removed by setting weights to zero, by root.

    Beside those that the flow found, these are channels that count even so: an activation leaves a constant that a layer behind cannot take.
    """
    imagined, reasons = follow(calls, flow), flow.reasons()
    roots = imagined.roots()
    for use in imagined.uses.values():
        keeps = ~np.isfinite(use.values) if use.mixing.folds else use.values != 0
        for channel in roots[use.inputs[keeps]].tolist():
            reasons.setdefault(channel, f"with zero weights it is still not zero at {use.path!r}, where its constant cannot move into the bias")
    return reasons


def grouped(flow: Flow, reasons: dict[int, str]) -> list[ChannelGroup]:
    """The channels of a flow, those with the same members together."""
    roots, places = flow.roots(), {}
    axes = list(flow.axes.values())
    for number, axis in enumerate(axes):
        for place, channel in enumerate(roots[axis.ids].tolist()):
            places.setdefault(channel, {}).setdefault(number, []).append(place)
    alike = {}
    for channel in sorted(places):
        kind = tuple((number, len(where)) for number, where in places[channel].items())
        alike.setdefault((kind, reasons.get(channel)), []).append(channel)
    return [
        ChannelGroup(
            len(channels),
            tuple(
                Member(
                    axes[number].layer,
                    axes[number].path,
                    axes[number].variable,
                    axes[number].axis,
                    np.array([places[channel][number] for channel in channels]),
                    axes[number].role,
                )
                for number, _ in kind
            ),
            reason,
        )
        for (kind, reason), channels in alike.items()
    ]
