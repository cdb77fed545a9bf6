"""Which channels of a model are decided on together, and what of each layer goes with them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_gibbs.coupling.places import Places, packed, stacked
from keras_gibbs.structure import graph
from keras_gibbs.structure.channels import ChannelGroup, channel_groups
from keras_gibbs.structure.kinds import is_a
from keras_gibbs.structure.layouts import coupled_layout
from keras_gibbs.structure.prunable import ATTENTION, Prunable, prunable_weights

NOT_SELECTED = "not selected"
NO_HEADS = "it makes no heads"
NOT_FOLLOWED = "the heads of this attention are not followed: its scores are outputs, say, or its mask is one of every head"
BY_HEADS = "its outputs are heads, which `Head()` removes"
CARRIED = "it loses the channels that it reads, and makes none of its own"


@dataclasses.dataclass(frozen=True)
class CoupledPrunable(Prunable):
    """Channels that several weights make, as one weight `(weights of a channel, channels)`: theirs stand one below the other.

    Attributes:
        size: How many channels.
        makers: The variables that make them, each with their `Places`; none where these are not known yet.
        path, owner, name, variable: Those of the first weight that makes them.
        layout: That of the matrix; `layout.rows` says how many rows each weight has.
    """

    size: int = 0
    makers: tuple = ()

    @property
    def shape(self):
        return sum(self.layout.rows), self.size

    def value(self):
        return stacked(self.makers)


@dataclasses.dataclass(frozen=True)
class Part:
    """A variable of a layer of which slices go with channels.

    Attributes:
        variable: Its path from below the layer.
        axis: The axis along which channels run.
        makes: Whether it makes the channels, and does not only follow them.
        groups: For each set of channels a list of its path, the number of this variable among those that make it (-1 where it follows), and the places of the
            channels along the axis, `packed`.
    """

    variable: str
    axis: int
    makes: bool
    groups: list


@dataclasses.dataclass
class LayerPlan:
    """What happens to one layer.

    Attributes:
        path: Its path in the model.
        owned: The channels on which it decides.
        parts: The variables that go with these or others.
    """

    path: str
    owned: list[CoupledPrunable]
    parts: list[Part]

    def arguments(self) -> dict:
        """What a `CoupledLayer` takes of this, as JSON."""
        owned = [{"path": weight.path, "size": weight.size, "rows": list(weight.layout.rows)} for weight in self.owned]
        return {"owned": owned, "parts": [dataclasses.asdict(part) for part in self.parts]}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a model is pruned by channels.

    Attributes:
        layers: What happens to a layer, by the id of the layer that is wrapped.
        skipped: Why a weight that makes channels is left as it is, by its path.
    """

    layers: dict[int, LayerPlan]
    skipped: dict[str, str]

    @property
    def weights(self) -> list[CoupledPrunable]:
        """All that is decided on."""
        return [weight for layer in self.layers.values() for weight in layer.owned]


def plan(model: keras.Model, selected: Callable[[str, Any], bool], of_heads: bool = False) -> Plan:
    """How a built Sequential or Functional model is pruned by channels, or by heads, where `selected` says which weights by their path and owner."""
    leaves = {id(variable): leaf for leaf in graph.leaves(model) for variable in leaf.weights}
    leaf_paths = {id(layer): path for path, layer in graph.named_walk(model)}
    paths, groups = variable_paths(model), channel_groups(model)
    owners = {id(variable): part for part in graph.walk(model) for variable in part.weights}  # the innermost layer, which comes last
    skipped = _why_kept(model, groups, paths, of_heads)
    layers, places = {}, {}
    for path, group in _removable(groups, paths, of_heads).items():
        makers = group.of_role("produces")
        if reason := _why_not_selected(makers, paths, owners, selected):
            skipped |= {paths[id(member.variable)]: reason for member in makers}
            continue
        for member in makers + group.of_role("follows"):
            number = makers.index(member) if member in makers else -1
            key = (id(member.variable), member.axis)
            places.setdefault(key, (member, []))[1].append([path, number, packed(member.indices)])
        first = makers[0]
        places_of = [(member.variable, Places(tuple(member.variable.shape), member.axis, member.indices)) for member in makers]
        layout = coupled_layout(tuple(each.rows for _, each in places_of))
        weight = CoupledPrunable(path, owners[id(first.variable)], first.variable.name, first.variable, layout, group.size, tuple(places_of))
        _plan_of(layers, leaves[id(first.variable)], leaf_paths).owned.append(weight)
    for member, groups in places.values():
        leaf = leaves[id(member.variable)]
        local = paths[id(member.variable)][len(leaf_paths[id(leaf)]) + 1 :]
        if member.role == "produces":
            skipped.pop(paths[id(member.variable)], None)
        _plan_of(layers, leaf, leaf_paths).parts.append(Part(local, member.axis, member.role == "produces", groups))
    return Plan(layers, skipped)


def _plan_of(layers, leaf, paths):
    return layers.setdefault(id(leaf), LayerPlan(paths[id(leaf)], [], []))


def removable_groups(model: keras.Model) -> dict[str, ChannelGroup]:
    """The channels and heads of a model that can be removed, by the path of the first weight that makes them; a second group of that weight gets `_1`."""
    return _removable(channel_groups(model), variable_paths(model))


def _removable(groups, paths, of_heads=None):
    names = set()
    groups = [(group.of_role("produces"), group) for group in groups if group.reason is None]
    named = {graph.unique(paths[id(makers[0].variable)], names): group for makers, group in groups if makers}
    return {path: group for path, group in named.items() if of_heads in (None, _is_of_heads(group))}


def _is_of_heads(group):
    return is_a(group.of_role("produces")[0].layer, *ATTENTION)


def _why_kept(model, groups, paths, of_heads):
    """Why weights keep their channels, by path, as if each did; a weight of which some can be removed is among them."""
    if of_heads:
        attention = [path for path, layer in graph.named_walk(model) if is_a(layer, *ATTENTION)]
        own = [f"{path}/{part}/kernel" for path in attention for part in ("query", "key", "value")]
        reasons = {weight.path: NOT_FOLLOWED if weight.path in own else NO_HEADS for weight in prunable_weights(model)}
    else:
        reasons = {weight.path: f"the channels of {type(weight.owner).__name__} are not followed" for weight in prunable_weights(model)}
        reasons |= {weight.path: CARRIED for weight in prunable_weights(model) if not weight.layout.inputs}
    for group in groups:
        reasons |= {path: CARRIED for member in group.of_role("carries") if (path := paths[id(member.variable)]) in reasons}
    for group in groups:
        makers = group.of_role("produces")
        if makers and _is_of_heads(group) != of_heads:
            reasons |= {paths[id(member.variable)]: NO_HEADS if of_heads else BY_HEADS for member in makers}
        elif group.reason is not None:
            reasons |= {paths[id(member.variable)]: group.reason for member in makers}
    return reasons


def _why_not_selected(makers, paths, owners, selected):
    variables = [id(member.variable) for member in makers]
    left = [paths[variable] for variable in variables if not selected(paths[variable], owners[variable])]
    if not left:
        return None
    return NOT_SELECTED if len(left) == len(makers) else f"its channels are also those of {left[0]!r}, which `where` leaves out"


def variable_paths(layer, root: str = "") -> dict[int, str]:
    """The paths of all variables of a built layer or model, by their ids: the names of the layers down to the one that owns it, and its own."""
    return {id(variable): f"{path}/{variable.name}" if path else variable.name for path, part in graph.named_walk(layer, root) for variable in part.weights}


def why_kept(model: keras.Model, of_heads: bool) -> dict[str, str]:
    """Why the channels that a weight makes cannot be removed, by its path, in any model, pruned or not; where some can be, it is not among them."""
    paths, groups = variable_paths(model), channel_groups(model)
    free = {paths[id(member.variable)] for group in _removable(groups, paths, of_heads).values() for member in group.of_role("produces")}
    return {path: reason for path, reason in _why_kept(model, groups, paths, of_heads).items() if path not in free}
