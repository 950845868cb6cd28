"""Keeps a run's metrics by round, through interruptions too."""

import keras
import numpy as np


class Recorder(keras.callbacks.Callback):
    """Gathers the logs of every round and hands all of them on after each.

    Checkpoints hold a callback's lists of plain values, so a run that goes on has the rounds that
    came before its checkpoint, and those only.

    Args:
        begin: Called when `fit` has checked its arguments and is about to train.
        write: Called with a list of dictionaries, one a round.

    Attributes:
        begun: Whether training has begun.
    """

    def __init__(self, begin, write):
        super().__init__()
        self._begin = begin
        self._write = write
        self._logs = []
        self.begun = False

    @property
    def rows(self):
        """A dictionary of numbers a round; `round` counts from 1."""
        return [{"round": number, **dict(items)} for number, items in self._logs]

    def on_train_begin(self, logs=None):
        self._begin()
        self.begun = True

    def on_epoch_end(self, epoch, logs=None):
        items = [[n, float(v)] for n, v in (logs or {}).items() if np.ndim(v) == 0]
        self._logs = [*self._logs, [epoch + 1, items]]
        self._write(self.rows)
