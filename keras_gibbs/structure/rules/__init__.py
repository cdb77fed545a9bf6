"""What each layer and operation does with channels: one table by class, one by the names of the operations of `keras.ops`."""

from keras_gibbs.structure.rules import attention, convolutions, dense, merging, pointwise, spatial

RULES = {**dense.RULES, **convolutions.RULES, **pointwise.RULES, **spatial.RULES, **merging.RULES, **attention.RULES}
OPERATIONS = merging.OPERATIONS
