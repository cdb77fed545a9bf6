"""What a phone's runtime makes of a pruned model: which of its convolutions run sparse, which not and why, and what would help."""

import dataclasses
import itertools
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_gibbs.export import tflite_file, xnnpack
from keras_gibbs.export.advice import Advice
from keras_gibbs.export.converter import convert, exportable
from keras_gibbs.export.layouts import Change
from keras_gibbs.export.rewrite import rewrite

# A non-zero weight costs a sparse kernel this many times what a weight costs a dense one: a MobileNet-like network whose 1x1 convolutions are 90 % zero ran
# 3.3 x faster on an emulated ARM64 CPU.
SPARSE_COST = 2.5
OPEN_SIZE = 224  # stands for sizes of the input that are not fixed
_WORTH = 0.05  # a change helps if this share of the multiply-adds more runs sparse

_KINDS = {
    "DEPTHWISE_CONV_2D": "depthwise {}",
    "CONV_2D": "convolution {}",
    "TRANSPOSE_CONV": "transposed convolution {}",
    "CONV_3D": "3D convolution",
    "CONV_3D_TRANSPOSE": "3D transposed convolution",
    "FULLY_CONNECTED": "Dense",
    "BATCH_MATMUL": "matrix product",
}
_TEXTS = {
    Change.PRUNE: "prune the 1x1 convolutions until more than two thirds of their weights are zero (a sparsity of 0.75, say)",
    Change.PADDING: "pad {layers} by `ZeroPadding2D` on each side alike (1 for 3x3, 2 for 5x5), with `padding='valid'`",
    Change.HEAD: "pool by `GlobalAveragePooling2D()` without `keepdims`, and go on with `Dense`, not with 1x1 convolutions",
    Change.END: "end in `GlobalAveragePooling2D()` and `Dense`",
    Change.KEEPDIMS: "pool by `GlobalAveragePooling2D(keepdims=True)` without `Reshape` where the result is multiplied with feature maps",
    Change.STEM: "begin with a 3x3 convolution of three channels with stride 2 behind `ZeroPadding2D(1)`, in place of {layers}",
    Change.STRIDE: "take stride and padding out of {layers}, into the depthwise convolution before it",
    Change.POOLING: "put a depthwise 3x3 convolution with stride 2 in place of {layers}",
    Change.OPERATOR: "do without {layers}",
    Change.SEPARATE: "separate {layers} into a depthwise and a 1x1 convolution",
}


def advise(model: keras.Model, *, full: bool = False) -> Advice:
    """Say which layers of a model a phone's CPU runs sparse, which not and by which rule, what the exporter changes by itself, and what is left to do.

    The model is converted, and XNNPACK's rules are applied to the operators of the file: a 1x1 convolution runs sparse in float32 if it lies between a
    padded 3x3 stem with stride 2 and an average over height and width, if everything in between can work channels first, and if more than two thirds of
    the weights of the 1x1 convolutions there are zero. On x86 CPUs with AVX nothing runs sparse.

    Where such a part ends in something else, its sparse form must not be shipped: LiteRT 2.3.0 takes the wrong order of the data on ARM64. The advice then
    has `fails`, and `export_tflite(encoding="auto")` writes no sparse form of the network as it is.

    What `sparse_ready` can rewrite exactly, `export_tflite` does by itself where it pays: the advice on that network is in `ready`, and `change` is what
    remains to be done by hand.

    Args:
        model: A built Keras model, pruned, stripped or plain. It is not changed. Heights and widths of its input that are open count as 224.
        full: Whether the advice prints a line for every layer, in place of one for every reason.

    Returns:
        An `Advice`.

    Raises:
        ImportError: TensorFlow is not installed.
        RuntimeError: The converter failed.
        TypeError: `model` is no Keras 3 model.
        ValueError: `model` is not built.

    Example:

    >>> print(kg.advise(pruned))

    Reference: google/XNNPACK, src/subgraph.c, `xnn_check_nchw_compatibility` and `xnn_subgraph_rewrite_for_nchw`.
    """
    model = _sized(exportable(model))
    advice = dataclasses.replace(advise_as_it_is(model), full=full)
    try:
        rewritten, report = rewrite(model)
    except ValueError:  # no graph, or one that cannot be followed
        return advice
    ready = advise_as_it_is(rewritten) if report.rows else advice
    if not ready.share > advice.share:
        return advice
    return dataclasses.replace(advice, ready=ready, rewrites=report.summary(), change=ready.change, promised=ready.promised)


def advise_as_it_is(model: keras.Model) -> Advice:
    """`advise` for a model without wrappers, in sizes that are fixed, and without a thought for what could be rewritten."""
    with tempfile.TemporaryDirectory() as folder:
        [(_, content, problem)] = convert(model, Path(folder), ["dense"])
        if problem:
            raise problem
        return advise_file(model, tflite_file.read(content))


def has_open_sizes(model: keras.Model) -> bool:
    """Whether inputs of a model have sizes, apart from the batch, that are not fixed."""
    return any(None in spec.shape[1:] for spec in getattr(model, "inputs", None) or [])


def _sized(model):
    """The same layers over inputs of fixed sizes."""
    if not has_open_sizes(model):
        return model
    inputs = [
        keras.Input(batch_shape=(spec.shape[0], *(size or OPEN_SIZE for size in spec.shape[1:])), dtype=spec.dtype, name=spec.name) for spec in model.inputs
    ]
    return keras.Model(inputs, model(keras.tree.pack_sequence_as(model.input, inputs)))


def advise_file(model: keras.Model, graphs: list[tflite_file.Graph]) -> Advice:
    """`advise` for a model, without wrappers, that is converted already."""
    graph = graphs[0]
    nodes = xnnpack.plan(graph, names=_layers(model, xnnpack.plan(graph)))
    total = sum(node.multiply_adds for node in nodes)
    rows = [_row(node, total) for node in nodes if node.kernel is not None]
    failing = [node for node in nodes if node.fails]
    share = _share(nodes)
    changes, promised = _smallest_change(graph, nodes, share)
    speed = sum(node.multiply_adds * (SPARSE_COST * (1 - _sparsity(node)) if node.sparse and not failing else 1.0) for node in nodes) / max(total, 1)
    return Advice(
        rows=rows,
        share=share,
        fails=_failure(failing) if failing else "",
        change=", and ".join(_TEXTS[change].format(layers=_named(change, nodes)) for change in changes),
        promised=promised,
        speed=1 / speed if total else 1.0,
    )


def _row(node, total):
    return {
        "layer": node.label,
        "kind": _KINDS[node.name].format("x".join(map(str, node.kernel.shape[1:3]))),
        "weights": node.kernel.zeros.size,
        "multiply_adds": node.multiply_adds,
        "share": node.multiply_adds / max(total, 1),
        "sparsity": _sparsity(node),
        "sparse": node.sparse,
        "why": node.why,
    }


def _sparsity(node):
    return node.kernel.zero_count / node.kernel.zeros.size if node.kernel is not None else 0.0


def _share(nodes):
    if any(node.fails for node in nodes):
        return 0.0
    return sum(node.multiply_adds for node in nodes if node.sparse) / max(sum(node.multiply_adds for node in nodes), 1)


def _failure(failing):
    names = ", ".join(dict.fromkeys(node.label for node in failing))
    return (
        f"on ARM64, LiteRT (2.3.0) stops with an error or predicts something else without a word, because XNNPACK hands data channels first to {names}, and "
        "what comes after it takes them as channels last (as where a network pools with keepdims and then has a 1x1 convolution)"
    )


def _smallest_change(graph, nodes, share):
    """The fewest and smallest changes with which more runs sparse, and the share then."""
    known = {node.layout.change for node in nodes} - {None} | {Change.PRUNE}
    sets = [frozenset(each) for size in range(1, len(known) + 1) for each in itertools.combinations(sorted(known, key=lambda c: c.value), size)]
    sizes = {each: sum(int(change.value) for change in each) for each in sets}
    for _, group in itertools.groupby(sorted(sets, key=sizes.get), key=sizes.get):
        found = [(_share(xnnpack.plan(graph, each)), -sum(change.value for change in each), each) for each in group]
        best = max(found, key=lambda item: item[:2])
        if best[0] >= share + _WORTH:
            return sorted(best[2], key=lambda change: change.value), best[0]
    return [], share


def _named(change, nodes):
    names = list(dict.fromkeys(node.label for node in nodes if node.layout.change is change))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _layers(model, nodes):
    """Operator -> the name of its Keras layer: the one whose kernel it holds, up to a factor per output channel; else the operator's name."""
    kernels = {}  # size -> [(layer, kernel by output channel)]
    for weight in model.weights:
        if len(weight.shape) >= 2 and "/" in weight.path:
            value = keras.ops.convert_to_numpy(weight)
            for order in (np.moveaxis(value, -1, 0), np.moveaxis(value, -2, 0), value.reshape(*value.shape[:-2], -1).T if value.ndim > 2 else value):
                kernels.setdefault(value.size, []).append((weight.path.removeprefix(f"{model.name}/").rsplit("/", 1)[0], _scaled(order)))
    names = {}
    for node in nodes:
        names[node.operator] = node.name
        if node.kernel is not None:
            axis = -1 if node.name in ("DEPTHWISE_CONV_2D", "CONV_3D") else 0
            own = _scaled(np.moveaxis(node.kernel.values, axis, 0))
            fitting = [name for name, kernel in kernels.get(own.size, []) if kernel.shape == own.shape and np.allclose(kernel, own, atol=0.02)]
            names[node.operator] = fitting[0] if fitting else _scope(node) or node.name
    return names


def _scaled(kernel):
    rows = np.abs(kernel.reshape(len(kernel), -1).astype("float32"))
    return rows / np.maximum(rows.max(axis=1, keepdims=True, initial=0.0), 1e-30)


def _scope(node):
    return node.kernel.name.split(";")[0]
