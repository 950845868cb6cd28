"""The virtual environments of the comparison's peers, one each, from pinned requirements.

`peer_workers/NAME.txt` lists every package that peer NAME needs, its version pinned, for Python
3.11 on x86-64 Linux. So pip resolves nothing, and a peer of years ago installs as on the day when
the list was made, though some of what it names itself is no longer to be had.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

WORKERS = Path(__file__).parent / "peer_workers"
PYTHON = "3.11"
_DONE = "requirements.sha256"  # written last: which requirements the environment has


class NotMeasured(Exception):
    """A peer cannot be measured; says why."""


def default_cache():
    """Where environments are kept: `tffed-peers` in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tffed-peers"


def environment(peer, cache, python=None):
    """Makes a peer's environment, unless it is there.

    Args:
        peer: Name of the peer.
        cache: Directory of the environments.
        python: The interpreter to make it with; None: a Python 3.11 found on PATH.

    Returns:
        Path of the environment's Python.

    Raises:
        NotMeasured: There is no such interpreter, or a package cannot be installed.
    """
    requirements = WORKERS / f"{peer}.txt"
    folder = Path(cache).absolute() / peer
    inside, done = folder / "bin" / "python", folder / _DONE
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if inside.exists() and done.exists() and done.read_text() == wanted:
        return inside
    interpreter = find_python(python)
    print(f"Installing {peer} in {folder}", flush=True)
    _run([interpreter, "-m", "venv", "--clear", folder], f"make an environment in {folder}")
    install = ["-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    _run([inside, *install, "--requirement", requirements], f"install {requirements.name}")
    done.write_text(wanted)
    return inside


def find_python(python=None):
    """Path of the interpreter that the peers' packages are pinned for.

    Args:
        python: Path or name of one to use instead of those on PATH.

    Raises:
        NotMeasured: There is none, or it has another version.
    """
    candidates = [python] if python else [sys.executable, f"python{PYTHON}", "python3"]
    for candidate in candidates:
        if _version(candidate) == PYTHON:
            return shutil.which(candidate)
    received = f"--python={python}, which is {_version(python) or 'none'}" if python else "none"
    raise NotMeasured(
        f"Expected a Python {PYTHON}. Received: {received}. Install it, or name one with --python."
    )


def _version(python):
    """`"3.11"`, or None where there is no Python that runs: a shim may stand for none."""
    found = shutil.which(python)
    if found is None:
        return None
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([found, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or None


def _run(command, what):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise NotMeasured(f"Could not {what}: {errors[-1]}")
