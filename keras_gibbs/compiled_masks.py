"""The functions of `Masks` as they run: compiled or traced once for weights of many shapes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from keras import ops, tree

from keras_gibbs.masks import AnyLength, Masks
from keras_gibbs.numerics.compilation import compiled, traced_for_any_length
from keras_gibbs.numerics.rows import LONGEST, lengthened, reported_length, row_length, shortened
from keras_gibbs.structure.layouts import Layout
from keras_gibbs.typing import State, Tensor


@functools.lru_cache(maxsize=1024)
def compiled_masks(masks: Masks, function: str) -> Callable:
    """`masks.<function>`, compiled; weights of one kind share it, and with it the time that takes.

    It stays when the models that used it go: a search that prunes one model after the other compiles once. TensorFlow keeps what XLA has compiled until the
    process ends, whoever still refers to it, so that only sharing bounds the memory of many trials.
    """
    return compiled(getattr(masks, function))


@functools.lru_cache(maxsize=1024)
def traced_masks(masks: Masks, function: str, kind: tuple) -> Callable:
    """`masks.<function>` of rows of any length, traced for a `kind` of weight: its dtype and the names of its state."""
    return traced_for_any_length(getattr(masks, function))


class CompiledMasks:
    """The functions of `Masks`, compiled: for rows of a few lengths where the method allows it, so that weights of many shapes share them.

    Args:
        masks: The `Masks` of a weight.
    """

    def __init__(self, masks: Masks):
        method = masks.method.without_numbers()
        self._own, self._shape, self._size = masks, masks.shape, math.prod(masks.shape)
        self._length = row_length(self._size) if method.lengthens and self._size <= LONGEST else None
        self._masks = _of_row(method, self._length) if self._length else dataclasses.replace(masks, method=method)

    def __call__(self, function: str, weight: Tensor, state: State, *args):
        """`masks.<function>(weight, state, *args)`."""
        run = compiled_masks(self._masks, function)
        if not self._length:
            return run(weight, state, *args)
        row = lengthened(ops.reshape(weight, (-1,)), self._length)
        args = [lengthened(x, self._length, axis=2) if len(x.shape) == 4 else x for x in args]
        return tree.map_structure(self._restore, run(row, self._masks.method.lengthen(state, self._size, self._length), *args))

    def infer_small(self, weight: Tensor, state: State, moved: Tensor) -> tuple[Tensor, State]:
        """`masks.infer_small(weight, state, moved)`, traced once for weights of every length where the method allows it: few operations in the graph."""
        if not self._length:
            return self._own.infer_small(weight, state, moved)
        state = {name: value for name, value in state.items() if name not in self._masks.method.sampled}  # each is a variable that the graph reads
        run = traced_masks(_of_row(self._masks.method, 0, AnyLength), "infer_small", (weight.dtype, *state))
        row, updates = run(ops.reshape(weight, (-1,)), state, moved)
        return ops.reshape(row, self._shape), updates

    def report(self, function: str, weight: Tensor, state: State, *args):
        """`masks.<function>(weight, state, *args)`, which gives scalars, now: for rows of fewer lengths, which are made on the host."""
        if not self._length:
            return self(function, weight, state, *args)
        method, length = self._masks.method, reported_length(self._size)
        row = lengthened(ops.convert_to_numpy(weight).reshape(-1), length)
        state = method.lengthen(tree.map_structure(ops.convert_to_numpy, state), self._size, length)
        return compiled_masks(_of_row(method, length), function)(row, state, *args)

    def in_parts(self, function: str, weight: Tensor, state: State, *args) -> Iterator[tuple[int, Any]]:
        """`masks.<function>(weight, state, *args, start)` of one part of the weight after the other, each with its size: rows, if the method allows them.

        Without a copy of the weight, and without a function that is compiled for its size alone.
        """
        row = ops.reshape(weight, (-1,))
        for start in range(0, self._size, LONGEST):
            size = min(LONGEST, self._size - start)
            part = {name: ops.slice(x, (0, 0, start, 0), (*x.shape[:2], size, x.shape[3])) if len(x.shape) == 4 else x for name, x in state.items()}
            if "cut_index" in part:
                part["cut_index"] = part["cut_index"] - start
            run = CompiledMasks(_of_row(self._masks.method, size))
            yield size, run(function, ops.slice(row, (start,), (size,)), part, *args, ops.convert_to_tensor(np.int32(start)))

    def _restore(self, x):
        if len(x.shape) == 1:
            return ops.reshape(shortened(x, self._size), self._shape)
        return shortened(x, self._size, axis=2) if len(x.shape) == 4 else x


def _of_row(method, length, kind=Masks):
    return kind(method, (length,), Layout((), (), (0,)))
