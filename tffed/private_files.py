"""Files and folders that their owner alone can read, whatever the umask."""

import contextlib
import os
from pathlib import Path

_FILE, _FOLDER = 0o600, 0o700


def opener(path, flags):
    """For `open(…, opener=)`: what it makes is readable by its owner alone."""
    descriptor = os.open(path, flags, _FILE)
    _restrict(path, _FILE)
    return descriptor


def make_file(path):
    """Makes an empty file if there is none, and takes the rights of others away if there is one."""
    os.close(opener(path, os.O_RDWR | os.O_CREAT))


def make_folder(path):
    """Makes a folder, and those above it, if there is none; one that is there stays as it is."""
    path = Path(path)
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=_FOLDER, exist_ok=True)
    _restrict(path, _FOLDER)


def restrict(paths):
    """Takes the rights of others to files away."""
    for path in paths:
        _restrict(path, _FILE)


def _restrict(path, mode):
    # Nothing to take where rights are no bits (Windows); another's file is not ours to change.
    with contextlib.suppress(OSError):
        if os.name == "posix" and os.stat(path).st_mode & 0o777 != mode:
            os.chmod(path, mode)
