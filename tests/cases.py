"""The one table of methods, structures and layers that the tests run over: a new method is tested by adding its row."""

import dataclasses
import os
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

import keras_gibbs as kg
from keras_gibbs.compiled_masks import compiled_masks

JAX = keras.backend.backend() == "jax"


@dataclasses.dataclass(frozen=True)
class MethodCase:
    """A pruning method at half sparsity.

    Attributes:
        make: Makes the method; called without arguments.
        ranked: Whether its deterministic mask keeps exactly the top groups by mean squared weight.
        random: Whether its training masks differ from draw to draw, at the start of its schedules.
    """

    make: Callable
    ranked: bool = True
    random: bool = False

    @property
    def structure(self):
        return self.make().structure


METHODS = {
    "gibbs": MethodCase(lambda: kg.Gibbs(0.5), random=True),
    "gibbs-kernel": MethodCase(lambda: kg.Gibbs(0.5, structure=kg.Kernel()), random=True),
    "gibbs-kernel-reference": MethodCase(lambda: kg.Gibbs(0.5, structure=kg.Kernel(), hamiltonian=kg.KernelCoupling(convention="reference")), random=True),
    "gibbs-filter": MethodCase(lambda: kg.Gibbs(0.5, structure=kg.Filter(), hamiltonian=kg.FilterCoupling(sweeps=3)), random=True),
    "gibbs-filter-independent": MethodCase(lambda: kg.Gibbs(0.5, structure=kg.Filter(), hamiltonian=kg.Independent()), random=True),
    "gibbs-scheduled": MethodCase(lambda: kg.Gibbs(kg.Linear(0.5, 0.6), beta=kg.Constant(1.0)), random=True),
    "gibbs-curvature": MethodCase(
        lambda: kg.Gibbs(0.5, criterion=kg.CurvatureEnergy(), scale="log", count="exact", settle=0.7, beta=kg.Geometric(1.0, 50.0)), ranked=False, random=True
    ),
    "magnitude": MethodCase(lambda: kg.Magnitude(0.5)),
    "magnitude-kernel": MethodCase(lambda: kg.Magnitude(0.5, structure=kg.Kernel())),
    "magnitude-filter": MethodCase(lambda: kg.Magnitude(0.5, structure=kg.Filter())),
    "magnitude-global": MethodCase(lambda: kg.Magnitude(0.5, scope="global")),
    "magnitude-scheduled": MethodCase(lambda: kg.Magnitude(kg.Polynomial(0.5, 0.75, end=0.5))),
    "gumbel": MethodCase(lambda: kg.GumbelSoftmax(train_weights=True), ranked=False, random=True),
    "gumbel-target": MethodCase(lambda: kg.GumbelSoftmax(train_weights=True, sparsity=0.5, structure=kg.Kernel()), ranked=False, random=True),
    "supermask": MethodCase(lambda: kg.Supermask(train_weights=True, rescale=None, structure=kg.Filter()), ranked=False, random=True),
    "edge-popup": MethodCase(lambda: kg.EdgePopup(0.5, train_weights=True), ranked=False),
    "edropout": MethodCase(lambda: kg.EDropout(4), ranked=False),
    "fixed": MethodCase(lambda: kg.Fixed(), ranked=False),
    "random": MethodCase(lambda: kg.Random(0.5), ranked=False),
    "greg": MethodCase(lambda: kg.GReg(0.5), ranked=False),
    "set": MethodCase(lambda: kg.SET(0.5, scope="layer"), ranked=False),
    "rigl": MethodCase(lambda: kg.RigL(0.5, scope="layer"), ranked=False),
}

STRUCTURES = {"unstructured": kg.Unstructured(), "kernel": kg.Kernel(), "filter": kg.Filter()}


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """A layer that can be pruned, and the shape of one of its inputs.

    `axes` are the kernel's (positions, inputs, outputs) axes, written down by hand.
    """

    make: Callable
    input_shape: tuple
    axes: tuple

    def inputs(self, batch=2, seed=0):
        return np.random.default_rng(seed).normal(size=(batch, *self.input_shape)).astype("float32")

    def built(self, seed=0, **kwargs):
        """The layer, built, with normal weights."""
        layer = self.make(**kwargs)
        layer.build((None, *self.input_shape))
        return randomize(layer, seed)

    @property
    def filters(self):
        return not isinstance(self.make(), (layers.DepthwiseConv1D, layers.DepthwiseConv2D))


LAYERS = {
    "dense": LayerCase(lambda **kw: layers.Dense(4, **kw), (5,), ((), (0,), (1,))),
    "dense-in-time": LayerCase(lambda **kw: layers.Dense(4, **kw), (3, 5), ((), (0,), (1,))),
    "einsum": LayerCase(lambda **kw: layers.EinsumDense("ab,bc->ac", 4, bias_axes="c", **kw), (6,), ((), (0,), (1,))),
    "einsum-heads": LayerCase(lambda **kw: layers.EinsumDense("abc,cde->abde", (3, 2, 4), bias_axes="de", **kw), (3, 6), ((), (0,), (1, 2))),
    "einsum-merge": LayerCase(lambda **kw: layers.EinsumDense("abde,dec->abc", (3, 6), **kw), (3, 2, 4), ((), (0, 1), (2,))),
    "einsum-ellipsis": LayerCase(lambda **kw: layers.EinsumDense("...x,xy->...y", 5, bias_axes="y", **kw), (6,), ((), (0,), (1,))),
    "conv1d": LayerCase(lambda **kw: layers.Conv1D(4, 3, **kw), (6, 2), ((0,), (1,), (2,))),
    "conv2d": LayerCase(lambda **kw: layers.Conv2D(4, 3, **kw), (5, 5, 2), ((0, 1), (2,), (3,))),
    "conv2d-grouped": LayerCase(lambda **kw: layers.Conv2D(4, 3, groups=2, **kw), (5, 5, 4), ((0, 1), (2,), (3,))),
    "conv3d": LayerCase(lambda **kw: layers.Conv3D(4, 2, **kw), (3, 3, 3, 2), ((0, 1, 2), (3,), (4,))),
    "conv1d-transpose": LayerCase(lambda **kw: layers.Conv1DTranspose(4, 3, **kw), (4, 2), ((0,), (2,), (1,))),
    "conv2d-transpose": LayerCase(lambda **kw: layers.Conv2DTranspose(4, 3, **kw), (4, 4, 2), ((0, 1), (3,), (2,))),
    "conv3d-transpose": LayerCase(lambda **kw: layers.Conv3DTranspose(4, 2, **kw), (3, 3, 3, 2), ((0, 1, 2), (4,), (3,))),
    "depthwise1d": LayerCase(lambda **kw: layers.DepthwiseConv1D(3, depth_multiplier=2, **kw), (6, 3), ((0,), (), (1, 2))),
    "depthwise2d": LayerCase(lambda **kw: layers.DepthwiseConv2D(3, depth_multiplier=2, **kw), (5, 5, 3), ((0, 1), (), (2, 3))),
}

every_method = pytest.mark.parametrize("method", [pytest.param(case, id=name) for name, case in METHODS.items()])
every_structure = pytest.mark.parametrize("structure", [pytest.param(case, id=name) for name, case in STRUCTURES.items()])
every_layer = pytest.mark.parametrize("layer_case", [pytest.param(case, id=name) for name, case in LAYERS.items()])


def xla(on):
    """A fixture: masks compiled by XLA on TensorFlow, or not.

    XLA compiles a small mask for longer than a whole test runs without it; results are the same.
    """

    def switch():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KERAS_GIBBS_XLA", "1" if on or JAX else "0")
            compiled_masks.cache_clear()
            yield
        compiled_masks.cache_clear()

    return switch


def skip_unless_fits(method, layer_case):
    """Filters of a depthwise kernel are the one combination that does not exist."""
    if method.structure.removes_outputs and not layer_case.filters:
        pytest.skip("filters of a depthwise kernel")


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def randomize(layer, seed=0):
    """Normal float weights in a layer or model, statistics that must be positive apart."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if "float" in weight.dtype:
            values = rng.normal(size=weight.shape)
            weight.assign(np.abs(values) + 0.5 if "variance" in weight.path else values)
    return layer


def weights(model):
    return [numpy(weight).copy() for weight in model.weights]


def same(first, second):
    """Whether two lists of arrays are equal bit for bit."""
    return len(first) == len(second) and all(
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes() for one, other in zip(first, second, strict=True)
    )


def half_mask(shape, seed=3):
    """A random mask of `shape` that keeps half."""
    flat = np.arange(int(np.prod(shape))) % 2
    return np.random.default_rng(seed).permutation(flat).reshape(shape).astype("float32")


def groups_of(array, structure, axes):
    """The weights of each group as rows, by plain NumPy from the hand-written axes of a `LayerCase`."""
    positions, inputs, outputs = axes
    within = {kg.Unstructured: (), kg.Kernel: positions, kg.Filter: (*inputs, *positions)}[type(structure)]
    across = tuple(axis for axis in range(array.ndim) if axis not in within)
    return array.transpose(across + within).reshape(int(np.prod([array.shape[axis] for axis in across])), -1)


def top(scores, sparsity):
    """1 for the top groups, 0 for the rest, the first of equal ones kept: a stable sort."""
    groups = len(scores)
    kept = max(1, groups - int(np.floor(sparsity * groups + 0.5)))
    mask = np.zeros(groups, "float32")
    mask[np.argsort(-np.asarray(scores), kind="stable")[:kept]] = 1
    return mask


def gradients(layer, x, loss=lambda y: keras.ops.sum(y * y)):
    """Gradients of `loss(layer(x))` and the layer's own losses in a training step, by variable path; the layer's state moves on."""
    training = {"training": True} if isinstance(layer, kg.Pruned) else {}
    if JAX:
        import jax

        def objective(trainable, non_trainable):
            outputs, state, losses = layer.stateless_call(trainable, non_trainable, x, return_losses=True, **training)
            return loss(outputs) + sum(losses), state

        values = [[variable.value for variable in group] for group in (layer.trainable_variables, layer.non_trainable_variables)]
        found, state = jax.grad(objective, has_aux=True)(*values)
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            objective = loss(layer(x, **training)) + sum(layer.losses)
        found = tape.gradient(objective, [variable.value for variable in layer.trainable_variables])
    return {variable.path: numpy(gradient) for variable, gradient in zip(layer.trainable_variables, found, strict=True)}


def saved_and_loaded(model, folder):
    path = os.path.join(folder, "model.keras")
    model.save(path)
    return keras.models.load_model(path)
