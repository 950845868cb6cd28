"""What a run writes down so that it can go on after any interruption, with the same bits."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tffed.checkpoint import Checkpoints
from tffed.journal import Journal
from tffed.store import ClientStore


class Resumed(NamedTuple):
    """What a checkpoint gives back.

    Attributes:
        state: The `ServerState`.
        epoch: Rounds of this run that are done.
        history: `{name: [value by round]}` so far, and the rounds' numbers.
        callbacks: What `Snapshot.capture` gave.
    """

    state: Any
    epoch: int
    history: dict
    callbacks: tuple


class RunFiles:
    """The checkpoints and the client store of a run in one directory.

    A checkpoint holds the server's state; clients' own states are rows of a database that are
    numbered by round, so that going back to a checkpoint takes back the rows written after it.

    Args:
        directory: Where the files go; None: nothing is written.
        fingerprint: What the run is, as a dictionary; a checkpoint of another run is refused.
        store: The `ClientStore` so far, to go on with where there is no checkpoint.
        keep: How many checkpoints stay.
    """

    def __init__(self, directory, fingerprint, store=None, keep=2):
        self._fingerprint = fingerprint
        self._checkpoints = None
        self.store = ClientStore() if store is None else store
        if directory is None:
            return
        self._checkpoints = Checkpoints(directory, keep=keep)
        self._clients = Path(directory) / "clients.sqlite"
        self._journal = Journal(Path(directory) / "releases.jsonl")

    @property
    def empty(self):
        """Whether checkpoints are to be written and there is none yet."""
        return self._checkpoints is not None and self._checkpoints.latest() is None

    def peek(self):
        """`{"epoch", "round", "privacy"}` of the newest checkpoint, or None if there is none.

        And `"noted"`: the records of `note` of rounds after it.
        """
        if self._checkpoints is None or self.empty:
            return None
        manifest = self._checkpoints.load(expect=self._fingerprint).manifest
        found = {name: manifest[name] for name in ("epoch", "round")}
        noted = [r for r in self._journal.read() if r["number"] >= found["round"]]
        return found | {"privacy": manifest["history"]["privacy"], "noted": noted}

    def note(self, record):
        """Writes down that a round was released, before anybody sees it; see `Ledger.record`."""
        if self._checkpoints is not None:
            self._journal.add(record.to_json())

    def load(self, like):
        """The newest checkpoint as a `Resumed`, or None if there is none.

        Args:
            like: A `ServerState` of this run, for its structure.
        """
        if self._checkpoints is None:
            self.store.rollback(int(like.round))
            return None
        if self._checkpoints.latest() is None:
            before = {cid: self.store.get(cid) for cid in self.store}
            self._open_store(-1)
            self.store.put_all(int(like.round), before)
            return None
        leaves, manifest = self._checkpoints.load(expect=self._fingerprint)
        self._open_store(manifest["round"])
        count = len(tf.nest.flatten(like))
        state = tf.nest.pack_sequence_as(like, [tf.constant(leaf) for leaf in leaves[:count]])
        callbacks = (manifest["callbacks"], leaves[count:])
        return Resumed(state, manifest["epoch"], manifest["history"], callbacks)

    def _open_store(self, round_number):
        if self.store.path == str(self._clients):
            self.store.close()
        self.store = ClientStore(self._clients)
        self.store.rollback(round_number)

    def save(self, state, epoch, history, callbacks):
        """Writes a checkpoint after round `epoch` of this run."""
        if self._checkpoints is None:
            return
        values, arrays = callbacks
        number = int(state.round)
        manifest = {
            "fingerprint": self._fingerprint,
            "round": number,
            "epoch": epoch,
            "history": _plain(history),
            "callbacks": values,
        }
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(state)]
        oldest = self._checkpoints.save(number, [*leaves, *arrays], manifest)
        self.store.prune(oldest)
        self._journal.drop_before(oldest)


def _plain(value):
    """Numbers and arrays of a history as JSON-able Python values."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
