"""A lock on a directory: it has one user at a time, and a killed one leaves no lock behind."""

import contextlib
import os
import socket
import time
import warnings
import weakref
from pathlib import Path

from tffed import private_files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_HELD = weakref.WeakSet()
_BYTE = 2**30  # Windows locks bytes against reading too: one far behind the text


class LockedError(Exception):
    """A directory that another process, or another part of this one, uses. `str` says who."""


class Lock:
    """An exclusive lock on a directory, from here to `close`; the system's, so it ends with us.

    The file stays, with the process and the machine of the last owner in it.

    Args:
        directory: The directory, which exists.

    Raises:
        LockedError: It is locked.
        OSError: The file cannot be made.
    """

    def __init__(self, directory: str | Path):
        self.path = Path(directory) / "lock"
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._descriptor = private_files.opener(self.path, flags)  # not inherited by programs
        try:
            _take(self._descriptor, self.path)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, _me())
        except BaseException:
            self._release()
            raise
        _HELD.add(self)

    def close(self):
        """Gives the directory back. Closing twice does nothing."""
        _HELD.discard(self)
        if fcntl is not None and self._descriptor is not None:
            with contextlib.suppress(OSError):  # a file system that has no locks
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # for copies in forked processes too
        self._release()

    def _release(self):
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _me():
    return f"process {os.getpid()} on {socket.gethostname()}\n".encode()


def _take(descriptor, path):
    if fcntl is None:
        _take_on_windows(descriptor, path)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(_owner(path)) from error
    except OSError as error:  # a file system that has no locks
        warnings.warn(
            f"{path.parent} cannot be locked ({error}). Make sure that no other process uses it.",
            stacklevel=2,
        )


def _take_on_windows(descriptor, path):
    import msvcrt

    os.lseek(descriptor, _BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise LockedError(_owner(path)) from error
    os.lseek(descriptor, 0, os.SEEK_SET)


def _owner(path):
    """Who holds the lock, as its file says; the owner writes it just after it has the lock."""
    time.sleep(0.05)
    with contextlib.suppress(OSError):
        if said := path.read_text(errors="replace").strip():
            return said + (" (this process)" if said == _me().decode().strip() else "")
    return "another process"


def _forget():
    """In a forked process: the locks are the parent's, and must end when that is killed."""
    for lock in list(_HELD):
        lock._release()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
