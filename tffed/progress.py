"""Progress of a run: one line a round, and on a terminal a bar with the time left."""

import math
import sys
import time

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_COUNTS = ("clients", "dropped", "empty", "examples", "bytes_up", "bytes_down", "seconds")


class RoundProgress(keras.callbacks.Callback):
    """Prints each round's loss and metrics, speed, traffic and the time left.

    On a terminal a bar stays below the lines. In a notebook or a log file only lines are written.

    Args:
        rounds: The number of the last round.
        bar: Whether to show the bar; None: if standard output is a terminal.
    """

    def __init__(self, rounds, bar=None):
        super().__init__()
        self._rounds = rounds
        self._bar = sys.stdout.isatty() if bar is None else bar
        self._live = None

    def on_train_begin(self, logs=None):
        self._done = 0
        self._start = time.perf_counter()
        if self._bar:
            self._live = Progress(
                TextColumn("rounds"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(),
                transient=True,
            )
            self._task = self._live.add_task("rounds", total=self._rounds)
            self._live.start()

    def on_epoch_end(self, epoch, logs=None):
        self._done += 1
        left = (time.perf_counter() - self._start) / self._done * (self._rounds - epoch - 1)
        line = round_line(epoch + 1, self._rounds, logs or {}, left)
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.console.print(line, highlight=False, soft_wrap=True)
            self._live.update(self._task, completed=epoch + 1)

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Takes the bar away; safe to call twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def round_line(number, rounds, logs, seconds_left):
    """One round as a line of text."""
    width = len(str(rounds))
    shown = {k: v for k, v in logs.items() if k not in _COUNTS and getattr(v, "ndim", 0) == 0}
    order = sorted(shown, key=lambda k: (k.startswith("val_"), not k.endswith("loss")))
    metrics = [f"{k} {_number(float(shown[k]))}" for k in order]
    clients, examples = logs.get("clients", 0), logs.get("examples", 0)
    seconds = max(logs.get("seconds", 0.0), 1e-9)
    counts = [
        f"{clients:.0f} clients",
        f"{clients / seconds:.3g} clients/s",
        f"{examples / seconds:,.0f} examples/s",
        f"up {_bytes(logs.get('bytes_up', 0))}",
        f"down {_bytes(logs.get('bytes_down', 0))}",
        f"left {_duration(seconds_left)}",
    ]
    if logs.get("dropped"):
        counts.insert(1, f"{logs['dropped']:.0f} left out (not finite)")
    if logs.get("empty"):
        counts.insert(1, f"{logs['empty']:.0f} without examples")
    return f"round {number:{width}}/{rounds}  {'  '.join(metrics)}  ({', '.join(counts)})"


def _number(value):
    return "undefined" if math.isnan(value) else f"{value:.4g}"


def _bytes(count):
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
