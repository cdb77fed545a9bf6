"""Files of results: JSON lines, one file a suite, one line a finished run, with its versions and seeds.

Several processes may write to one file at the same time, and a line is in it whole or not at all.
"""

import contextlib
import json
import os
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"
BUILD = RESULTS.parent.parent / "build"


def read(file):
    """The lines of a file of results as a list of dicts; none where there is no file."""
    file = Path(file)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def append(file, record):
    """Add one line to a file of results, which is made where there is none."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with lock(file.parent):
        write_text(file, (file.read_text() if file.exists() else "") + json.dumps(record) + "\n")


def write_text(file, text):
    """Write a file in one piece: what is there is the new text or the old one."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    new.write_text(text)
    os.replace(new, file)


@contextlib.contextmanager
def lock(folder, wait=True):
    """Keep other processes out of the same block, as long as this one is in it; the end of a process frees its locks.

    Args:
        folder: A folder that exists; it is not changed.
        wait: Whether to wait until the lock is free.

    Yields:
        False where another process has the lock and `wait` is false, else True. On Windows, where folders cannot be locked, always True.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        yield False
        return
    try:
        yield True
    finally:
        os.close(handle)
