"""Write beside the target and move into place; keep C++ code quiet meanwhile."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `path`, so that moving its content to `path` is one step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(
            f"`path` must lie in a folder that can be written. Received: path={str(path)!r} ({error}). "
            f"Make {str(path.parent)!r} writable or choose another folder."
        ) from error
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what C++ code writes to standard output and error; show it if the block fails."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as restore:
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            restore.callback(os.close, saved)
            restore.callback(os.dup2, saved, descriptor)
            os.dup2(held.fileno(), descriptor)
        try:
            yield
        except Exception:
            restore.close()
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
