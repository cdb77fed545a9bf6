"""Sums and means over the replicas of a `tf.distribute` strategy; on JAX arrays are global, and there is nothing to do."""

import keras

from keras_gibbs.typing import Tensor


def _context():
    """The context of a step that several replicas make together; None elsewhere."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def mean_over_replicas(value: Tensor) -> Tensor:
    """The mean over the replicas, the same on all of them."""
    context = _context()
    return value if context is None else context.all_reduce("MEAN", value)


def sum_over_replicas(value: Tensor) -> Tensor:
    """The sum over the replicas, the same on all of them."""
    context = _context()
    return value if context is None else context.all_reduce("SUM", value)
