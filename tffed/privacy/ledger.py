"""What a run has released so far, and what that costs: the books of privacy."""

import uuid
from typing import NamedTuple

from tffed.privacy.terms import SCHEDULE, Exposure, Terms


class Entry(NamedTuple):
    """Rounds that released the same.

    Attributes:
        terms: The `Terms`.
        rounds: How many rounds.
        exposure: In how many of them the client that took part most often did, if that is counted.
        dropped: Updates in them that were left out, or counted as zero, for not being finite.
    """

    terms: Terms
    rounds: int
    exposure: int
    dropped: int


class Ledger:
    """The entries of a run, oldest first; each round is written as it ends.

    Attributes:
        entries: A list of `Entry`.
    """

    def __init__(self):
        self.entries = []
        self._run = uuid.uuid4().hex
        self._exposure = Exposure()
        self._open = True

    @property
    def rounds(self):
        """The number of rounds written."""
        return sum(entry.rounds for entry in self.entries)

    def close(self):
        """Ends the last entry: what follows begins anew, as a tree of noise that was broken off."""
        self._open = False

    def record(self, terms, cohort, dropped):
        """Writes a round.

        Args:
            terms: Its `Terms`.
            cohort: The ids of the clients that took part; only looked at where they are counted.
            dropped: How many updates were not finite.
        """
        if not (self._open and self.entries and self.entries[-1].terms == terms):
            self.entries.append(Entry(terms, 0, 0, 0))
            self._exposure, self._open = Exposure(), True
        if terms.scheme == SCHEDULE:
            self._exposure.add(cohort)
        last = self.entries[-1]
        self.entries[-1] = Entry(
            terms, last.rounds + 1, self._exposure.most, last.dropped + int(dropped)
        )

    def to_json(self):
        """The ledger as a JSON-able dictionary."""
        entries = [{**entry._asdict(), "terms": entry.terms.to_json()} for entry in self.entries]
        return {"run": self._run, "entries": entries, "exposure": self._exposure.items()}

    def resumed(self, found):
        """The ledger to go on with from a checkpoint that holds `found`, from `to_json`.

        Nothing that was released is forgotten: of one run the longer ledger counts, and what this
        one holds of another run is added.
        """
        other = Ledger()
        other._run = found["run"]
        for entry in found["entries"]:
            other.entries.append(Entry(**{**entry, "terms": Terms.from_json(entry["terms"])}))
        other._exposure = Exposure((_hashable(cid), count) for cid, count in found["exposure"])
        if other._run == self._run:
            return self if self.rounds > other.rounds else other
        other.entries = self.entries + other.entries
        return other


def _hashable(client_id):
    return tuple(client_id) if isinstance(client_id, list) else client_id
