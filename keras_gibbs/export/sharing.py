"""A .tflite file that holds equal lists of numbers once.

TensorFlow's converter writes a zero point of eight bytes for every channel of every kernel and bias in int8, all of them 0: 4 % of a MobileNet, and 7 % of one
with half of its channels, are zeros of this kind. The format lets several tables refer to the same list.
"""

import flatbuffers

from keras_gibbs.export.tflite_file import schema

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16  # what the format asks of constants


def shared(content: bytes) -> bytes:
    """The same .tflite file with equal lists of numbers stored once; `content` itself where it is no larger.

    A file with constants behind its tables, as those of more than 2 GB have, is left as it is.
    """
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    if any(getattr(buffer, "offset", 0) for buffer in model.buffers):
        return content
    builder = _Builder(len(content))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    smaller = bytes(builder.Output())
    return smaller if len(smaller) < len(content) else content


class _Builder(flatbuffers.Builder):
    """Writes every list of numbers once, and aligns constants, which are lists of bytes."""

    def __init__(self, size):
        super().__init__(size)
        self._written = {}

    def CreateNumpyVector(self, x):
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            if x.dtype == "uint8":
                self.Prep(_ALIGNMENT, x.nbytes)
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]
