"""What an optimizer remembers of a weight."""

import keras
import numpy as np
from keras import ops


def clear_slots(optimizer: keras.optimizers.Optimizer, trainable: list, variable, where: np.ndarray) -> None:
    """Set what `optimizer` remembers of some entries of a weight, momentum and the like, to 0.

    Keras names a slot after the path of its weight, which several weights of a model may share: the slots of these come in their order.

    Args:
        optimizer: A built optimizer.
        trainable: The trainable variables it was built with.
        variable: The weight, one of them.
        where: bool in the shape of the weight, True where the slots are cleared.
    """
    twins = [id(own) for own in trainable if own.path == variable.path and own.shape == variable.shape]
    prefix, slots = f"{variable.path.replace('/', '_')}_", {}
    for slot in optimizer.variables:
        if slot.path.rpartition("/")[2].startswith(prefix) and tuple(slot.shape) == tuple(variable.shape):
            slots.setdefault(slot.path, []).append(slot)
    for named in slots.values():
        if len(named) == len(twins) and id(variable) in twins:
            slot = named[twins.index(id(variable))]
            value = ops.convert_to_tensor(slot)
            slot.assign(ops.where(where, ops.zeros_like(value), value))
