"""Find the zeros of a Keras model again in the weights of a .tflite file."""

import keras
import numpy as np

from keras_gibbs.export.tflite_file import Tensor


def zeros_kept(model: keras.Model, tensors: list[Tensor]) -> list[dict]:
    """Compare every kernel that holds zeros with its tensor of the file.

    A kernel and a tensor belong together if they are of one size and every zero of the kernel is a zero of the tensor, in one of the orders in
    which the converter stores kernels. Where it has stored one in another order, the counts of zeros are compared. Quantization and float16 may
    add zeros, and must take none.

    Args:
        model: The Keras model, without wrappers.
        tensors: Constants of the file, from `tflite_file.weights`.

    Returns:
        One dict per kernel with zeros: `kernel` (its path), `weights` (in it), `zeros` (of these), `kept` (found in the file), `file_zeros` (zeros of
        its tensor, those that quantization added included; None without a partner) and `checked`: `"position"`, `"count"`, or None where the
        converter has merged or split kernels, so that there is no partner.

    Raises:
        RuntimeError: A zero weight is not zero in the file.
    """
    rows = []
    for kernels in _by_size(model).values():
        free = [tensor for tensor in tensors if tensor.zeros.size == kernels[0][1].size]
        left = []
        for path, kernel in kernels:
            partner = _partner(kernel, free)
            if partner is None:
                left.append((path, kernel))
            else:
                free.remove(partner)
                rows.append(_row(path, kernel, partner, "position"))
        if len(free) < len(left):
            rows += [_row(path, kernel, None, None) for path, kernel in left]
            continue
        for (path, kernel), tensor in zip(left, sorted(free, key=lambda tensor: -tensor.zero_count)):
            present, wanted = tensor.zero_count, np.count_nonzero(kernel == 0)
            if present < wanted:
                raise RuntimeError(
                    "A weight that is zero in the Keras model must be zero in the file. "
                    f"Received: {present} zeros of {wanted} in the kernel {path!r}. Nothing was written; please report the model."
                )
            rows.append(_row(path, kernel, tensor, "count"))
    return rows


def kernels_with_zeros(model: keras.Model) -> list[tuple[str, np.ndarray]]:
    """Path and value of every kernel that holds zeros."""
    weights = [weight for weight in model.weights if len(weight.shape) >= 2 and weight.name != "bias"]  # a GRU has biases of rank 2
    values = [(weight.path, keras.ops.convert_to_numpy(weight)) for weight in weights]
    return [(path, kernel) for path, kernel in values if not np.all(kernel)]


def has_sparse_pointwise(model: keras.Model) -> bool:
    """Whether a 1x1 convolution has so many zeros, more than two thirds, that a phone's CPU may run it sparse."""
    pointwise = [kernel for _, kernel in kernels_with_zeros(model) if kernel.ndim == 4 and kernel.shape[:2] == (1, 1)]
    return any(np.count_nonzero(kernel) * 3 < kernel.size for kernel in pointwise)


def _by_size(model):
    """Size -> (path, kernel), most zeros first. Kernels of equal content count once: the file may store them once."""
    kernels = {}
    for path, kernel in kernels_with_zeros(model):
        kernels.setdefault(kernel.size, {}).setdefault(kernel.tobytes(), (path, kernel))
    return {size: sorted(group.values(), key=lambda item: np.count_nonzero(item[1])) for size, group in kernels.items()}


def _partner(kernel, tensors):
    """The tensor with all zeros of `kernel` and the fewest others."""
    orders = {order.tobytes(): order for order in map(np.ravel, orders_of(kernel == 0))}.values()
    fitting = [tensor for tensor in tensors if any(np.all(tensor.zeros.ravel()[order]) for order in orders)]
    return min(fitting, key=lambda tensor: tensor.zero_count, default=None)


def orders_of(kernel: np.ndarray) -> list[np.ndarray]:
    """A kernel in the orders of axes in which the converter stores it: output channels first (Dense, convolutions), as it is (depthwise ones,
    embeddings), of transposed convolutions, and of `EinsumDense` over several axes."""
    return [np.moveaxis(kernel, -1, 0), kernel, np.moveaxis(kernel, -2, 0), np.moveaxis(kernel, 0, -1)]


def _row(path, kernel, tensor, checked):
    zeros = int(np.count_nonzero(kernel == 0))
    return {
        "kernel": path,
        "weights": kernel.size,
        "zeros": zeros,
        "kept": zeros if checked else 0,
        "file_zeros": tensor.zero_count if tensor else None,
        "checked": checked,
    }
