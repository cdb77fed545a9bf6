"""The variables of an optimizer: when they are made, and what they remember of a weight."""

import keras
import numpy as np
from keras import ops

from keras_gibbs.structure.graph import walk


def build_early(model: keras.Model) -> None:
    """Let the optimizer of a compiled model make its variables before the first training step.

    Keras makes them within that step where it has to; TensorFlow then traces an initial value for each and lifts it out of the graph, which takes about a
    tenth of the time that a mobile network needs to come to its first step.
    """
    optimizer, own_step = getattr(model, "optimizer", None), type(model).train_step is not keras.Model.train_step
    if optimizer is None or optimizer.built or own_step or not all(layer.built for layer in walk(model)):
        return
    if variables := model.trainable_variables:
        optimizer.build(variables)


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
