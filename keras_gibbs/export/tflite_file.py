"""Read a .tflite file: its tensors, with constants unpacked, and its operators.

Format: tensorflow/lite/schema/schema.fbs, whose generated reader comes with LiteRT and with TensorFlow.
"""

import dataclasses
import functools

import numpy as np

# The format's TensorType numbers. Constants of other types hold no weights.
_DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8, 10: np.float64}
_WEIGHTS = (np.float32, np.float16, np.int8)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file.

    Attributes:
        name: As the converter calls it.
        shape: Its sizes; 1 stands for a batch of any size.
        dtype: NumPy type, or None for one that no weight has.
        values: The constant, unpacked where it is stored sparse; None for what is computed.
        zeros: Where the constant stands for 0: at its zero point if it is quantized. None without `values`.
        sparse: Whether only non-zero values are stored.
        buffer: Number of the stored constant; tensors of equal content may share it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: type | None
    values: np.ndarray | None
    zeros: np.ndarray | None
    sparse: bool
    buffer: int

    @functools.cached_property
    def zero_count(self) -> int:
        """How many values are zero."""
        return int(np.count_nonzero(self.zeros))


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """An operator: its name in the format (`"CONV_2D"`), its options, and the numbers of its tensors."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: object


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A subgraph of the file: the first is the model, others are bodies of loops."""

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def schema():
    """The generated reader of the format."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        from tensorflow.lite.python import schema_py_generated
    return schema_py_generated


def read(content: bytes) -> list[Graph]:
    """The subgraphs of a .tflite file.

    Raises:
        ValueError: A constant is stored in a way that does not fit its shape.
    """
    reader = schema()
    names = {number: name for name, number in vars(reader.BuiltinOperator).items() if isinstance(number, int)}
    model = reader.ModelT.InitFromPackedBuf(content, 0)

    def operator(op):
        code = model.operatorCodes[op.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = names[number] if number != reader.BuiltinOperator.CUSTOM else code.customCode.decode()
        return Operator(name, tuple(map(int, op.inputs)), tuple(map(int, op.outputs)), op.builtinOptions)

    return [
        Graph(
            [_tensor(tensor, model.buffers[tensor.buffer]) for tensor in graph.tensors],
            [operator(op) for op in graph.operators if op.outputs is not None],
            tuple(map(int, graph.inputs if graph.inputs is not None else ())),
            tuple(map(int, graph.outputs if graph.outputs is not None else ())),
        )
        for graph in model.subgraphs
    ]


def weights(graphs: list[Graph]) -> list[Tensor]:
    """The constants of rank 2 or more that may be kernels, each stored one once."""
    found = {}
    for tensor in (tensor for graph in graphs for tensor in graph.tensors):
        if tensor.values is not None and len(tensor.shape) >= 2 and tensor.dtype in _WEIGHTS:
            found.setdefault(tensor.name if not tensor.buffer or tensor.sparse else tensor.buffer, tensor)
    return list(found.values())


def count(graphs: list[Graph], name: str) -> int:
    """How many operators of that name the file holds."""
    return sum(operator.name == name for graph in graphs for operator in graph.operators)


def flex_operators(graphs: list[Graph]) -> list[str]:
    """Names of TensorFlow's own operators in the file."""
    return sorted({operator.name for graph in graphs for operator in graph.operators if operator.name.startswith("Flex")})


def float_operators(graphs: list[Graph]) -> list[str]:
    """Names of the operators that compute in float32, those apart that only turn integers into it."""
    return sorted(
        {
            operator.name
            for graph in graphs
            for operator in graph.operators
            if operator.name != "DEQUANTIZE" and any(graph.tensors[number].dtype is np.float32 for number in operator.outputs)
        }
    )


def _tensor(tensor, buffer):
    shape = tuple(map(int, tensor.shape)) if tensor.shape is not None else ()
    dtype = _DTYPES.get(tensor.type)
    stored = buffer.data is not None and len(buffer.data) > 0
    values = zeros = None
    if dtype is not None and (stored or tensor.sparsity is not None):  # a sparse one with nothing but zeros has an empty buffer
        data = np.frombuffer(np.asarray(buffer.data, np.uint8).tobytes() if stored else b"", dtype)
        values = _unpacked(data, shape, tensor.sparsity) if tensor.sparsity is not None else data.reshape(shape)
        zeros = values == _zero_point(tensor.quantization, values)
    return Tensor(tensor.name.decode(), shape, dtype, values, zeros, tensor.sparsity is not None, tensor.buffer)


def _zero_point(quantization, values):
    points = getattr(quantization, "zeroPoint", None)
    if points is None or not len(points):
        return 0
    if len(points) == 1:
        return int(points[0])
    shape = [1] * values.ndim
    shape[quantization.quantizedDimension] = len(points)
    return np.asarray(points).reshape(shape)


def _unpacked(data, shape, sparsity):
    """The dense form of a constant stored level by level, each level dense or compressed, with blocks as levels of their own.

    Every level numbers its entries; `coordinates[level]` says where each entry of the current level lies on that level.
    """
    coordinates, entries = [], 1
    for level in sparsity.dimMetadata:
        if level.format == 0:  # dense: every entry has `denseSize` children
            parents = np.repeat(np.arange(entries), level.denseSize)
            own = np.tile(np.arange(level.denseSize), entries)
        else:
            segments = np.asarray(level.arraySegments.values).astype(np.int64)
            parents = np.repeat(np.arange(entries), np.diff(segments))
            own = np.asarray(level.arrayIndices.values if level.arrayIndices else []).astype(np.int64)
        coordinates = [each[parents] for each in coordinates] + [own]
        entries = len(parents)
    rank, at = len(shape), [np.zeros(entries, np.int64) for _ in shape]
    for number, own, level in sorted(zip(map(int, sparsity.traversalOrder), coordinates, sparsity.dimMetadata), key=lambda each: each[0]):
        if number < rank:
            at[number] = own
        else:  # inside a block: `at` has counted blocks so far
            axis = int(sparsity.blockMap[number - rank])
            at[axis] = at[axis] * int(level.denseSize) + own
    dense = np.zeros(shape, data.dtype)
    if any(np.any(own >= size) for own, size in zip(at, shape)) or entries > data.size:
        raise ValueError(f"its sparse storage reaches beyond a kernel of shape {shape}")
    if entries:
        dense[tuple(at)] = data[:entries]
    return dense
