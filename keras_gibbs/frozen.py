"""A wrapper for the layers whose weights stay as they are while masks are learned elsewhere in the model."""

import keras

from keras_gibbs.configuration import register
from keras_gibbs.structure.copying import Plain


@register
class Frozen(keras.layers.Wrapper):
    """Runs a layer as it is, and keeps the optimizer from its weights.

    Unlike `layer.trainable = False` this leaves a BatchNormalization in its training mode: its statistics still move. `strip_pruning` takes the wrapper
    away and gives the layer back as trainable as it was.

    Args:
        layer: Any layer.
        **kwargs: `name` and `trainable`, the layer's own by default.

    Example:

    >>> still = Frozen(keras.layers.BatchNormalization())
    """

    wraps_for_pruning = True

    def __new__(cls, layer=None, *args, **kwargs):
        return layer if Plain.is_on else super().__new__(cls, layer, *args, **kwargs)

    def __init__(self, layer, **kwargs):
        super().__init__(layer, **({"name": layer.name, "trainable": layer.trainable} | kwargs | {"dtype": "float32"}), autocast=False)
        self.supports_masking = layer.supports_masking
        if layer.built:
            self.build()

    def build(self, input_shape=None):
        super().build(input_shape)
        self.freeze()
        self.built = True

    def freeze(self) -> None:
        """Hold the layer's weights still."""
        for variable in self.layer.trainable_variables:
            variable.trainable = False

    def call(self, inputs, *args, **kwargs):
        return self.layer(inputs, *args, **kwargs)

    def compute_output_spec(self, inputs, *args, **kwargs):
        return self.layer.compute_output_spec(inputs, *args, **kwargs)

    def get_config(self):
        config = super().get_config()
        config.pop("dtype", None)
        return config

    def get_build_config(self):
        return self.layer.get_build_config()

    def build_from_config(self, config):
        self.layer.build_from_config(config)
        self.build()
