"""What a run has released so far, and what that costs: the books of privacy."""

import uuid
from typing import NamedTuple

from tffed.privacy.releases import TREE
from tffed.privacy.terms import AMPLIFIED, EVERYONE, SCHEDULE, Exposure, Terms

_SHOWN = 16  # hexadecimal digits of a release that are kept: two share them once in 2**64 pairs


class Entry(NamedTuple):
    """Rounds that released the same, one after the other.

    Attributes:
        terms: The `Terms`.
        rounds: How many rounds.
        exposure: In how many of them the client that took part most often did, if that is counted.
        dropped: Updates in them that were left out, or counted as zero, for not being finite.
        first: The server's number of the first of them.
        run: Which run of the federation they are of: each `compile` begins one.
    """

    terms: Terms
    rounds: int
    exposure: int
    dropped: int
    first: int = 0
    run: int = 0


class Record(NamedTuple):
    """One round as it ended, for `Ledger.record`.

    Attributes:
        terms: Its `Terms`.
        number: The server's number of the round.
        cohort: The ids of the clients that took part.
        dropped: How many updates were not finite.
        release: What only a repetition of the same release has (see `RoundNoise`), or None.
    """

    terms: Terms
    number: int
    cohort: tuple
    dropped: int
    release: str | None = None

    def to_json(self):
        """The record as a JSON-able dictionary."""
        return {**self._asdict(), "terms": self.terms.to_json(), "cohort": list(self.cohort)}

    @classmethod
    def from_json(cls, found):
        """The record that `to_json` gave."""
        cohort = tuple(_hashable(cid) for cid in found["cohort"])
        return cls(**{**found, "terms": Terms.from_json(found["terms"]), "cohort": cohort})


class Ledger:
    """The entries of a run, oldest first; each round is written before anybody sees it.

    - A release that is repeated, bit by bit and with the same noise, is one release.
    - Rounds share an entry only where they follow each other in one run under the same terms.
    - A cohort that was drawn secretly and then used for two releases (a state that was put back)
      hides nobody any more: both count as if all clients took part.

    Attributes:
        entries: A list of `Entry`.
    """

    def __init__(self):
        self.entries = []
        self._run = uuid.uuid4().hex
        self._number = 0
        self._exposure = Exposure()
        self._tree = {}
        self._releases = {}  # in the order of the rounds
        self._open = True

    @property
    def rounds(self):
        """The number of rounds written."""
        return sum(entry.rounds for entry in self.entries)

    def close(self):
        """Ends the run: what follows has cohorts, coins and trees of noise of its own."""
        self._number += 1
        self._open, self._tree = False, {}

    def record(self, round_):
        """Writes a round, a `Record`; a repetition of what was written changes nothing."""
        terms, number, cohort, dropped, release = round_
        if release is not None:
            release = release[:_SHOWN]
            if release in self._releases:
                return
            self._releases[release] = None
        if terms.scheme in AMPLIFIED and self._reveal(number):
            terms = terms._replace(scheme=EVERYONE)
        if terms.mechanism is not None and terms.mechanism.kind == TREE:
            self._tree = self._leaves(terms.mechanism.period, number)
            self._tree |= dict.fromkeys(cohort, number)
        if not self._goes_on(terms, number):
            self.entries.append(Entry(terms, 0, 0, 0, number, self._number))
            self._exposure, self._open = Exposure(), True
        if terms.scheme == SCHEDULE:
            self._exposure.add(cohort)
        last = self.entries[-1]
        self.entries[-1] = last._replace(
            rounds=last.rounds + 1,
            exposure=self._exposure.most,
            dropped=last.dropped + int(dropped),
        )

    def exposed(self, terms, number, cohort):
        """The exposure of the entry that a round of this cohort would be written to."""
        before = self._exposure if self._goes_on(terms, number) else Exposure()
        return before.with_one_more(cohort)

    def check_tree(self, period, number, cohort):
        """Checks that a cohort has not taken part in the present tree of noise.

        Raises:
            ValueError: Somebody has; the noise covers one time in each tree.
        """
        leaves = self._leaves(period, number)
        twice = [cid for cid in cohort if leaves.get(cid, number) != number]
        if twice:
            raise ValueError(
                "Noise over a tree of rounds protects clients that take part once in each. "
                f"Received: client {twice[0]!r} in rounds {leaves[twice[0]] + 1} and {number + 1} "
                f"of a tree of period={period}. Between two fits the order of the clients, or the "
                "state, has changed: compile again, which begins a tree of its own."
            )

    def _goes_on(self, terms, number):
        if not (self._open and self.entries):
            return False
        last = self.entries[-1]
        return last.terms == terms and number == last.first + last.rounds

    def _leaves(self, period, number):
        """`{client id: round}` of those who took part in the tree that a round belongs to."""
        return {} if number % period == 0 else dict(self._tree)

    def _reveal(self, number):
        """Takes a round's cohort of this run for known, if it was used before; whether it was."""
        for place, entry in enumerate(self.entries):
            before, after = number - entry.first, entry.first + entry.rounds - number - 1
            if entry.run != self._number or before < 0 or after < 0:
                continue
            if entry.terms.scheme in AMPLIFIED:
                known = entry.terms._replace(scheme=EVERYONE)
                parts = [
                    entry._replace(rounds=before),
                    entry._replace(rounds=1, terms=known, first=number, dropped=0),
                    entry._replace(rounds=after, first=number + 1, dropped=0),
                ]
                self.entries[place : place + 1] = [part for part in parts if part.rounds]
            return True
        return False

    def to_json(self):
        """The ledger as a JSON-able dictionary."""
        entries = [{**entry._asdict(), "terms": entry.terms.to_json()} for entry in self.entries]
        return {
            "run": self._run,
            "number": self._number,
            "entries": entries,
            "exposure": self._exposure.items(),
            "tree": [[cid, number] for cid, number in self._tree.items()],
            "releases": list(self._releases),
        }

    def resumed(self, found):
        """The ledger to go on with from a checkpoint that holds `found`, from `to_json`.

        Nothing that was released is forgotten: of one run the longer ledger counts, and what this
        one holds of another run, or of another branch of this one, is added.
        """
        other = Ledger()
        other._run, other._number = found["run"], found.get("number", 0)
        for entry in found["entries"]:
            other.entries.append(Entry(**{**entry, "terms": Terms.from_json(entry["terms"])}))
        other._exposure = Exposure((_hashable(cid), count) for cid, count in found["exposure"])
        other._tree = {_hashable(cid): number for cid, number in found.get("tree", ())}
        other._releases = dict.fromkeys(found.get("releases", ()))
        if other._run == self._run:
            if self.rounds >= other.rounds and self._begins_as(other):
                return self
            if other._begins_as(self):
                return other
        other.entries = [entry._replace(run=-1) for entry in self.entries] + other.entries
        other._releases = {**self._releases, **other._releases}
        return other

    def _begins_as(self, other):
        """Whether the other ledger's releases are the first of this one's: no branch of its own."""
        shorter = list(other._releases)
        return list(self._releases)[: len(shorter)] == shorter


def _hashable(client_id):
    return tuple(client_id) if isinstance(client_id, list) else client_id
