"""A worker of the comparison as the benchmark sees it: a process that answers lines."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

from experiments.benchmarks.peer_environments import NotMeasured

_ROOT = Path(__file__).parents[2]
# Enough for all rounds of the slowest peer in one answer.
_PATIENCE = 1800
_FAREWELL = 60  # for what has ended its work or failed


class Worker:
    """Starts a worker and waits until it is ready.

    Args:
        python: Interpreter of the peer's environment.
        script: The worker's file.
        federation: Path of the npz file.
        log: File for what the peer prints.
        patience: Seconds to wait for an answer.

    Attributes:
        versions: `{package: version}` of what is measured.

    Raises:
        NotMeasured: It ended or gave no answer in time.
    """

    def __init__(self, python, script, federation, log, patience=_PATIENCE):
        self._log, self._patience = Path(log), patience
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                [str(python), str(script), str(federation)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=_surroundings(script),
                start_new_session=True,
            )
        self.versions = self._answer()["ready"]

    def ask(self, command):
        """Sends a line and returns the answer; see `peer_protocol`.

        Raises:
            NotMeasured: The worker ended or gave no answer in time.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer tells
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        late = threading.Event()

        def give_up():
            late.set()
            self._kill()

        timer = threading.Timer(self._patience, give_up)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAREWELL)
        self._kill()
        code = self._process.wait()
        if late.is_set():
            raise NotMeasured(f"It gave no answer in {self._patience} seconds. See {self._log}.")
        raise NotMeasured(f"It ended with status {code}: {self._last_words()}. See {self._log}.")

    def _last_words(self):
        """The last line of the log that names an exception, or just the last one."""
        lines = self._log.read_text(errors="replace").strip().splitlines() or ["no message"]
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
        return (named or lines)[-1].strip().rstrip(".:")

    def close(self):
        """Ends the worker and what it has started."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAREWELL)
        self._kill()
        self._process.wait()
        self._process.stdout.close()

    def _kill(self):
        with contextlib.suppress(ProcessLookupError):  # the whole group has ended
            os.killpg(self._process.pid, signal.SIGKILL)


def _surroundings(script):
    """A worker's environment: processors only, and the source of tffed for tffed alone."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if Path(script).name == "tffed_worker.py":
        found["PYTHONPATH"] = str(_ROOT)
    return found | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
