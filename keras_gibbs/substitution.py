"""Call a layer as if its variables had other values."""

import keras
from keras import ops


def call_with(layer, values, args, kwargs):
    """Call `layer` as if its variables had other values; nothing is written.

    Args:
        layer: A built layer.
        values: List of (variable, value).
        args, kwargs: Of its call.

    Returns:
        The outputs; the losses that the call added; and the list of (variable, value before, value after) of the variables it has assigned.
    """
    # Every variable is named: a nested scope does not fall through to the outer one.
    given = {id(own): (own, own.value) for own in layer.variables} | {id(own): (own, value) for own, value in values}
    with _Scope(state_mapping=list(given.values()), collect_losses=True) as scope:
        outputs = layer(*args, **kwargs)
    after = [(own, value, scope.get_current_value(own)) for own, value in given.values()]
    return outputs, scope.losses, [(own, before, now) for own, before, now in after if now is not before]


def with_removed(weight, masked, assigned):
    """What a layer that assigns a weight of its own in its call, which saw it `masked`, leaves of the whole `weight`: what is removed is scaled alike."""
    scale = ops.norm(assigned) / ops.maximum(ops.norm(masked), 1e-30)
    return ops.where(ops.equal(masked, 0), weight * scale, assigned)


class _Scope(keras.StatelessScope):
    """A stateless scope in which a layer that assigns a trained weight in its call gets the gradient that it gets outside of one."""

    def add_update(self, update):
        variable, value = update
        if variable.trainable and keras.backend.backend() == "tensorflow":  # the gradient of a variable there is that at its new value
            before = self.get_current_value(variable)
            update = variable, ops.stop_gradient(value) + (before - ops.stop_gradient(before))
        super().add_update(update)
