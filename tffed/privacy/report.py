"""`PrivacyReport`: what a run may claim, with all that the claim rests on."""

from typing import NamedTuple

import numpy as np

from tffed.extras import require
from tffed.privacy import accounting
from tffed.privacy.claims import NEIGHBOURS, adversary, assumptions, releases
from tffed.privacy.curves import epsilon_by_round


class PrivacyReport(NamedTuple):
    """A privacy claim: (ε, δ)-differential privacy, and what it rests on. Prints as text.

    For all pairs of neighbouring data D, D′ and all sets S of what the adversary may see,
    P[M(D) ∈ S] ≤ exp(ε) P[M(D′) ∈ S] + δ (Dwork and Roth 2014, definition 2.4).

    Attributes:
        epsilon: ε after all rounds so far; infinite if some released something without noise.
        delta: δ.
        unit: Whose contribution is hidden: `"client"` or `"example"` (of one client).
        relation: `"add_or_remove"`, `"zero_out"` or `"replace_one"`.
        accountant: `"rdp"` (Rényi, Mironov 2017) or `"pld"` (privacy loss distributions).
        adversary: Against whom, in words.
        rounds: The rounds done.
        mechanisms: What released them, in words.
        assumptions: What must hold, in words.
        unprotected: What left the clients beside it without noise, in words.
        dropped: Updates that were not finite.
        by_round: `(rounds, epsilons)`: two arrays.
    """

    epsilon: float
    delta: float
    unit: str
    relation: str
    accountant: str
    adversary: str
    rounds: int
    mechanisms: list
    assumptions: list
    unprotected: list
    dropped: int
    by_round: tuple

    def __str__(self):
        lines = [
            f"({self.epsilon:.4g}, {self.delta:.3g})-differential privacy of each {self.unit} "
            f"after {self.rounds} rounds, by the {self.accountant.upper()} accountant",
            f"Neighbours: {NEIGHBOURS[self.relation].format(self.unit)} ({self.relation}).",
            f"Holds against {self.adversary}.",
            "Released with noise:",
            *(f"  - {text}" for text in self.mechanisms),
            "Released without noise, and not covered:",
            *(f"  - {text}" for text in self.unprotected or ["nothing"]),
            "Assumed:",
            *(f"  - {text}" for text in self.assumptions),
        ]
        if self.dropped:
            lines.append(f"{self.dropped} updates were not finite and counted as zero.")
        return "\n".join(lines)

    def to_dict(self):
        """The report as a JSON-able dictionary; an infinite ε is the text "inf"."""
        found = self._asdict()
        rounds, epsilons = self.by_round
        found["by_round"] = {
            "rounds": [int(r) for r in rounds],
            "epsilons": [_number(e) for e in epsilons],
        }
        return found | {"epsilon": _number(self.epsilon)}

    def plot(self, path=None):
        """Draws ε by round.

        Args:
            path: File to write, its format by its ending; None: no file.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        figure = require("matplotlib.figure", "plot").Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        rounds, epsilons = self.by_round
        axes.plot(rounds, epsilons, color="#c0392b", lw=1.8, marker="o", ms=3)
        axes.set_title(f"Privacy loss of each {self.unit}, δ = {self.delta:.3g}, {self.relation}")
        axes.set_xlabel("Round")
        axes.set_ylabel(f"ε ({self.accountant.upper()})")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def _number(value):
    return float(value) if np.isfinite(value) else str(float(value))


def report(ledger, delta, *, relation=None, accountant=None) -> PrivacyReport:
    """The report of a ledger.

    Args:
        ledger: The `Ledger`.
        delta: δ in (0, 1).
        relation: As in `tffed.privacy.Budget`.
        accountant: `"rdp"`, `"pld"`, or None for the tighter one that serves.

    Raises:
        ValueError: Nothing was released yet, or no noise was ever added.
    """
    entries = ledger.entries
    noised = [e.terms.mechanism for e in entries if e.terms.mechanism is not None]
    if not noised:
        raise ValueError(
            f"Expected a run with noise, to say what it protects. Received: {ledger.rounds} rounds "
            "without any. See tffed.privacy for the mechanisms."
        )
    unit = noised[-1].unit
    found = accounting.account(releases(entries, unit, relation), delta, accountant)
    unprotected = [text for entry in entries for text in entry.terms.unprotected]

    def after(rounds):
        return releases(_first(entries, rounds), unit, found.relation)

    return PrivacyReport(
        epsilon=found.epsilon,
        delta=delta,
        unit=unit,
        relation=found.relation,
        accountant=found.accountant,
        adversary=adversary(entries),
        rounds=ledger.rounds,
        mechanisms=[_describe(entry) for entry in entries],
        assumptions=assumptions(entries, delta),
        unprotected=list(dict.fromkeys(unprotected)),
        dropped=sum(entry.dropped for entry in entries),
        by_round=epsilon_by_round(after, ledger.rounds, delta, found.accountant),
    )


def _first(entries, rounds):
    """The entries of the first rounds; a client takes part in at most as many of them as of all."""
    kept = []
    for entry in entries:
        here = min(entry.rounds, rounds)
        kept.append(entry._replace(rounds=here, exposure=min(entry.exposure, here)))
        rounds -= here
    return kept


def _describe(entry):
    terms, mechanism = entry.terms, entry.terms.mechanism
    if mechanism is None:
        return f"{entry.rounds} rounds without noise: nothing is protected"
    cohort = {
        "poisson": f"each of {terms.population} clients with probability {terms.rate}",
        "fixed_size_without_replacement": f"{terms.size} of {terms.population} clients at random",
        "schedule": f"clients take part in up to {entry.exposure} of them",
        "everyone": f"{terms.population} clients",
    }[terms.scheme]
    return (
        f"{entry.rounds} rounds, {cohort}: {mechanism.name}{_times(terms.uses)}, norm "
        f"{mechanism.clip:.4g}, noise multiplier {mechanism.noise_multiplier:.4g}"
    )


def _times(uses):
    """How often an example is used in a round of its client, in words."""
    if uses == ((1, None),):
        return ""
    said = [
        f"{steps}" if rate is None else f"{steps} with probability {rate:.3g}"
        for steps, rate in uses
    ]
    if len(said) > 3:
        said = [said[0], "…", said[-1]]
    return f", steps a round of a client: {' or '.join(said)}"
