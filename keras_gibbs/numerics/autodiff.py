"""Gradients of a scalar function, and compiled functions of tensors, on TensorFlow and JAX."""

from collections.abc import Callable

import keras

from keras_gibbs.typing import Tensor


def gradients(function: Callable[[list[Tensor]], Tensor], values: list[Tensor]) -> list[Tensor]:
    """The gradients of `function(values)`, a scalar, with respect to every tensor in `values`; zeros where it does not depend on one.

    Calls nest: the gradients of a function that calls `gradients` are second derivatives.

    Raises:
        ValueError: On another backend than TensorFlow and JAX.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.grad(function)(values)
    if backend == "tensorflow":
        import tensorflow as tf

        values = [tf.convert_to_tensor(value) for value in values]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            result = function(values)
        return tape.gradient(result, values, unconnected_gradients="zero")
    raise ValueError(f"Scores on data need gradients, which are there on TensorFlow and JAX. Received: the {backend} backend.")


def traced(function: Callable) -> Callable:
    """`function`, a pure function of nested tensors, compiled once for every shape of its arguments."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    compiled = tf.function(function, autograph=False, reduce_retracing=False)
    return lambda *args: compiled(*tf.nest.map_structure(tf.convert_to_tensor, args))
