"""A functional model around a subclassed one, so that it is wrapped, trained, saved and stripped like any other."""

import keras

from keras_gibbs.configuration import register
from keras_gibbs.layers import Pruned
from keras_gibbs.structure.building import build_for, call_of, inputs_for, zero_starts
from keras_gibbs.structure.copying import carry_attributes, from_config, transfer

STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


@register
class Holder(keras.Model):
    """Holds a subclassed model, wrapped as a whole in `Pruned`; `prune` makes it, and `strip_pruning` gives back a model of the class that it holds.

    Args:
        inputs, outputs, name, **kwargs: As for `keras.Model`.
    """

    holds_one_model = True

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)

    @property
    def held(self) -> Pruned:
        """The wrapper around the subclassed model."""
        return next(layer for layer in self.layers if isinstance(layer, Pruned))


def hold(model: keras.Model, wrap, data=None) -> Holder:
    """A pruned copy of a built subclassed model.

    Args:
        model: The model; it is not changed.
        wrap: From a copy of it, which is not built, to the wrapper around that.
        data: A batch `x`, or `(x, y)`, that gives the dtypes of its inputs; float32 by default.

    Returns:
        The holder, with the weights of `model`.

    Raises:
        ValueError: Where the model has training steps of its own, or cannot be copied from its configuration.
    """
    own = [name for name in STEPS if getattr(type(model), name, None) is not getattr(keras.Model, name, None)]
    if own:
        raise ValueError(
            f"The subclassed model {type(model).__name__!r} has a {own[0]!r} of its own, which a functional model around it would not run. {CONSTRUCTOR_FORM}"
        )
    copy, call = plain_copy(model, CONSTRUCTOR_FORM, data)
    wrapper = wrap(copy)
    inputs, args, kwargs = inputs_for(call)
    with zero_starts(copy):
        holder = Holder(inputs, wrapper(*args, **kwargs), name=model.name)
    transfer(model, copy)
    carry_attributes(model, copy)
    return holder


def plain_copy(model, way_out: str, data=None):
    """A copy of a subclassed model from its configuration, not built, and the call that builds it; an error names the `way_out`."""
    try:
        copy = from_config(model)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"The subclassed model {type(model).__name__!r} cannot be copied from its configuration: {error} Give it a `get_config` that returns the arguments "
            f"of its constructor. {way_out}"
        ) from error
    call = call_of(model, _dtypes(data))
    if call is None:
        raise ValueError(f"Keras does not know the inputs of the subclassed model {type(model).__name__!r}. Call it once on a batch of data first.")
    return copy, call


def strip_subclassed(model):
    """A copy of a subclassed model, built, with its weights and without wrappers."""
    holder = model if isinstance(model, Holder) else None
    inner = holder.held.layer if holder else model
    if holder:
        copy, call = from_config(inner), holder.held.call_specs
    else:
        copy, call = plain_copy(inner, WITHOUT_WRAPPERS)
    with zero_starts(copy):
        build_for(copy, call)
    transfer(inner, copy)
    carry_attributes(inner, copy)
    return inner, copy


CONSTRUCTOR_FORM = (
    "Wrap its layers where its constructor makes them:\n\n    self.dense = keras_gibbs.Pruned(keras.layers.Dense(128), keras_gibbs.Gibbs(sparsity=0.9))\n\n"
    "or prune the parts that it is made of: `GAN(keras_gibbs.prune(discriminator, method), generator)`."
)


WITHOUT_WRAPPERS = (
    "Or build the model once more without the wrappers, and give each layer the weights of `keras_gibbs.strip_pruning(wrapped_layer)`."
)


def _dtypes(data):
    if data is None:
        return None
    x = data[0] if isinstance(data, tuple) else data
    return keras.tree.map_structure(lambda part: keras.backend.standardize_dtype(part.dtype), x)
