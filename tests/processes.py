"""Processes that tests start and kill."""

import signal
import subprocess
import sys
import time


def start(script, *arguments):
    """Starts a Python process that runs a script, with its output as a pipe of text."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_during(script, *arguments, lines, seconds, seen=None):
    """Kills a script that prints "ready" and then one number after another.

    Args:
        script: The script; `arguments` are its own.
        lines: How many numbers it is left to print first.
        seconds: How long it is left to go on after that.
        seen: Instead of `seconds`: kill it when this function returns something true.

    Returns:
        The numbers that it printed.
    """
    with start(script, *arguments) as process:
        assert process.stdout.readline() == "ready\n"
        printed = [process.stdout.readline() for _ in range(lines)]
        deadline = time.monotonic() + (seconds if seen is None else 20)
        while time.monotonic() < deadline and not (seen and seen()):
            time.sleep(0 if seen else seconds)
        process.send_signal(signal.SIGKILL)
        printed += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    return [int(line) for line in printed if line.endswith("\n")]
