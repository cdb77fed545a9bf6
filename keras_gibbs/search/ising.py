"""The energy of IPruning: how alike the filters of a layer are, and how much they say to the next layer. Experimental."""

import dataclasses
import math

from keras import ops

from keras_gibbs.configuration import register
from keras_gibbs.search.objectives import Context, Objective
from keras_gibbs.typing import Tensor

BINS = 256
SMALL = 1e-6


@register
@dataclasses.dataclass(frozen=True)
class IsingEnergy(Objective):
    """An Ising energy of the bits, whose couplings come from the kernels and the feature maps. Experimental.

    H(s) = (- sum_ij J_ij s_i s_j + (sum_ij J_ij / D) sum_i s_i) / D^2, with J - 1 in place of J. Within a layer J holds the symmetrised Kullback-Leibler
    divergence between normal distributions fitted to the weights of two filters, scaled to [0, 1]; from a layer to the next, the entropy of the 256-bin
    histogram of a filter's mean feature map over the batch, as a fraction of its maximum; elsewhere 0. The labels play no part.

    The couplings are computed anew at every search step, with a forward pass of its own under the best state so far.

    Example:

    >>> kg.EDropout(objective=kg.IsingEnergy() + kg.KeepPenalty(0.5, weight=1.0))

    Reference: Salehinejad & Valaee, IPruning; the authors' code sparsifai/ipruning at c10143a (pidropout.py:116-191, 462-541). Where it reshapes `(S, D)`
    states into `(D, S)`, which scrambles them, they are transposed here; the division by D^2 is ours, so that the energy does not grow with the network;
    its penalty on the kept fraction is `KeepPenalty`.
    """

    def __call__(self, context: Context) -> Tensor:
        couplings = self.couplings(context)
        size = couplings.shape[0]
        pairs = ops.sum(ops.matmul(context.bits, couplings) * context.bits, axis=-1)
        field = ops.sum(couplings) / size * ops.sum(context.bits, axis=-1)
        return (field - pairs) / size**2

    def couplings(self, context: Context) -> Tensor:
        """J - 1, float32 `(D, D)`."""
        features, names = context.features(), list(context.layers)
        rows = []
        for index, name in enumerate(names):
            widths = [context.layers[other].stop - context.layers[other].start for other in names]
            blocks = [ops.zeros((widths[index], width)) for width in widths]
            blocks[index] = divergence(context.kernels[name])
            if index + 1 < len(names) and len(features[name].shape) > 2:
                blocks[index + 1] = ops.tile(entropy(features[name])[:, None], (1, widths[index + 1]))
            rows.append(ops.concatenate(blocks, axis=1))
        return ops.concatenate(rows) - 1.0


def divergence(kernel: Tensor) -> Tensor:
    """The symmetrised divergence between normal distributions fitted to the filters of a kernel `(channels, positions, filters)`, scaled to [0, 1]."""
    weights = ops.cast(ops.reshape(kernel, (-1, kernel.shape[-1])), "float32")
    mean, variance = ops.mean(weights, axis=0), ops.var(weights, axis=0) + SMALL
    apart = (mean[:, None] - mean) ** 2
    # The logarithms of the two directions cancel.
    both = 0.5 * ((variance[:, None] + apart) / variance + (variance + apart) / variance[:, None]) - 1.0
    low, high = ops.min(both), ops.max(both)
    return (both - low) / ops.maximum(high - low, SMALL)


def entropy(features: Tensor) -> Tensor:
    """The entropy of every filter's mean feature map over the batch, `(B, ..., filters)`, in a histogram of 256 bins, as a fraction of log 256."""
    maps = ops.mean(ops.cast(features, "float32"), axis=0)
    positions = math.prod(maps.shape[:-1])
    maps = ops.reshape(maps, (positions, maps.shape[-1]))
    low, high = ops.min(maps, axis=0), ops.max(maps, axis=0)
    bins = ops.cast(ops.clip((maps - low) / ops.maximum(high - low, SMALL) * BINS, 0, BINS - 1), "int32")
    share = ops.mean(ops.one_hot(bins, BINS), axis=0)
    return -ops.sum(share * ops.log(ops.maximum(share, SMALL)), axis=-1) / math.log(BINS)
