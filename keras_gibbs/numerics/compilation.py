"""Compile a pure function with XLA, on any backend and inside any other compiled function."""

import functools
import os

import keras
import numpy as np


def compiled(function):
    """Fuse `function`, a pure function of tensors, into one compiled kernel.

    On TensorFlow a train function is compiled by XLA only where the user asked for it, and without fusion every elementwise operation
    of a mask is a pass of its own over memory. A nested `tf.function(jit_compile=True)` fuses them wherever it is called from: eagerly,
    in a graph, or in a train function that XLA compiles as a whole. On JAX `jax.jit` does the same.

    `KERAS_GIBBS_XLA=0` in the environment turns this off, for a device that TensorFlow runs without XLA: results are the same, only slower.

    Args:
        function: Callable of tensors and nested structures of them; everything else must be bound beforehand.

    Returns:
        A callable with the same signature and results.
    """
    fuse = os.environ.get("KERAS_GIBBS_XLA", "1") != "0"
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # A partial has no code of its own, by which TensorFlow would take the functions of several shapes for one that is traced again and again.
        fused = tf.function(functools.partial(function), jit_compile=True, autograph=False) if fuse else function
        # Tensors, not variables: a function that was traced with a variable of one model would not outlive it, and under a strategy results would be variables.
        return lambda *args: fused(*tf.nest.map_structure(tf.convert_to_tensor, args))
    if backend == "jax" and fuse:
        import jax

        return jax.jit(function)
    return function


def traced_once(*ranks):
    """A decorator: trace a pure function of int32 tensors of these ranks once, for every shape; a call costs a graph one node.

    It is not fused by itself, and serves what is needed now and then for weights of many shapes. No argument should be a constant: TensorFlow makes a copy
    of the function for every call with one, and optimizes each. On JAX, where shapes are fixed, the function as it is.
    """

    def decorate(function):
        @functools.cache
        def traced():
            import tensorflow as tf

            signature = [tf.TensorSpec([None] * rank, tf.int32) for rank in ranks]
            return tf.function(function, input_signature=signature, autograph=False, experimental_attributes={"_noinline": True})

        return lambda *args: (traced() if keras.backend.backend() == "tensorflow" else function)(*args)

    return decorate


def traced_for_any_length(function):
    """Trace a pure function of nested tensors once on TensorFlow, for every length of their longest axes; on JAX, where shapes are fixed, `function` itself.

    Arguments have one axis that is free, the only one of a row and the third of four; a call costs a graph one node. As with `traced_once`, none should be
    a constant.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    free = {0: [], 1: [None], 4: [1, 1, None, 1]}  # by rank
    traced = []

    def call(*args):
        args = tf.nest.map_structure(tf.convert_to_tensor, args)
        if not traced:
            signature = tf.nest.map_structure(lambda x: tf.TensorSpec(free[x.shape.rank], x.dtype), args)
            options = {"input_signature": signature, "autograph": False, "experimental_attributes": {"_noinline": True}}
            traced.append(tf.function(functools.partial(function), **options))
        return traced[0](*args)

    return call


def runs_at_once() -> bool:
    """Whether a single operation outside of a compiled function runs at once; JAX compiles every one for every shape it meets."""
    return keras.backend.backend() != "jax"


def is_known(value) -> bool:
    """Whether the values of a tensor, a variable or a number can be read now: on TensorFlow not while anything is being traced, of a constant neither."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly():
            return False
    if isinstance(value, (int, float, np.generic, np.ndarray)):
        return True
    if backend == "jax":
        import jax

        return not isinstance(value, jax.core.Tracer)
    return not isinstance(value, keras.KerasTensor) and hasattr(value, "numpy")


def on_host(value) -> np.ndarray:
    """The values of a known tensor for NumPy to read: without a copy where both are in the same memory, so never to be written."""
    return np.asarray(value)
