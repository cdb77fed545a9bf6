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
) | {
    "sparse_ready": Encoding(plain="dense", rewritten=True),
    "sparse_ready_float16": Encoding("float16", plain="float16", rewritten=True),
}


def rewritten(encoding: str) -> str | None:
    """The encoding that stores the rewritten network as `encoding` stores the network as it is; None if there is none."""
    return next((name for name, form in ENCODINGS.items() if form.rewritten and alike(name, encoding)), None)


def alike(one: str, other: str) -> bool:
    """Whether two encodings differ at most in the network that they store: as it is, or rewritten."""
    return dataclasses.replace(ENCODINGS[one], rewritten=False) == dataclasses.replace(ENCODINGS[other], rewritten=False)
