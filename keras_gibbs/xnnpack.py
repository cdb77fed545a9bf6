"""Which operators of a .tflite file XNNPACK runs sparse on an ARM64 or WASM CPU, and which not, by which rule.

XNNPACK computes a 1x1 convolution from its non-zero weights only where the data lie channels first. So it looks for clusters of operators that
can all work channels first, begin with a convolution that changes the order, and end where the order no longer matters; and it takes a cluster
only if more than two thirds of the weights of its 1x1 convolutions are zero. The rules are those of `xnn_subgraph_rewrite_for_nchw` in
google/XNNPACK, src/subgraph.c. On x86 CPUs with AVX the whole path is off.

XNNPACK does not look at what follows the last operator of a cluster. If that is not an average over height and width, or if the average keeps its
dimensions, data that lie channels first are read as if they lay channels last: LiteRT 2.3.0 for ARM64 then stops with an error, or predicts something else
without a word (seen on networks of all these kinds, run by its aarch64 build under an emulator; those with no such place predicted what the dense file did).
"""

import dataclasses
import enum

import numpy as np

from keras_gibbs.tflite_file import Graph, Operator, Tensor

UNARY = {"ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "LOG", "NEG", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"}
UNARY |= {"ROUND", "RSQRT", "SIN", "COS", "SQRT", "SQUARE", "TANH"}
WITH_KERNEL = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE", "BATCH_MATMUL"}
POOLS = {"MAX_POOL_2D", "AVERAGE_POOL_2D"}
_SAME = 0  # the format's Padding number


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


@dataclasses.dataclass(eq=False)
class Node:
    """An operator that computes something, with what XNNPACK makes of it.

    Attributes:
        operator: The operator; one named `"OUTPUT"` stands for whoever reads an output of the model.
        inputs: Numbers of the computed tensors it reads.
        kernel: Its weights, or None.
        shape: Of its first input.
        output: Shape of its output.
        layout: What it does with the order of the data.
        label: What it is called in reasons.
        sparse: Whether it runs sparse.
        fails: Whether it reads data that lie channels first and whoever reads its output takes them to lie channels last.
        why: Why it does not run sparse.
    """

    operator: Operator
    inputs: list[int]
    kernel: Tensor | None
    shape: tuple[int, ...]
    output: tuple[int, ...]
    layout: Layout
    label: str = ""
    sparse: bool = False
    fails: bool = False
    why: str = ""

    @property
    def name(self) -> str:
        return self.operator.name

    @property
    def pointwise(self) -> bool:
        """Whether it is a convolution with a 1x1 kernel."""
        return self.name == "CONV_2D" and self.kernel is not None and self.kernel.shape[1:3] == (1, 1)

    @property
    def multiply_adds(self) -> int:
        if self.kernel is None:
            return 0
        positions = self.shape[:-1] if self.name == "TRANSPOSE_CONV" else self.output[:-1]
        return self.kernel.zeros.size * int(np.prod(positions, dtype=np.int64))


def plan(graph: Graph, changes: frozenset[Change] = frozenset(), names: dict[Operator, str] | None = None) -> list[Node]:
    """The operators of the main graph of a file, with XNNPACK's decision about each, as if the file were written sparse.

    Args:
        graph: From `tflite_file.read`, the first.
        changes: Rules to take as lifted.
        names: What to call operators in the reasons, in place of their names in the format.
    """
    nodes = _nodes(graph)
    for node in nodes:
        node.label = (names or {}).get(node.operator, node.name)
        if node.layout.change in changes:
            node.layout = node.layout.lifted
    _decide(nodes, graph, Change.PRUNE in changes)
    return nodes


def _nodes(graph):
    constants = {number: tensor for number, tensor in enumerate(graph.tensors) if tensor.values is not None}
    readers = {}
    for operator in graph.operators:
        for number in operator.inputs:
            readers.setdefault(number, []).append(operator)
    for operator in graph.operators:
        if operator.name in ("DENSIFY", "DEQUANTIZE") and operator.inputs[0] in constants:  # unpacks a constant at load
            unpacked = graph.tensors[operator.outputs[0]]
            constants[operator.outputs[0]] = dataclasses.replace(constants[operator.inputs[0]], dtype=unpacked.dtype)
    maps = _maps(graph)
    pads, nodes = {}, []
    for operator in graph.operators:
        if operator.outputs[0] in constants:
            continue
        if operator.name == "PAD" and operator.inputs[1] in constants and _fuses(operator, constants[operator.inputs[1]], readers, graph):
            pads[operator.outputs[0]] = operator
            continue
        source, padding = operator.inputs[0] if operator.inputs else -1, None
        if source in pads:
            padding = constants[pads[source].inputs[1]].values[1:3]
            source = pads[source].inputs[0]
        others = operator.inputs[1:] if operator.name != "RESHAPE" else ()  # its other input is a shape
        inputs = [number for number in (source, *others) if number >= 0 and number not in constants]
        kernel = (
            next((constants[n] for n in operator.inputs if n in constants and constants[n].values.ndim >= 2), None) if operator.name in WITH_KERNEL else None
        )
        shape = graph.tensors[source].shape if source >= 0 else ()
        output = graph.tensors[operator.outputs[0]].shape
        layout = _layout(operator, graph, constants, shape, output, kernel, padding)
        if layout.stays and len(shape) == 4 and operator.outputs[0] not in maps and output[1:-1] in ((), (1, 1)):  # the head of the network
            layout = dataclasses.replace(layout, change=Change.HEAD, lifted=LEAVES if layout.leaves else AFTER)
        nodes.append(Node(operator, inputs, kernel, shape, output, layout))
    for number in graph.outputs:
        shape = graph.tensors[number].shape
        end = LEAVES if len(shape) == 4 and shape[1:3] != (1, 1) else None
        layout = Layout(rule="is an output of the model", change=Change.END if end else None, lifted=end)
        nodes.append(Node(Operator("OUTPUT", (number,), (), None), [number], None, shape, (), layout))
    return nodes


def _maps(graph):
    """Numbers of the tensors that are feature maps of more than one position, or that such maps are computed from."""
    found = {number for number, tensor in enumerate(graph.tensors) if len(tensor.shape) == 4 and tensor.shape[1:3] != (1, 1)}
    for operator in reversed(graph.operators):
        if found & set(operator.outputs):
            found |= set(operator.inputs)
    return found


def _fuses(operator, paddings, readers, graph):
    """Whether XNNPACK makes a padding operator part of the convolution behind it."""
    behind = readers.get(operator.outputs[0], [])
    spatial = paddings.values.shape == (4, 2) and not paddings.values[[0, 3]].any()
    single = len(behind) == 1 and operator.outputs[0] not in graph.outputs
    return spatial and single and behind[0].name in ("CONV_2D", "DEPTHWISE_CONV_2D") and behind[0].options.padding != _SAME


def _layout(operator, graph, constants, shape, output, kernel, padding):
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
    same = options.padding == _SAME and stride == (1, 1)
    if same or (padding is not None and np.all(padding == size[0] // 2)):
        return STAYS
    return Layout(rule=f"is depthwise with a padding that is not {size[0] // 2} on each side", change=Change.PADDING, lifted=STAYS)


def _x(sizes):
    return "x".join(map(str, sizes))


def _decide(nodes, graph, pruned):
    """Find the clusters, as XNNPACK does, and set `sparse`, `fails` and `why` of every node."""
    producer = {node.operator.outputs[0]: index for index, node in enumerate(nodes) if node.operator.outputs}
    leaders = list(range(len(nodes)))
    leaves = [node.layout.leaves for node in nodes]
    broken = [""] * len(nodes)  # why the cluster of a leader does not work out

    def join(index):
        """Take the producers of the inputs of a node into its cluster; whether anything changed."""
        changed = False
        for number in nodes[index].inputs:
            before = producer.get(number)
            if before is None:
                broken[index] = broken[index] or "it reads an input of the model: no 3x3 stem before it"
            elif (nodes[before].layout.enters or nodes[before].layout.stays) and not broken[before]:
                leaves[before] = False
                if leaders[before] != leaders[index]:
                    leaders[before] = leaders[index] = max(leaders[before], leaders[index])
                    changed = True
            else:
                broken[index] = broken[index] or broken[before] or f"what comes before it, {nodes[before].label}, {nodes[before].layout.rule}"
        return changed

    changed = any([join(index) for index in range(len(nodes)) if leaves[index]])
    found = changed
    while changed:
        changed = any([join(index) for index in range(len(nodes)) if not broken[index] and (nodes[index].layout.stays or leaves[index])])
    for index, leader in enumerate(leaders):
        broken[leader] = broken[leader] or broken[index]

    def works(index):
        return not broken[leaders[index]]

    def inside(index):
        return nodes[index].layout.stays or leaves[index]

    readers, inner = {}, {}
    for index, node in enumerate(nodes):
        for number in dict.fromkeys(node.inputs):
            readers.setdefault(number, []).append(index)
        if works(index) and inside(index):
            for number in node.inputs:
                inner.setdefault(number, []).append(index)
    for index, node in enumerate(nodes):
        for number in node.inputs if works(index) and inside(index) else ():
            if len(inner[number]) != len(readers[number]):
                other = _telling([nodes[reader] for reader in readers[number] if reader not in inner[number]]) or node
                broken[leaders[index]] = f"what it reads also goes to {other.label}, which {other.layout.rule or 'is in no sparse part'}"
    weights, zeros = [0] * len(nodes), [0] * len(nodes)
    for index, node in enumerate(nodes):
        if node.pointwise:
            weights[leaders[index]] += node.kernel.zeros.size
            zeros[leaders[index]] += node.kernel.zero_count

    def pays(index):
        return pruned and weights[leaders[index]] > 0 or zeros[leaders[index]] * 3 > weights[leaders[index]] * 2

    first = set()  # numbers of the tensors that lie channels first
    if found:
        first = {number for index, node in enumerate(nodes) if works(index) and inside(index) and pays(index) for number in node.inputs}
    for index, node in enumerate(nodes):
        reads = any(number in first for number in node.inputs)
        writes = bool(node.operator.outputs) and node.operator.outputs[0] in first
        node.fails = reads and not writes and node.name != "SHAPE" and not (leaves[index] and (not node.layout.keeps or _flattened(node, nodes, readers)))
        node.sparse = reads and writes and node.pointwise
        node.why = "" if node.sparse else _why(node, index, nodes, leaders, broken, found, inside(index), pays(index), weights, zeros, readers)


def _flattened(node, nodes, readers):
    """Whether all that comes after a node is `Flatten`, which asks for no more than the size of the batch."""
    behind = [nodes[reader] for reader in readers.get(node.operator.outputs[0], [])]
    sizes = [nodes[reader].name for each in behind if each.name == "SHAPE" for reader in readers.get(each.operator.outputs[0], [])]
    return {each.name for each in behind} <= {"RESHAPE", "SHAPE"} and set(sizes) <= {"STRIDED_SLICE"}


def _why(node, index, nodes, leaders, broken, found, inside, pays, weights, zeros, readers):
    leader = leaders[index]
    if node.layout.enters:
        return "is the stem, which runs dense"
    if node.layout.rule:
        return node.layout.rule
    if node.name == "DEPTHWISE_CONV_2D":
        return "is depthwise, which runs dense"
    if node.fails:
        return "gets data channels first, and what comes after it takes them as channels last: WRONG OR NO PREDICTIONS"
    if broken[leader] or broken[index]:
        return broken[index] or broken[leader]
    behind = [nodes[reader] for reader in readers.get(node.operator.outputs[0] if node.operator.outputs else -1, [])]
    end = _telling([each for each in behind if not (each.layout.stays or each.layout.leaves)])
    if end is not None and end.name != "OUTPUT":
        return f"what comes after it, {end.label}, {end.layout.rule}"
    if end is not None or not found:
        return "no average over height and width (GlobalAveragePooling2D) comes after it"
    if not pays:
        return f"{zeros[leader] / max(weights[leader], 1):.1%} of the weights of its part are zero, and more than two thirds must be"
    return "no average over height and width (GlobalAveragePooling2D) comes after it"


def _telling(nodes):
    """The first of the nodes that says most: one that only asks for the size of the batch says least."""
    return min(nodes, key=lambda node: node.name == "SHAPE", default=None)
