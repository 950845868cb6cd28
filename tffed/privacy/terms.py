"""What the rounds of one `fit` release: read off the algorithm, the sampler and the data."""

import math
from collections import Counter
from typing import NamedTuple

from tffed.mechanism import AVERAGED_WEIGHTS, CLIENT_STEPS, CLIENT_UPDATE, Mechanism
from tffed.privacy.releases import FIXED_SIZE, POISSON

SCHEDULE, EVERYONE = "schedule", "everyone"


class Terms(NamedTuple):
    """What one round releases, the same in every round of a `fit`.

    Attributes:
        mechanism: The `Mechanism`, or None: nothing is protected.
        scheme: `POISSON` or `FIXED_SIZE` where the secret choice of the cohort counts; `SCHEDULE`
            where a client's rounds are taken as known, and counted; `EVERYONE` where there is
            nothing to count.
        population: The number of clients.
        size: Clients a round, or None.
        rate: The probability with which a client takes part, or None.
        per_round: Noisy steps of a client in which one of its examples takes part, or, with
            `example_rate`, may take part.
        example_rate: The probability with which an example is in a step; None: its turn comes.
        unprotected: What leaves the clients without noise, in words.
        fixed_noise: Whether the noise follows from a known seed.
        server_rate: With noise on the averaged weights, the server's learning rate, which that
            noise must drown; else None.
    """

    mechanism: Mechanism | None
    scheme: str
    population: int
    size: int | None
    rate: float | None
    per_round: int
    unprotected: tuple
    fixed_noise: bool
    server_rate: float | None = None
    example_rate: float | None = None

    def at(self, server_rate):
        """The terms of a round in which the server has another learning rate."""
        if self.server_rate is None:
            return self
        clip = self.mechanism.clip * server_rate / self.server_rate
        mechanism = self.mechanism._replace(
            clip=clip, noise_multiplier=self.mechanism.stddev / clip
        )
        return self._replace(mechanism=mechanism, server_rate=server_rate)

    def to_json(self):
        """The terms as a JSON-able dictionary."""
        mechanism = None if self.mechanism is None else self.mechanism._asdict()
        return {**self._asdict(), "mechanism": mechanism, "unprotected": list(self.unprotected)}

    @classmethod
    def from_json(cls, found):
        """The terms that `to_json` gave."""
        mechanism = found["mechanism"] and Mechanism(**found["mechanism"])
        return cls(**{**found, "mechanism": mechanism, "unprotected": tuple(found["unprotected"])})


def terms(built, sampler, clients, *, fixed_noise=False) -> Terms:
    """The terms of a `fit`, checked.

    Args:
        built: A `tffed.assembly.Built`.
        sampler: Who takes part.
        clients: The `ClientData`.
        fixed_noise: Whether the noise follows from a known seed.

    Raises:
        ValueError: What would be claimed is not true of these settings; the message says why.
    """
    mechanisms = built.algorithm.mechanisms
    if len(mechanisms) > 1:
        raise ValueError(
            "Expected noise in one place: what two of them cost together is not accounted for. "
            f"Received: noise at {[m.place for m in mechanisms]}. Leave one out."
        )
    facts = sampler.describe()
    mechanism = mechanisms[0] if mechanisms else None
    server_rate = None
    if mechanism is not None:
        _check_statistics(mechanism, built)
        _check_cohorts(mechanism, built, facts)
        if mechanism.place == AVERAGED_WEIGHTS:
            mechanism = _on_weights(mechanism, built, facts)
            server_rate = built.server.learning_rate
    per_round, example_rate = _steps(mechanism, built.recipe, clients)
    return Terms(
        mechanism,
        _scheme(mechanism, facts, len(clients)),
        len(clients),
        facts.get("size"),
        facts.get("rate"),
        per_round,
        _unprotected(mechanism, built),
        fixed_noise,
        server_rate,
        example_rate,
    )


def _scheme(mechanism, facts, population):
    """Client sampling makes a client's part smaller, not that of an example in its client's part.

    Whether a client took part shows in everything it sends; an example can hide only in that.
    """
    if mechanism is None or mechanism.kind == "tree" or facts.get("size") == population:
        return EVERYONE
    if mechanism.place in (CLIENT_STEPS, CLIENT_UPDATE):
        return SCHEDULE
    return facts["scheme"] if facts["scheme"] in (POISSON, FIXED_SIZE) else SCHEDULE


def _check_statistics(mechanism, built):
    model = built.model
    if mechanism.place != CLIENT_STEPS and model.init().non_trainable and not (
        model.local_statistics
    ):
        raise ValueError(
            "BatchNorm's statistics are part of the model that is released, and no noise is added "
            "to them. Received: batch_norm='average' with noise on clients' updates. Give "
            "compile(batch_norm='local') or 'freeze', or use GroupNormalization."
        )


def _check_cohorts(mechanism, built, facts):
    if mechanism.unit != "client":
        return
    if facts["scheme"] == "weighted" and facts["weights"] == "examples":
        raise ValueError(
            "Who takes part would depend on the clients' data, which no noise covers. Received: "
            "Weighted(size) with the numbers of examples as weights. Use Poisson or Uniform."
        )
    reducer = built.aggregator
    if mechanism.place == CLIENT_UPDATE or reducer.denominator is not None:
        return
    if facts["scheme"] == POISSON:
        raise ValueError(
            "With Poisson sampling the size of a cohort tells who took part, so the sum must be "
            f"divided by a fixed number. Received: {reducer.name} with Poisson({facts['rate']}). "
            "Give mean('uniform', denominator=rate × number of clients)."
        )
    if "max_weight" in reducer.name:
        raise ValueError(
            "The sum of the clients' weights tells how many examples they have, so the divisor "
            f"must be fixed. Received: {reducer.name}. Give mean(…, denominator=…)."
        )


def _on_weights(mechanism, built, facts):
    """The mechanism with its multiplier: one client moves the weights by lr · bound / divisor."""
    if not built.server.plain_sgd:
        raise ValueError(
            "Noise on the averaged weights protects clients only where the server keeps nothing "
            "else of their updates. Received: a server optimizer with a state or a schedule. Use "
            "keras.optimizers.SGD(learning_rate) without momentum, or noise on the sum."
        )
    divisor = built.aggregator.denominator or facts["size"]
    clip = built.server.learning_rate * built.aggregator.bound / divisor
    return mechanism._replace(clip=clip, noise_multiplier=mechanism.stddev / clip)


def _steps(mechanism, recipe, clients):
    """`(steps, probability of being in one)` of an example in a round of its client."""
    if mechanism is None or mechanism.unit != "example":
        return 1, None
    uses = recipe.uses and recipe.uses(clients)
    if uses is None or mechanism.sampled and uses.rate is None:
        how = "sampling='poisson' with " if mechanism.sampled else ""
        raise ValueError(
            "How a round uses a client's examples must be known to account for it. Received: "
            f"{how}the algorithm {recipe.name}, which does not say. Give its Recipe `uses`."
        )
    return (uses.steps, uses.rate) if mechanism.sampled else (uses.passes, None)


def _unprotected(mechanism, built):
    if mechanism is None:
        return ()
    found = ["the training loss and metrics", "the numbers of clients, examples and drops"]
    if mechanism.place in (CLIENT_STEPS, CLIENT_UPDATE):
        found[1] = "each client's number of examples and training metrics"
    if mechanism.place == CLIENT_STEPS and built.model.init().non_trainable:
        found.append("statistics of layers")
    if "clip(" in built.aggregator.name:
        found.append("the share of updates that were clipped")
    return tuple(found)


class Exposure:
    """In how many rounds the client that takes part most often has taken part.

    Args:
        counts: `{client id: rounds}` so far.
    """

    def __init__(self, counts=()):
        self._counts = Counter(dict(counts))
        self.most = max(self._counts.values(), default=0)

    def add(self, cohort):
        """Counts a round."""
        self._counts.update(cohort)
        self.most = max([self.most, *(self._counts[cid] for cid in cohort)])

    def items(self):
        """`[[client id, rounds]]`, JSON-able."""
        return [[cid, count] for cid, count in self._counts.items()]


def exposures(sampler, clients, seed, first, rounds):
    """The exposure after 0, 1, … `rounds` rounds, from number `first` on."""
    exposure, found = Exposure(), [0]
    for number in range(first, first + rounds):
        exposure.add(sampler.sample(clients, seed=seed, round=number))
        found.append(exposure.most)
    return found


def check_trees(period, sampler, clients, seed, first, rounds):
    """Checks that nobody takes part twice in a tree, which its noise does not cover.

    Raises:
        ValueError: Somebody would.
    """
    for start in range(first - first % period, first + rounds, period):
        seen = set()
        for number in range(start, min(start + period, first + rounds)):
            cohort = sampler.sample(clients, seed=seed, round=number)
            if twice := seen.intersection(cohort):
                raise ValueError(
                    "Noise over a tree of rounds protects clients that take part once in each. "
                    f"Received: period={period}, in which client {min(twice, key=str)!r} takes "
                    f"part twice, by round {number}. Use sampler=tffed.data.Cyclic(size) and a "
                    f"period of at most clients / size, here {_longest(clients, sampler)}."
                )
            seen.update(cohort)


def _longest(clients, sampler):
    size = sampler.describe().get("size") or len(clients)
    return math.floor(len(clients) / size)
