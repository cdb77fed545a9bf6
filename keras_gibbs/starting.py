"""The values that weights are built with, where a method wants others than their initializers give."""

import contextlib

from keras_gibbs.methods.traits import LearnsMasks
from keras_gibbs.structure.graph import walk
from keras_gibbs.structure.prunable import rows_of


@contextlib.contextmanager
def prepared_starts(layer, method):
    """While this lasts, `layer` builds its weights as the method prepares what their initializers give.

    A layer may be built where no variable has a value yet: in the first step of a subclassed model.
    """
    changed = []
    if isinstance(method, LearnsMasks):
        for part in walk(layer):
            for name in rows_of(part):
                attribute = "depthwise_initializer" if "Depthwise" in type(part).__name__ else _INITIALIZERS[name]
                initializer = getattr(part, attribute, None)
                if initializer is not None and method.replaces(_Unbuilt(part)):
                    changed.append((part, attribute, initializer))
    for part, attribute, initializer in changed:
        setattr(part, attribute, lambda shape, dtype=None, given=initializer: method.prepare(given(shape, dtype=dtype)))
    try:
        yield
    finally:
        for part, attribute, initializer in changed:
            setattr(part, attribute, initializer)


class _Unbuilt:
    """A weight that is not there yet: of a `Prunable` only its owner."""

    def __init__(self, owner):
        self.owner = owner


_INITIALIZERS = {
    "kernel": "kernel_initializer",
    "recurrent_kernel": "recurrent_initializer",
    "embeddings": "embeddings_initializer",
    "reverse_embeddings": "embeddings_initializer",
    "depthwise_kernel": "depthwise_initializer",
    "pointwise_kernel": "pointwise_initializer",
}
