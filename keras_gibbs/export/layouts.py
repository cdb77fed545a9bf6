"""What an operator of a .tflite file does with the order of the data, channels last or first, by XNNPACK's rules; and what would change that."""

import dataclasses
import enum

import numpy as np

from keras_gibbs.export.tflite_file import Graph, Operator, Tensor

UNARY = {"ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "LOG", "NEG", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"}
UNARY |= {"ROUND", "RSQRT", "SIN", "COS", "SQRT", "SQUARE", "TANH"}
WITH_KERNEL = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE", "BATCH_MATMUL"}
POOLS = {"MAX_POOL_2D", "AVERAGE_POOL_2D"}
SAME = 0  # the format's Padding number


class Change(enum.Enum):
    """A change to the model that lifts a rule, smallest first; the value is its size."""

    PRUNE = 1
    PADDING = 1.01
    HEAD = 1.02
    END = 1.03
    KEEPDIMS = 1.04
    STEM = 2
    STRIDE = 2.01
    POOLING = 2.02
    OPERATOR = 3
    SEPARATE = 4


@dataclasses.dataclass(frozen=True)
class Layout:
    """What an operator does with the order of the data.

    Attributes:
        enters: It reads channels last and writes channels first.
        stays: It works channels first.
        leaves: Behind it the order does not matter.
        keeps: It leaves height and width in place as 1 and 1.
        rule: Why none of these, or "".
        change: What would lift the rule, or None.
        lifted: What it would do then.
    """

    enters: bool = False
    stays: bool = False
    leaves: bool = False
    keeps: bool = False
    rule: str = ""
    change: Change | None = None
    lifted: "Layout | None" = None


ENTERS, STAYS, LEAVES = Layout(enters=True), Layout(stays=True), Layout(stays=True, leaves=True)
DENSE = Layout(rule="is a Dense layer, which has no sparse kernel")
AFTER = Layout(rule="comes after the average over height and width")


def layout_of(
    operator: Operator,
    graph: Graph,
    constants: dict[int, Tensor],
    shape: tuple[int, ...],
    output: tuple[int, ...],
    kernel: Tensor | None,
    padding: np.ndarray | None,
) -> Layout:
    """What an operator does with the order of the data, by the rules of `xnn_check_nchw_compatibility`.

    Args:
        operator: The operator.
        graph: Where it stands.
        constants: The tensors that are known before it runs, by number.
        shape: Of its first input.
        output: Shape of its output.
        kernel: Its weights, or None.
        padding: What a padding operator before it adds, `(2, 2)`: top and bottom, left and right; None without one.
    """
    name, options = operator.name, operator.options
    types = {(constants.get(number) or graph.tensors[number]).dtype for number in (*operator.inputs, *operator.outputs) if number >= 0}
    if name in WITH_KERNEL and not types <= {np.float32, np.float16}:
        return Layout(rule="computes in int8, not in float32")
    if name == "FULLY_CONNECTED":
        return DENSE
    if name == "CONV_2D":
        return _convolution(options, graph, constants, operator, shape, kernel, padding)
    if name == "DEPTHWISE_CONV_2D":
        return _depthwise(options, kernel, padding)
    if len(shape) == 2 and (name == "SHAPE" or name == "RESHAPE" and len(output) == 4 and output[1:3] == (1, 1)):
        return Layout(rule="follows an average over height and width without keepdims", change=Change.KEEPDIMS, lifted=STAYS)
    if len(shape) != 4:
        return Layout(rule="reads no feature maps")
    if name in ("MEAN", "SUM"):
        axes = sorted(int(axis) % 4 for axis in np.ravel(constants[operator.inputs[1]].values)) if operator.inputs[1] in constants else None
        if axes == [1, 2]:
            return dataclasses.replace(LEAVES, keeps=bool(options.keepDims))
        return Layout(rule="goes over other axes than height and width", change=Change.OPERATOR, lifted=STAYS)
    if name == "DEPTH_TO_SPACE":
        return Layout(leaves=True)
    if name in ("ADD", "MUL"):
        fixed = [number for number in operator.inputs if number in constants]
        ranks = {len((constants.get(number) or graph.tensors[number]).shape) for number in operator.inputs}
        if ranks == {4} and not fixed:
            return STAYS
        return Layout(rule="has a constant (unfused normalization, scaling or hard sigmoid)", change=Change.OPERATOR, lifted=STAYS)
    if name == "RESIZE_BILINEAR" and min(shape[1:3]) > 1 or name in UNARY:
        return STAYS
    if name in POOLS and output[1:3] != (1, 1):
        return Layout(rule="has no channels-first form", change=Change.POOLING, lifted=STAYS)
    if name in ("RESHAPE", "REDUCE_MAX", *POOLS) and shape[1:3] != (1, 1):
        return Layout(rule="does not average over height and width", change=Change.END, lifted=LEAVES)
    return Layout(rule="has no channels-first form", change=Change.OPERATOR, lifted=STAYS)


def _convolution(options, graph, constants, operator, shape, kernel, padding):
    stride, dilation = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    if kernel is None:
        return Layout(rule="has a kernel that is computed")
    size, channels = kernel.shape[1:3], kernel.shape[3]
    if channels != shape[-1]:
        return Layout(rule=f"has groups ({shape[-1] // channels})", change=Change.SEPARATE, lifted=STAYS)
    if dilation != (1, 1):
        return Layout(rule=f"has a dilation of {_x(dilation)}", change=Change.SEPARATE, lifted=STAYS)
    if size == (1, 1):
        if padding is not None and padding.any():
            return Layout(rule="is 1x1 with padding", change=Change.STRIDE, lifted=STAYS)
        if stride != (1, 1):
            return Layout(rule=f"is 1x1 with a stride of {_x(stride)}", change=Change.STRIDE, lifted=STAYS)
        return STAYS
    first = operator.inputs[0] in graph.inputs or padding is not None and not any(operator.inputs[0] in o.outputs for o in graph.operators if o.name != "PAD")
    if size == (3, 3) and stride == (2, 2) and channels == 3:
        if padding is not None and np.all(padding == 1):
            return ENTERS
        return Layout(rule="is a 3x3 stem whose padding is not 1 on each side", change=Change.PADDING, lifted=ENTERS)
    if first or channels <= 4:
        wanted = "3x3 with stride 2, padding 1 and three input channels"
        return Layout(
            rule=f"is {_x(size)} with stride {_x(stride)} and {channels} input channels, and only a stem that is {wanted} begins a sparse part",
            change=Change.STEM,
            lifted=ENTERS,
        )
    return Layout(rule=f"is not 1x1 but {_x(size)}", change=Change.SEPARATE, lifted=STAYS)


def _depthwise(options, kernel, padding):
    stride, dilation = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    size = kernel.shape[1:3] if kernel is not None else (0, 0)
    if options.depthMultiplier != 1 or dilation != (1, 1) or size not in ((3, 3), (5, 5)) or stride not in ((1, 1), (2, 2)):
        return Layout(
            rule=f"is depthwise {_x(size)} with stride {_x(stride)}, dilation {_x(dilation)} and multiplier {options.depthMultiplier}, and only 3x3 and 5x5 "
            "with strides 1 and 2 stay in a sparse part",
            change=Change.OPERATOR,
            lifted=STAYS,
        )
    same = options.padding == SAME and stride == (1, 1)
    if same or (padding is not None and np.all(padding == size[0] // 2)):
        return STAYS
    return Layout(rule=f"is depthwise with a padding that is not {size[0] // 2} on each side", change=Change.PADDING, lifted=STAYS)


def _x(sizes):
    return "x".join(map(str, sizes))
