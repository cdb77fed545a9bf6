"""Encodings of a .tflite file: how its weights are stored."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the weights are stored.

    Attributes:
        dtype: `"float32"`, `"float16"` or `"int8"`, of the weights.
        calibrated: Whether activations are int8 too, in ranges measured on representative data. Inputs and outputs stay float32.
        plain: Name of the same encoding without sparse storage.
        rewritten: Whether it holds the network as `sparse_ready` rewrites it.
    """

    dtype: str = "float32"
    calibrated: bool = False
    plain: str | None = None
    rewritten: bool = False

    @property
    def sparse(self) -> bool:
        """Whether only weights that are not zero are stored."""
        return self.plain is not None


def _with_sparse_forms(encodings):
    for name, encoding in encodings.items():
        yield name, encoding
        yield "sparse" if name == "dense" else f"sparse_{name}", dataclasses.replace(encoding, plain=name)


# A new encoding is one line here.
ENCODINGS = dict(
    _with_sparse_forms(
        {
            "dense": Encoding(),
            "float16": Encoding("float16"),
            "dynamic_int8": Encoding("int8"),
            "int8": Encoding("int8", calibrated=True),
        }
    )
) | {"sparse_ready": Encoding(plain="dense", rewritten=True)}
