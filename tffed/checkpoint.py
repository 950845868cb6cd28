"""Checkpoints: what a run needs to go on with the same bits, in files that are whole or absent.

A file `round-000012.ckpt` holds the state after round 12. It is written beside its place, forced to
the disk and renamed, so a process killed at any moment, or a machine that loses power, leaves the
checkpoints of before or those of after.
"""

import json
import operator
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tffed.checkpoint_file import (
    UNFINISHED,
    Checkpoint,
    DamagedError,
    decode,
    encode,
    to_json,
    write_whole,
)
from tffed.differences import differences
from tffed.private_files import make_folder

_NAME = re.compile(r"round-([0-9]{6}|[1-9][0-9]{6,})\.ckpt")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another run, or in the way of a new one."""


class Checkpoints:
    """The checkpoints of one run, in a directory.

    ```python
    checkpoints = Checkpoints("run", keep=2)
    checkpoints.save(12, leaves, {"fingerprint": {"algorithm": "fed_avg", "seed": 7}})
    leaves, manifest = checkpoints.load(expect={"algorithm": "fed_avg", "seed": 7})
    ```

    A file that cannot be read is reported, never removed or written over.

    Args:
        directory: Where the files are; made at the first `save`. Other files in it are left alone.
        keep: How many checkpoints stay: the newest ones. With two, a newest one that the disk has
            damaged costs the rounds since the one before.

    Raises:
        ValueError: `keep` is less than one.
        CheckpointError: The directory is a file.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory = Path(directory)
        self.keep = operator.index(keep)
        if self.keep < 1:
            raise ValueError(f"Expected keep >= 1. Received: keep={keep}. Two is a good choice.")
        if self.directory.exists() and not self.directory.is_dir():
            raise CheckpointError(
                f"Expected a directory for the checkpoints. Received: directory={directory}, "
                "which is a file. Name another."
            )
        self._lock = threading.Lock()
        self._intact = set()  # Rounds whose files this object has written or read.

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, oldest first, whether it can be read or not."""
        if not self.directory.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted({int(name[1]) for name in names if name})

    def latest(self) -> int | None:
        """The newest round that has a checkpoint, or None."""
        return max(self.rounds(), default=None)

    def save(
        self, round_number: int, leaves: Sequence[np.ndarray], manifest: Mapping[str, Any]
    ) -> int:
        """Writes the checkpoint of a round, then removes those that are no longer kept.

        Args:
            round_number: The number of rounds done. A readable checkpoint of the same round is
                replaced.
            leaves: Arrays of the dtypes that `tffed.serialize.pack` takes.
            manifest: Whatever else is to be kept, JSON-able (NumPy numbers too), with string keys.
                Its entry "fingerprint", a dictionary, says which run it is: see `load`.

        Returns:
            The oldest round that can still be gone back to.

        Raises:
            ValueError: The round is negative, or something cannot be stored.
            CheckpointError: There is a checkpoint of a later round, or a damaged one of this round.
            OSError: The file cannot be written, for instance on a full disk; those of before stay.
        """
        round_number = operator.index(round_number)
        if round_number < 0:
            raise ValueError(
                f"Expected a round >= 0. Received: round_number={round_number}. Give the number "
                "of rounds done."
            )
        content = encode(round_number, leaves, manifest)
        with self._lock:
            self._check_place(round_number)
            make_folder(self.directory)
            write_whole(self.path(round_number), content)
            self._intact.add(round_number)
            return self._tidy()

    def load(
        self, round_number: int | None = None, expect: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """Reads a checkpoint and checks every byte of it.

        Args:
            round_number: Which one; by default the newest.
            expect: What the manifest's "fingerprint" must be.

        Returns:
            The `Checkpoint`: `(leaves, manifest)`.

        Raises:
            CheckpointError: There is none, it is damaged, a newer tffed wrote it, or it is of
                another run than expected. The message names the file and the way out.
        """
        rounds = self.rounds()
        if round_number is None and rounds:
            round_number = rounds[-1]
        if round_number not in rounds:
            raise CheckpointError(
                f"Expected a checkpoint of round {round_number} in {self.directory}. Received: "
                f"rounds {rounds}. Load one of these, or start the run from its beginning."
                if rounds
                else f"Expected a checkpoint in {self.directory}. Received: none. Check the "
                "directory, or start the run from its beginning."
            )
        try:
            checkpoint = self._read(round_number)
        except DamagedError as reason:
            raise self._damaged(round_number, reason) from reason
        if expect is not None:
            _check_fingerprint(self.path(round_number), checkpoint.manifest, expect)
        return checkpoint

    def rollback(self, round_number: int) -> None:
        """Removes the checkpoints of rounds after the given one, to go on from there.

        Raises:
            CheckpointError: One of them is damaged; it and those before it are still there.
        """
        with self._lock:
            for later in reversed([r for r in self.rounds() if r > round_number]):
                if not self._readable(later):
                    raise self._damaged(later, "it cannot be read")
                self._remove(later)

    def path(self, round_number: int) -> Path:
        """The file of a round's checkpoint, there or not."""
        return self.directory / f"round-{round_number:06d}.ckpt"

    def _check_place(self, round_number: int) -> None:
        """Checks that a round's checkpoint may be written, before anything is touched."""
        latest = self.latest()
        if latest is not None and latest > round_number:
            raise CheckpointError(
                f"Expected a round not before {latest}, the newest checkpoint in "
                f"{self.directory}. Received: round_number={round_number}. Write to another "
                f"directory; if nobody else uses this one, rollback({round_number}) goes back to "
                "this round, and removes the later ones."
            )
        if latest == round_number and not self._readable(round_number):
            raise self._damaged(round_number, "it cannot be read, and is not written over")

    def _tidy(self) -> int:
        """Removes what is no longer kept; returns the oldest readable round."""
        for unfinished in self.directory.glob(UNFINISHED):
            unfinished.unlink(missing_ok=True)
        readable = [r for r in reversed(self.rounds()) if self._readable(r)]
        for obsolete in readable[self.keep :]:
            self._remove(obsolete)
        return readable[: self.keep][-1]

    def _remove(self, round_number: int) -> None:
        self._intact.discard(round_number)
        self.path(round_number).unlink(missing_ok=True)

    def _readable(self, round_number: int) -> bool:
        """Whether a checkpoint can be read; reads it unless this object has done so before."""
        if round_number not in self._intact:
            try:
                self._read(round_number)
            except DamagedError:
                return False
        return True

    def _read(self, round_number: int) -> Checkpoint:
        try:
            content = self.path(round_number).read_bytes()
        except OSError as error:
            raise DamagedError(f"it cannot be opened ({error})") from error
        found, checkpoint = decode(content)
        if found != round_number:
            raise DamagedError(f"it holds round {found}: it was renamed")
        self._intact.add(round_number)
        return checkpoint

    def _damaged(self, round_number: int, reason: object) -> CheckpointError:
        """Returns the error for a file that cannot be read, with the way out."""
        self._intact.clear()  # What was intact before may not be now.
        path = self.path(round_number)
        others = [r for r in reversed(self.rounds()) if r != round_number and self._readable(r)]
        older = [r for r in others if r < round_number]
        if older:
            remedy = f"Move it away or delete it to resume from round {older[0]}, which is intact."
        elif others:
            remedy = f"Load round {others[0]}, which is intact."
        else:
            remedy = "No other checkpoint there is intact: start the run again in a new directory."
        return CheckpointError(f"Expected a checkpoint in {path}. Received: {reason}. {remedy}")


def _check_fingerprint(path: Path, manifest: Mapping, expect: Mapping) -> None:
    """Checks that a checkpoint is of the expected run.

    Raises:
        CheckpointError: Some entries of the fingerprint differ; the message gives each.
    """
    found, expect = manifest.get("fingerprint"), json.loads(to_json(dict(expect)))
    if not isinstance(found, dict):
        found = {}
    if missing := sorted(expect.keys() - found.keys()):
        raise CheckpointError(
            f"Expected a checkpoint of this run in {path}, and cannot tell whether it is. "
            f"Received: one that says nothing of {', '.join(missing)}: another version of tffed "
            "wrote it. Finish that run with the version that began it, or give this run a "
            "directory of its own."
        )
    if found := differences(found, expect):
        raise CheckpointError(
            f"Expected a checkpoint of this run in {path}, which holds one of another. Received: "
            f"{'; '.join(found)}. Go on with the settings it was made with, or give this "
            "run a directory of its own. (Callbacks may change rates in a run.)"
        )
