"""Files that are whole or absent: atomic writes, durable appends and folder locks, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import StoreError


def store_error(action: str, path: Path, error: OSError) -> StoreError:
    """Return the error for a file that cannot be ``action`` (read, written)."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"cannot be {action}: no space left for {path}",
            hint="free some space and say it again; everything before this turn is kept",
        )
    reason = error.strerror or error
    return StoreError(f"{path} cannot be {action}: {reason}", hint="check the path and its permissions")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file beside ``path`` to write into; it is flushed to the disk and renamed into place when the block ends.

    Raises:
        OSError: as the system gave it; after any error ``path`` is as it was, and nothing lies beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, flush it to the disk and rename it into place.

    Raises:
        StoreError: if the disk is full or the folder cannot be written; ``path`` is then as it was.
    """
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise store_error("written", path, error) from error


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it to the disk; on failure the file keeps its old length.

    Raises:
        StoreError: if the disk is full or the file cannot be written.
    """
    data = line.encode("utf-8") + b"\n"
    try:
        existed = path.exists()
        with path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                written = file.write(data)
                if written != len(data):
                    raise OSError(errno.ENOSPC, "only part of the line was written")
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(start)
                raise
        if not existed:
            sync_folder(path.parent)
    except OSError as error:
        raise store_error("written", path, error) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path, purpose: str) -> Iterator[None]:
    """Hold ``folder`` for this process alone; the lock ends with the process, however it ends.

    Raises:
        StoreError: if another process holds it.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise store_error("opened", folder, error) from error
    with file, _held_folder(folder) as alone:
        if not (alone and _lock(file.fileno())):
            raise StoreError(
                f"{folder} is in use by another {purpose}", hint="close the other one, or use another folder"
            )
        yield


@contextmanager
def _held_folder(folder: Path) -> Iterator[bool]:
    """Lock the folder itself where the system can, so that a deleted ``.lock`` lets nobody in; False if it is held."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield True
        return
    try:
        try:
            alone = _lock(descriptor)
        except OSError:  # a file system without locks on folders
            alone = True
        yield alone
    finally:
        os.close(descriptor)


def sweep_parts(*folders: Path) -> None:
    """Remove what killed writes of :func:`replacing` left; only for whoever holds the folders."""
    for folder in folders:
        for path in folder.glob(".*.part"):
            path.unlink(missing_ok=True)


def _lock(descriptor: int) -> bool:
    """Take an exclusive lock without waiting; False if someone else has it."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
