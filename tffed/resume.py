"""What a run writes down so that it can go on after any interruption, with the same bits."""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tffed import private_files
from tffed.checkpoint import CheckpointError, Checkpoints
from tffed.journal import Journal
from tffed.lock import Lock, LockedError
from tffed.store import ClientStore

_FILES = ("round-*.ckpt", "clients.sqlite*", "releases.jsonl")


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
    numbered by round, so that going back to a checkpoint takes back the rows written after it. The
    checkpoint holds their digest, so that a run does not go on without them.

    The directory is this object's alone until `with` ends. The files hold secrets: their owner
    alone can read them.

    Args:
        directory: Where the files go; None: nothing is written.
        fingerprint: What the run is, as a dictionary; a checkpoint of another run is refused.
        store: The `ClientStore` so far, to go on with where there is no checkpoint.
        keep: How many checkpoints stay.

    Raises:
        CheckpointError: Somebody else uses the directory, or it cannot be made.
    """

    def __init__(self, directory, fingerprint, store=None, keep=2):
        self._fingerprint = fingerprint
        self._checkpoints = self._lock = None
        self.store = ClientStore() if store is None else store
        if directory is None:
            return
        if not os.fspath(directory):
            raise ValueError(
                "Expected the name of a directory, or None to write no checkpoints. Received: "
                f"checkpoint_dir={directory!r}. Give '.' for the present one."
            )
        directory = Path(directory).absolute()  # a callback may go to another one
        self._checkpoints = Checkpoints(directory, keep=keep)
        self._clients = directory / "clients.sqlite"
        self._journal = Journal(directory / "releases.jsonl")
        self._lock = _lock(directory)
        private_files.restrict(path for name in _FILES for path in directory.glob(name))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Leaves the directory to others; the client store can still be read."""
        if self._lock is not None:
            self._lock.close()

    @property
    def empty(self):
        """Whether checkpoints are to be written and there is none yet."""
        return self._checkpoints is not None and self._checkpoints.latest() is None

    def peek(self, rounds=None):
        """`{"epoch", "round", "privacy"}` of the newest checkpoint, or None if there is none.

        And `"noted"`: the records of `note` of rounds after it. Warns if more rounds than `rounds`
        are done: this run cannot go back.
        """
        if self._checkpoints is None or self.empty:
            return None
        manifest = self._checkpoints.load(expect=self._fingerprint).manifest
        if rounds is not None and manifest["epoch"] > rounds:
            warnings.warn(
                f"The run in {self._checkpoints.directory} is at round {manifest['epoch']}, and "
                f"rounds={rounds} asks for fewer: nothing is trained, and the model is that of "
                f"round {manifest['epoch']}. Give more rounds, or another checkpoint_dir.",
                stacklevel=4,
            )
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
            if self.store.path != ":memory:":  # a run's, which it may go on from
                self._move_to(ClientStore(), int(like.round))
            self.store.rollback(int(like.round))
            return None
        if self._checkpoints.latest() is None:
            self._move_to(None, int(like.round))
            return None
        leaves, manifest = self._checkpoints.load(expect=self._fingerprint)
        self._open_store(manifest["round"], manifest.get("clients"))
        count = len(tf.nest.flatten(like))
        state = tf.nest.pack_sequence_as(like, [tf.constant(leaf) for leaf in leaves[:count]])
        callbacks = (manifest["callbacks"], leaves[count:])
        return Resumed(state, manifest["epoch"], manifest["history"], callbacks)

    def _move_to(self, store, round_number):
        """Takes the clients' states along to another store; None: to the directory's, emptied."""
        before = {cid: self.store.get(cid) for cid in self.store}
        if store is None:
            self._open_store(-1)
        else:
            self.store = store
        self.store.put_all(round_number, before)

    def _open_store(self, round_number, expected=None):
        """Opens the directory's store and goes back to a round, if the states are as expected."""
        if self.store.path == str(self._clients):
            self.store.close()
        if expected is not None and expected["clients"] and not self._clients.exists():
            raise self._lost(expected, "no such file")
        self.store = ClientStore(self._clients)
        if expected is not None and (found := self.store.tally(round_number)) != expected:
            raise self._lost(expected, found)
        self.store.rollback(round_number)

    def _lost(self, expected, found):
        return CheckpointError(
            f"Expected the states of clients in {self._clients} that belong to the newest "
            f"checkpoint: {expected}. Received: {found}. The file was removed, replaced, cut off "
            "or written to by something else. Put the file of this run back, from a copy that is "
            "as old as the checkpoint or younger, or start the run again in a new directory."
        )

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
            "clients": self.store.tally(),
        }
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(state)]
        oldest = self._checkpoints.save(number, [*leaves, *arrays], manifest)
        self.store.prune(oldest)
        self._journal.drop_before(oldest)


def _lock(directory):
    """The lock on a directory, which is made if it is missing."""
    try:
        private_files.make_folder(directory)
        return Lock(directory)
    except LockedError as owner:
        raise CheckpointError(
            f"Expected checkpoint_dir={str(directory)!r} to be of this run alone. Received: a "
            f"directory that {owner} uses now. Nothing in it was changed. Wait until that run ends "
            "or end it, and call fit again, which goes on from there; or give this run a directory "
            "of its own."
        ) from owner
    except OSError as error:
        raise CheckpointError(
            f"Expected checkpoint_dir={str(directory)!r} to be a directory that may be written to. "
            f"Received: {error}. Check its rights, or give another."
        ) from error


def _plain(value):
    """Numbers and arrays of a history as JSON-able Python values."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
