"""A privacy budget, and what it allows a run to do."""

import dataclasses
from typing import NamedTuple

from tffed.arguments import open_fraction, positive
from tffed.assembly import build
from tffed.mechanism import AVERAGED_WEIGHTS
from tffed.privacy import accounting, curves
from tffed.privacy.claims import releases
from tffed.privacy.ledger import Entry
from tffed.privacy.terms import SCHEDULE, check_trees, exposures, terms


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most privacy loss (ε, δ) that a run may cost, all its `fit`s together.

    ```python
    fed.compile(…, aggregator=tffed.chain(tffed.privacy.gaussian(clip=1.0), tffed.mean("uniform")))
    fed.fit(clients, rounds=100, clients_per_round=50, privacy=tffed.privacy.Budget(4.0, 1e-5))
    ```

    Before it starts, `fit` solves for the smallest noise multiplier with which all its rounds keep
    to the budget; if the mechanism has one already, `fit` stops before the round that would exceed
    the budget. What was spent before counts.

    Args:
        epsilon: ε > 0.
        delta: δ in (0, 1); customarily below 1 / number of units.
        relation: Whom neighbouring data differ in, `"add_or_remove"`, `"zero_out"` or
            `"replace_one"`; None: the usual one of the sampling scheme. See `privacy_report`.

    Raises:
        ValueError: A number is out of range.
    """

    epsilon: float
    delta: float
    relation: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "epsilon", positive("epsilon", self.epsilon))
        object.__setattr__(self, "delta", open_fraction("delta", self.delta))


class Spending(NamedTuple):
    """The privacy side of one `fit`.

    Attributes:
        built: The `tffed.assembly.Built` to train with.
        terms: The `Terms` of its rounds.
        rounds: How many rounds it may do.
        budget: The `Budget`, or None.
        exposures: With a budget, where the rounds of each client are counted: in how many the
            busiest one takes part up to each; else None.
    """

    built: object
    terms: object
    rounds: int
    budget: Budget | None = None
    exposures: list | None = None


def plan(
    parts,
    built,
    *,
    clients,
    sampler,
    seed,
    first,
    rounds,
    ledger,
    budget,
    fixed_noise,
    resumed,
    server_rate,
    watched=(),
) -> Spending:
    """Settles the noise and the number of rounds of a `fit`, before it starts.

    Args:
        parts: The `tffed.assembly.Parts`.
        built: What was built of them without a budget.
        clients: The `ClientData`.
        sampler: Who takes part.
        seed: The seed of the cohorts.
        first: The server's number of the first round.
        rounds: How many rounds are asked for.
        ledger: The `Ledger` of what was released before.
        budget: The `Budget`, or None.
        fixed_noise: Whether the noise follows from a known seed.
        resumed: Whether the run goes on from a checkpoint; it may then be at its end.
        server_rate: The server's learning rate as it is now.
        watched: As in `terms`.

    Raises:
        ValueError: Noise without a multiplier or a budget, a budget without noise or already spent,
            or settings of which nothing true could be said.
    """
    mechanisms = built.algorithm.mechanisms
    if budget is not None and not mechanisms:
        raise ValueError(
            f"A budget needs noise to keep to it. Received: {budget}, in this fit or an earlier "
            "one, and neither a stage with noise nor private steps in compile. Give e.g. "
            "aggregator=tffed.chain(tffed.privacy.gaussian(clip=1.0), tffed.mean('uniform')); or "
            "make a new Federated, for a run without privacy."
        )
    if not mechanisms:
        return Spending(built, terms(built, sampler, clients, fixed_noise=fixed_noise), rounds)
    mechanism = mechanisms[0]
    if mechanism.kind == "tree":
        check_trees(mechanism.period, sampler, clients, seed, first, rounds)
    if _open(mechanism) and budget is None:
        raise ValueError(
            "Noise needs a strength. Received: noise_multiplier=None and no budget. Give the "
            f"{mechanism.name} a noise_multiplier, or fit(…, privacy=tffed.privacy.Budget("
            "epsilon=…, delta=…))."
        )
    here = terms(built, sampler, clients, fixed_noise=fixed_noise, watched=watched)
    here = here.at(server_rate)
    counted = here.scheme == SCHEDULE
    most = exposures(sampler, clients, seed, first, rounds) if counted else [0] * (rounds + 1)

    def spent(here, count):
        entries = [*ledger.entries, Entry(here, count, most[count], 0, first)]
        return releases(entries, here.mechanism.unit, budget.relation, believed=True)

    if _open(mechanism):
        def with_noise(multiplier):
            new = mechanism._replace(noise_multiplier=multiplier)
            return spent(here._replace(mechanism=new), rounds)

        built = build(parts, _solve(budget, ledger, with_noise))
        here = terms(built, sampler, clients, fixed_noise=fixed_noise, watched=watched)
    if budget is not None:
        rounds = _allowed(budget, rounds, lambda count: spent(here, count), resumed)
    return Spending(built, here, rounds, budget, most if counted and budget is not None else None)


def _open(mechanism):
    return mechanism.noise_multiplier is None and mechanism.place != AVERAGED_WEIGHTS


def _solve(budget, ledger, with_noise):
    """The multiplier of the last round if the rest keeps to the budget with it, else a new one.

    So a run that goes on after an interruption has the noise that it began with.
    """
    last = ledger.entries[-1].terms.mechanism if ledger.entries else None
    before = None if last is None else last.noise_multiplier
    if before and _keeps(budget, with_noise(before)):
        return before
    return curves.solve_noise_multiplier(budget.epsilon, budget.delta, with_noise)


def _keeps(budget, found):
    return accounting.account(found, budget.delta).epsilon <= budget.epsilon


def _allowed(budget, rounds, spent, resumed):
    """The most rounds, up to `rounds`, that keep to the budget."""
    found = curves.rounds_within(budget.epsilon, budget.delta, (), spent, rounds)
    if rounds and not found and not resumed:
        raise ValueError(
            f"Expected a budget that allows one more round. Received: {budget}, of which "
            f"{accounting.account(spent(0), budget.delta).epsilon:.3g} are spent. Raise epsilon, "
            "or add more noise."
        )
    return found
