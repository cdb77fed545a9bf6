"""Write beside the target and move into place, so that the old or the new content is there at every moment."""

import contextlib
import ctypes
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_OLD = "old"
_OPENING = threading.Lock()


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `path`, so that moving its content to `path` is one step.

    What an export that was killed has left beside `path` is taken away first; where it died between two moves, the old content goes back to `path`.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    prefix = f".{path.name}.keras_gibbs-"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _OPENING:
            _recover(path, prefix)
            folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix)
            lock = _lock(folder.name)
    except OSError as error:
        raise OSError(
            f"`path` must lie in a folder that can be written. Received: path={str(path)!r} ({error}). "
            f"Make {str(path.parent)!r} writable or choose another folder."
        ) from error
    try:
        with folder as name:
            yield Path(name)
    except Exception as error:
        if not is_full(error):
            raise
        raise OSError(f"`path` must lie on a disk with room for the files. Received: path={str(path)!r}, whose disk is full. Make room there.") from error
    finally:
        if lock is not None:
            os.close(lock)


def is_full(error: BaseException) -> bool:
    """Whether an error, of Python or of TensorFlow's C++ code, says that a disk is full."""
    return re.search("No space left on device|Disk quota exceeded|File too large", str(error)) is not None


def replace_folder(new: Path, path: Path, work: Path) -> None:
    """Put the folder `new` in the place of `path`. `work` is the folder from `folder_beside`, where the old one ends up."""
    if not path.exists():
        os.replace(new, path)
    elif not _exchanged(new, path):
        try:
            os.replace(path, work / _OLD)
            os.replace(new, path)
        finally:
            if (work / _OLD).exists() and not path.exists():  # failed or interrupted in between
                os.replace(work / _OLD, path)


def _exchanged(one, other):
    """Exchange two folders in one step, where the system can; whether it did."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    one, other = os.fsencode(one), os.fsencode(other)
    if hasattr(library, "renameat2"):  # Linux
        return library.renameat2(-100, one, -100, other, _EXCHANGE) == 0
    if hasattr(library, "renamex_np"):  # macOS
        return library.renamex_np(one, other, _EXCHANGE) == 0
    return False


def _recover(path, prefix):
    for left in path.parent.iterdir():
        if re.fullmatch(re.escape(prefix) + r"[a-z0-9_]{8}", left.name) and (lock := _lock(left)) is not None:
            if (left / _OLD).exists() and not path.exists():
                os.replace(left / _OLD, path)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _lock(folder):
    """Mark a folder as in use for as long as the descriptor that is returned is open, at most until the process dies. None: it is in use, or nobody knows."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
