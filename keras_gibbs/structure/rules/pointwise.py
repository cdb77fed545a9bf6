"""Layers and operations that work on each channel by itself."""

import keras
import numpy as np
from keras import layers

from keras_gibbs.structure.constants import array_of, evaluate
from keras_gibbs.structure.states import Channels, Held

ACTIVATIONS = tuple(
    map(
        keras.activations.get,
        "relu leaky_relu relu6 celu elu selu softplus softsign squareplus soft_shrink sparse_plus silu gelu tanh tanh_shrink threshold sigmoid "
        "sparse_sigmoid exponential hard_sigmoid hard_silu hard_tanh hard_shrink linear mish log_sigmoid".split(),
    )
)
ACTIVATION_LAYERS = (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity)
INACTIVE = (  # at inference
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.AlphaDropout,
    layers.ActivityRegularization,
)


def activate(flow, site, state: Channels, activation) -> Channels | Held:
    """The channels of `state` after an activation function."""
    if activation is None or activation is keras.activations.linear:
        return state
    if activation in ACTIVATIONS or type(activation) in ACTIVATION_LAYERS:
        return state.with_values(evaluate(activation, state.values))
    name = getattr(activation, "__name__", type(activation).__name__)
    return flow.release(state, f"the activation {name!r} of {site.describe()} is not known to keep channels apart")


def activation_layer(flow, site):
    (state,) = site.states
    return state if isinstance(state, Held) else activate(flow, site, state, site.layer.activation)


def elementwise(flow, site):
    """A layer without weights that computes each element from the element in its place."""
    (state,) = site.states
    return state if isinstance(state, Held) else state.with_values(evaluate(site.layer, state.values))


def unchanged(flow, site):
    return site.states[0]


def rescaling(flow, site):
    if np.ndim(site.layer.scale) or np.ndim(site.layer.offset):
        return flow.stop(site, f"{site.describe()} has a scale or offset for each channel in its config")
    return elementwise(flow, site)


def parametric_relu(flow, site):
    """PReLU with a weight for each channel, or shared by all."""
    (state,), alpha = site.states, site.layer.alpha
    if isinstance(state, Held):
        return state
    if alpha.shape[state.axis] != 1:
        flow.bind(site, alpha, state.axis, state.ids, "carries")
    return state.with_values(np.where(state.values >= 0, state.values, np.nan))


def batch_normalization(flow, site):
    (state,), layer = site.states, site.layer
    if isinstance(state, Held):
        return state
    rank = len(site.shapes[0])
    if layer.axis % rank - rank != state.axis:
        return flow.stop(site, f"{site.describe()} normalizes another axis than its channels'")
    scale = layer.gamma is not None
    for variable in (layer.gamma, layer.beta):
        if variable is not None:
            flow.bind(site, variable, 0, state.ids, "follows")
    # Without gamma, a channel of zeros is only zero behind it where its mean is.
    flow.bind(site, layer.moving_mean, 0, state.ids, "carries" if scale else "follows")
    flow.bind(site, layer.moving_variance, 0, state.ids, "carries")
    if flow.imagined:
        return state.with_values(flow.emptied(state.ids) if scale else np.where(state.values == 0, flow.emptied(state.ids), np.nan))
    gamma = array_of(layer.gamma) if scale else np.ones(len(state.ids))
    beta = array_of(layer.beta) if layer.beta is not None else 0.0
    mean, variance = array_of(layer.moving_mean), array_of(layer.moving_variance)
    scaled = np.where(gamma == 0, 0.0, gamma * (state.values - mean) / np.sqrt(variance + layer.epsilon))
    return state.with_values(scaled + beta)


RULES = {
    layers.Activation: activation_layer,
    layers.PReLU: parametric_relu,
    layers.Rescaling: rescaling,
    layers.BatchNormalization: batch_normalization,
    **dict.fromkeys(ACTIVATION_LAYERS, elementwise),
    **dict.fromkeys(INACTIVE, unchanged),
}
