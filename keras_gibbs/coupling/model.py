"""The model whose layers are pruned by channels."""

import keras

from keras_gibbs.configuration import register
from keras_gibbs.coupling.layers import CoupledLayer
from keras_gibbs.coupling.weights import CoupledWeight, Drawn, running_with
from keras_gibbs.structure.graph import walk


@register
class CoupledModel(keras.Model):
    """A functional model whose layers share the masks of channels; `prune` makes it, for `Filter(coupled=True)`.

    Every call first draws one mask for each set of channels, and all layers that make or follow these run under it.

    Args:
        inputs, outputs, name, **kwargs: As for `keras.Model`.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.sequential = False  # True where the model that was pruned was a Sequential
        link(self)

    @classmethod
    def of(cls, pruned: keras.Model) -> "CoupledModel":
        """The linked form of a model whose layers are wrapped."""
        sequential = isinstance(pruned, keras.Sequential)
        model = cls(pruned.inputs[0], pruned.outputs[0], name=pruned.name) if sequential else cls(pruned.input, pruned.output, name=pruned.name)
        model.sequential = sequential
        if not pruned.trainable:
            model.trainable = False
        return model

    def plain(self) -> keras.Model:
        """The same layers as an ordinary functional model."""
        model = keras.Model(self.input, self.output, name=self.name)
        if not self.trainable:
            model.trainable = False
        return model

    def call(self, inputs, training=None, mask=None):
        with running_with(drawn_in(self, training)):
            return super().call(inputs, training=training, mask=mask)

    def get_config(self):
        return {**super().get_config(), "sequential": self.sequential}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        sequential = config.pop("sequential", False)
        model = super().from_config(config, custom_objects=custom_objects)
        model.sequential = sequential
        return model


def coupled_layers(model) -> list[CoupledLayer]:
    """The layers of a model that are pruned by channels, of any depth, each once."""
    return [layer for layer in walk(model) if isinstance(layer, CoupledLayer)]


def drawn_in(model, training: bool) -> dict[int, Drawn]:
    """What a call of the model runs with, by the id of the `CoupledWeight`."""
    return {key: drawn for layer in coupled_layers(model) for key, drawn in layer.draw(training).items()}


def link(model: keras.Model) -> None:
    """Tell the layers of a model which of them hold the masks of their channels, and these what they mask."""
    layers = coupled_layers(model)
    holders: dict[str, tuple[CoupledLayer, CoupledWeight]] = {masked.path: (layer, masked) for layer in layers for masked in layer.masked_weights}
    if len(holders) < sum(len(layer.masked_weights) for layer in layers):
        raise ValueError(
            f"Model {model.name!r} has several copies of a layer that holds the mask of some channels: Keras has not kept that two models share one. "
            "From a file, prune the model as before and call `load_weights` with the file; `keras.models.clone_model` keeps it with `recursive=True`."
        )
    makers, followers = {path: {} for path in holders}, {path: [] for path in holders}
    for layer in layers:
        for part, variable, groups in layer.places():
            for path, number, places in groups:
                if path not in holders:
                    raise ValueError(f"Layer {layer.name!r} shares the mask of {path!r}, which model {model.name!r} does not have. Keep both in one model.")
                if part.makes:
                    makers[path][number] = (variable, places)
                else:
                    followers[path].append((variable, places))
    for path, (layer, masked) in holders.items():
        masked.link(layer, [makers[path][number] for number in sorted(makers[path])], followers[path])
    for layer in layers:
        layer.link({path: masked for path, (_, masked) in holders.items()})
