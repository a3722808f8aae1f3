"""A lock between processes (and threads) that share a folder.

The operating system holds it and frees it when its holder dies, however that happens: a lock cannot go stale.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WINDOWS = os.name == "nt"
if WINDOWS:
    import msvcrt
else:
    import fcntl

log = logging.getLogger("resshift")

POLL_S = 0.2
DENIED = 10  # times in a row that Windows may refuse the file: while its last holder deletes it, it does


def _lock(handle: int) -> bool:
    """Whether the open file could be locked. File systems that know no locks (some network shares) say yes."""
    try:
        if WINDOWS:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        log.debug("This file system has no locks (%s); going on without.", error)
    return True


def _try_acquire(path: Path) -> int | None:
    """Handle of the locked file, or None while somebody else holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # The holder before us deletes the file: a lock on a deleted file keeps nobody out.
        if _lock(handle) and path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _release(path: Path, handle: int) -> None:
    if WINDOWS:  # an open file cannot be deleted; one that somebody else has open stays, and is theirs to delete
        os.close(handle)
        _delete(path)
    else:  # deleted while held, so that nobody can lock the name in between
        _delete(path)
        os.close(handle)


def _delete(path: Path) -> None:
    """A lock file that cannot be deleted stays: it locks as well as a new one."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s stays (%s).", path, error)


@contextmanager
def file_lock(path: str | os.PathLike, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold `path` (a file made for this purpose) exclusively during the block; wait for it as long as it takes.

    Args:
        on_wait: called about five times a second while somebody else holds it; may raise to give up.

    Raises:
        OSError: the file cannot be made.
    """
    path, denied = Path(path), 0
    while True:
        try:
            handle, denied = _try_acquire(path), 0
        except PermissionError:  # of whom, is not known yet: nobody is told that somebody else holds it
            denied += 1
            if not WINDOWS or denied > DENIED:
                raise
            handle = None
        if handle is not None:
            break
        if on_wait is not None and not denied:
            on_wait()
        time.sleep(POLL_S)
    try:
        yield
    finally:
        _release(path, handle)
