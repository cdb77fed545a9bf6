"""What an optimizer of tf_keras remembers of a weight."""

import numpy as np
import tensorflow as tf


def clear_slots(optimizer, trainable: list, variable, where: np.ndarray) -> None:
    """Set what `optimizer` remembers of some entries of a weight, momentum and the like, to 0.

    Args:
        optimizer: A tf_keras optimizer, of the old kind or the new, which names a slot after its weight.
        trainable: The trainable variables it was built with.
        variable: The weight, one of them.
        where: bool in the shape of the weight, True where the slots are cleared.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(optimizer, "get_slot_names"):
        slots = [optimizer.get_slot(variable, name) for name in optimizer.get_slot_names()]
    else:
        twins, named = [id(own) for own in trainable if own.name == variable.name and own.shape == variable.shape], {}
        for slot in optimizer.variables:
            if slot.name.endswith(f"/{variable.name}") and slot.shape == variable.shape:
                named.setdefault(slot.name, []).append(slot)
        slots = [same[twins.index(id(variable))] for same in named.values() if len(same) == len(twins)]
    for slot in slots:
        slot.assign(tf.where(where, tf.zeros_like(slot), slot))
