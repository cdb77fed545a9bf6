"""The wrapper of a layer whose weights go with channels of its model."""

import dataclasses

import keras
from keras import ops

from keras_gibbs.configuration import register
from keras_gibbs.coupling.places import Places, spread, unpacked
from keras_gibbs.coupling.plan import CoupledPrunable, Part, variable_paths
from keras_gibbs.coupling.weights import CoupledWeight, Drawn
from keras_gibbs.layers import Pruned
from keras_gibbs.structure.graph import walk
from keras_gibbs.structure.layouts import coupled_layout
from keras_gibbs.typing import Tensor


@register
class CoupledLayer(Pruned):
    """Runs a layer under masks of channels, which it shares with other layers of its model; `prune` makes it, for `Filter(coupled=True)`.

    Kernels that make channels are masked, and what follows these: biases, and the scales and offsets of a BatchNormalization. The layer that makes a set of
    channels first holds the state of their masks; the model links the others to it.

    Args:
        layer, method, **kwargs: As for `Pruned`.
        owned: The sets of channels whose state the layer holds, a list of dicts: `path`, `size` (how many channels), `rows` (how many weights of each
            variable make one).
        parts: What of the layer goes with channels, a list of dicts with the fields of a `Part`.
    """

    weight_class = CoupledWeight

    def __init__(self, layer, method, *, owned=(), parts=(), **kwargs):
        self._owned, self._parts = [dict(each) for each in owned], [Part(**part) for part in parts]
        self._linked = []
        super().__init__(layer, method, **{name: value for name, value in kwargs.items() if name not in ("only", "sites")})

    def _check_layer(self, layer):
        pass  # a layer without weights that can be pruned may have some that follow others

    def _chosen(self):
        first = {path: part.variable for part in self._parts for path, number, _ in part.groups if number == 0}
        variables = self.variables_by_path()
        owners = {id(variable): part for part in walk(self.layer) for variable in part.weights}
        weights = []
        for each in self._owned:
            variable = variables[first[each["path"]]]
            layout = coupled_layout(tuple(each["rows"]))
            weights.append(CoupledPrunable(each["path"], owners[id(variable)], variable.name, variable, layout, each["size"]))
        return weights

    def variables_by_path(self) -> dict:
        """The variables of the layer that is wrapped, by their paths from below it."""
        by_id = {id(variable): variable for variable in self.layer.weights}
        return {path: by_id[key] for key, path in variable_paths(self.layer).items()}

    # Links.

    def places(self):
        """Where channels stand in the layer: for each of its parts the variable, and for each set of channels its path, number and `Places`."""
        variables = self.variables_by_path()
        for part in self._parts:
            variable = variables[part.variable]
            yield part, variable, [(path, number, Places(tuple(variable.shape), part.axis, unpacked(at))) for path, number, at in part.groups]

    def link(self, weights: dict[str, CoupledWeight]) -> None:
        """Tell the layer which weights hold the masks of its channels, by their paths."""
        self._linked = [
            _Linked(
                self._whole_path(part.variable),
                variable,
                part.makes,
                tuple(weights[path] for path, _, _ in groups),
                tuple(number for _, number, _ in groups),
                tuple(places for _, _, places in groups),
            )
            for part, variable, groups in self.places()
        ]

    def _whole_path(self, local):
        return f"{self.path_in_model}/{local}" if self.path_in_model else local

    @property
    def members(self):
        return [part for part in self.parts if part.makes] or self.parts

    @property
    def parts(self) -> list["_Linked"]:
        """The variables that go with channels."""
        return self._linked

    def masks(self, training=False):
        self._require_built()
        masks = {part.path: part.sample() if training else part.mask() for part in self.members}
        if training:
            self._next_draw()
        return masks

    # Running the layer.

    @property
    def next_draw(self) -> Tensor:
        """The number of the next draw."""
        return self._draw()

    def draw(self, training: bool) -> dict[int, Drawn]:
        """What a call of the whole model runs with, of the channels whose state the layer holds, by the id of their weight."""
        if training:
            number = self._next_draw()
            drawn = {id(masked): masked.draw_to_train(number) for masked in self.masked_weights}
        else:
            drawn = {id(masked): masked.draw_to_infer(self._moved.value) for masked in self.masked_weights}
        self._moved.assign(int(bool(training)))
        return drawn

    def _values(self, training):
        return [(part.variable, part.under([masked.drawn(training) for masked in part.weights])) for part in self._linked]

    def _note_call(self, training):
        pass  # the model draws for all its layers, and takes note

    def note_change(self):
        super().note_change()
        for wrapper in {id(masked.wrapper): masked.wrapper for part in self._linked for masked in part.weights}.values():
            wrapper._moved.assign(1)

    def _merged(self, variable, masked, assigned):
        """A statistic that follows its channels, as BatchNormalization without a scale has one, stays where its channel is removed."""
        return ops.where(ops.equal(masked, 0), variable.value, assigned)

    # Saving.

    def get_config(self):
        config = {**super().get_config(), "owned": [dict(each) for each in self._owned], "parts": [dataclasses.asdict(part) for part in self._parts]}
        return {name: value for name, value in config.items() if name not in ("only", "sites")}


@dataclasses.dataclass(frozen=True, eq=False)
class _Linked:
    """A variable of a layer, and the weights that hold the masks of its channels; where it makes these it stands for itself in every count."""

    path: str
    variable: keras.Variable
    makes: bool
    weights: tuple[CoupledWeight, ...]
    numbers: tuple[int, ...]
    places: tuple[Places, ...]

    bias = None  # which is a part of its own

    @property
    def method(self):
        """The pruning method."""
        return self.weights[0].method

    @property
    def groups(self) -> int:
        """How many channels can be removed."""
        return sum(masked.groups for masked in self.weights)

    def is_short(self, progress: float) -> bool:
        """Whether a channel stays only because the last of a group always does."""
        return all(masked.is_short(progress) for masked in self.weights)

    def under(self, drawn: list[Drawn]):
        """The variable as the layer runs with it."""
        value = ops.convert_to_tensor(self.variable)
        if not self.makes:
            return value * ops.cast(spread(self.places, [each.mask for each in drawn]), value.dtype)
        for each, number, places in zip(drawn, self.numbers, self.places, strict=True):
            value = places.put(value, each.columns[number])
        return value

    def masked(self) -> Tensor:
        """What inference runs with, the mask found anew; 0 is never -0."""
        value = self.under([masked.drawn_last() for masked in self.weights])
        return ops.where(ops.equal(value, 0), ops.zeros_like(value), value)

    def mask(self) -> Tensor:
        """The deterministic mask, found anew; float32, in the variable's shape."""
        return self._over([masked.masks.mode(masked.value(), masked.values()) for masked in self.weights])

    def sample(self) -> Tensor:
        """A mask drawn from the current state, the next one; float32, in the variable's shape."""
        return self._over([masked.sample(masked.wrapper.next_draw)[0] for masked in self.weights])

    def _over(self, masks):
        masks = [ops.reshape(mask, (-1,)) for mask in masks]
        return ops.broadcast_to(spread(self.places, masks), self.variable.shape)
