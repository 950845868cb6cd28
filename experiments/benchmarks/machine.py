"""What the benchmarks share: flags, processes of their own, and what ran them."""

import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

from absl import flags as absl_flags

from experiments import results


def parse(argv, module, text, define):
    """Parses a benchmark's flags; wrong ones end the program with one line.

    Args:
        argv: The program's name and its arguments.
        module: Name under which `--help` lists the flags.
        text: What `--help` says first.
        define: `(common) -> None`: defines the flags, each with the keyword arguments `common`.

    Returns:
        The `absl.flags.FlagValues`.
    """
    values = absl_flags.FlagValues()
    define({"flag_values": values, "module_name": module})
    if any(a in ("--help", "-h") for a in argv[1:]):
        print(f"{text}\n{values.get_help()}")
        sys.exit(0)
    try:
        left = values(argv)[1:]
    except absl_flags.Error as error:
        sys.exit(f"error: {error}")
    if left:
        sys.exit(f"error: Expected flags only. Received: {' '.join(left)}")
    return values


def in_process(module, request):
    """Runs `python -m module REQUEST` and returns what its last line of output says.

    Args:
        module: A module whose program takes a JSON text and prints one.
        request: What to ask of it, JSON-able.

    Raises:
        RuntimeError: The process failed; its own message stands on standard error.
    """
    command = [sys.executable, "-m", module, json.dumps(request)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(
            f"Expected {module} to measure {request}. Received: exit status {done.returncode}. "
            "What it wrote stands above."
        )
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory():
    """The largest resident memory of this process in MB, with those of its living children.

    The children's peaks are read on Linux only; pages that processes share are counted in each.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return (own + sum(_children(os.getpid()))) / 1e6


def _children(parent):
    """Peak resident bytes of each living child of a process, and of theirs."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        except (OSError, ValueError):  # the process has ended
            continue
        if int(fields["PPid"]) == parent and "VmHWM" in fields:
            yield int(fields["VmHWM"].split()[0]) * 1024
            yield from _children(int(fields["Pid"]))


def describe():
    """The machine and the versions that figures depend on, JSON-able."""
    return {
        "processors": os.cpu_count(),
        "usable_processors": len(os.sched_getaffinity(0)) if sys.platform == "linux" else None,
        "processor": _processor(),
        "system": platform.platform(),
        "versions": results.versions(),
        "git": results.git_commit(),
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
