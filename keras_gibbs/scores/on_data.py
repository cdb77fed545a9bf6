"""Scores on data: what every weight of a model is worth to its loss, or to the signal that it passes on.

Every function takes the weights as they would be in the model, or under a mask, and gives float32 arrays in the shapes of the weights. Nothing is written.
"""

import numpy as np
from keras import ops

from keras_gibbs.scores.losses import ModelLoss
from keras_gibbs.typing import Tensor


def connection_sensitivity(loss: ModelLoss, weights: list[Tensor], masks: list[np.ndarray]) -> list[np.ndarray]:
    """|w dL/dw|, the gradient taken where the weights are under their masks: how much the loss depends on the mask of w.

    With masks of ones this is SNIP's score: the absolute derivative of the loss with respect to the mask (without the division by their sum, which changes no
    rank). Gradients are averaged over the batches before the absolute value.

    Reference: Lee et al. 2019, https://arxiv.org/abs/1810.02340; de Jorge et al. 2021, https://arxiv.org/abs/2006.09081.
    """
    slopes = loss.gradients([weight * mask for weight, mask in zip(weights, masks, strict=True)])
    return [np.abs(_numpy(weight) * _numpy(slope)) for weight, slope in zip(weights, slopes, strict=True)]


def gradient_flow(loss: ModelLoss, weights: list[Tensor], masks: list[np.ndarray]) -> list[np.ndarray]:
    """w (H g), with the gradient g and the Hessian H of the loss: half of what the squared norm of the gradient gains with w, relative to w.

    GraSP's S is -w (H g) and the largest S are removed; here the largest scores are kept. May be negative.

    Reference: Wang, Zhang & Grosse 2020, https://arxiv.org/abs/2002.07376.
    """
    masked = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
    products = loss.hessian_products(masked, loss.gradients(masked))
    return [_numpy(weight) * _numpy(product) for weight, product in zip(masked, products, strict=True)]


def _numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))
