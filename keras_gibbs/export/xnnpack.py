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

import numpy as np

from keras_gibbs.export.layouts import AFTER, LEAVES, SAME, WITH_KERNEL, Change, Layout, layout_of
from keras_gibbs.export.tflite_file import Graph, Operator, Tensor


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
        layout = layout_of(operator, graph, constants, shape, output, kernel, padding)
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
    return spatial and single and behind[0].name in ("CONV_2D", "DEPTHWISE_CONV_2D") and behind[0].options.padding != SAME


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
