"""What the rounds of one `fit` release: read off the algorithm, the sampler and the data."""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tffed import data
from tffed.mechanism import AVERAGED_WEIGHTS, CLIENT_STEPS, CLIENT_UPDATE, Mechanism
from tffed.privacy.releases import FIXED_SIZE, POISSON, TREE
from tffed.privacy.unprotected import unprotected

SCHEDULE, EVERYONE = "schedule", "everyone"
AMPLIFIED = (POISSON, FIXED_SIZE)
_SIZES = (0.0, 1.0, 2.0, 1000.0)  # numbers of examples, to see whether clients weigh alike


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
        uses: `((steps, rate), …)`: for each kind of client the noisy steps in which one of its
            examples takes part, or with a rate, in which it may, with that probability. What holds
            for the worst of them is claimed.
        unprotected: What leaves the clients without noise, in words.
        fixed_noise: Whether the noise follows from a known seed.
        server_rate: With noise on the averaged weights, the server's learning rate, which that
            noise must drown; else None.
        fixed_divisor: Whether the sum is divided by a number that depends on no client.
        assumed: What must hold beside what always must, in words.
    """

    mechanism: Mechanism | None
    scheme: str
    population: int
    size: int | None
    rate: float | None
    uses: tuple
    unprotected: tuple
    fixed_noise: bool
    server_rate: float | None = None
    fixed_divisor: bool = False
    assumed: tuple = ()

    def at(self, server_rate):
        """The terms of a round in which the server has another learning rate.

        Raises:
            ValueError: The noise must drown that rate, and it is not positive.
        """
        if self.server_rate is None:
            return self
        _check_rate(server_rate)
        clip = self.mechanism.clip * server_rate / self.server_rate
        mechanism = self.mechanism._replace(
            clip=clip, noise_multiplier=self.mechanism.stddev / clip
        )
        return self._replace(mechanism=mechanism, server_rate=server_rate)

    def to_json(self):
        """The terms as a JSON-able dictionary."""
        mechanism = None if self.mechanism is None else self.mechanism._asdict()
        return {**self._asdict(), "mechanism": mechanism}

    @classmethod
    def from_json(cls, found):
        """The terms that `to_json` gave."""
        mechanism = found["mechanism"] and Mechanism(**found["mechanism"])
        lists = {name: tuple(found[name]) for name in ("unprotected", "assumed")}
        uses = tuple(tuple(one) for one in found["uses"])
        return cls(**{**found, **lists, "mechanism": mechanism, "uses": uses})


def terms(built, sampler, clients, *, fixed_noise=False, watched=()) -> Terms:
    """The terms of a `fit`, checked.

    Args:
        built: A `tffed.assembly.Built`.
        sampler: Who takes part.
        clients: The `ClientData`.
        fixed_noise: Whether the noise follows from a known seed.
        watched: `tffed.privacy.unprotected.watched(…)`: what is computed of clients' data beside.

    Raises:
        ValueError: What would be claimed is not true of these settings; the message says why.
    """
    mechanisms = built.algorithm.mechanisms
    if len(mechanisms) > 1:
        raise ValueError(
            "Expected noise in one place: what two of them cost together is not accounted for. "
            f"Received: noise at {[m.place for m in mechanisms]}. Leave one out."
        )
    mechanism = mechanisms[0] if mechanisms else None
    if mechanism is None:
        return Terms(None, EVERYONE, len(clients), None, None, ((1, None),), (), fixed_noise)
    facts = _facts(sampler)
    server_rate = None
    _check_statistics(mechanism, built)
    _check_precision(built.model)
    _check_cohorts(mechanism, built, sampler, facts, clients)
    if mechanism.place == AVERAGED_WEIGHTS:
        mechanism = _on_weights(mechanism, built, facts)
        server_rate = built.server.learning_rate
    told, assumed = unprotected(mechanism, built, watched)
    return Terms(
        mechanism,
        _scheme(mechanism, facts, len(clients)),
        len(clients),
        facts.get("size"),
        facts.get("rate"),
        _uses(mechanism, built.recipe, clients),
        told,
        fixed_noise,
        server_rate,
        built.aggregator.denominator is not None,
        assumed,
    )


def _facts(sampler):
    """What is believed of a sampler: of tffed's own all, of others only whom they draw."""
    own = (data.Poisson, data.Uniform, data.Weighted, data.Cyclic)
    return sampler.describe() if type(sampler) in own else {"scheme": "custom"}


def _scheme(mechanism, facts, population):
    """Client sampling makes a client's part smaller, not that of an example in its client's part.

    Whether a client took part shows in everything it sends; an example can hide only in that.
    """
    if mechanism.kind == TREE or facts.get("size") == population:
        return EVERYONE
    if mechanism.place in (CLIENT_STEPS, CLIENT_UPDATE):
        return SCHEDULE
    return facts["scheme"] if facts["scheme"] in AMPLIFIED else SCHEDULE


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


def _check_precision(model):
    low = sorted({v.dtype.name for v in model.init().trainable if v.dtype.size < 4})
    if low:
        raise ValueError(
            "Sums of 16 bits round by more than one client's part, so that it may count several "
            f"times over. Received: trained weights of {low[0]} beside noise. Keep the weights in "
            "float32."
        )


def _check_cohorts(mechanism, built, sampler, facts, clients):
    if mechanism.unit != "client":
        return
    if facts["scheme"] == "weighted" and _weighs_examples(sampler, clients):
        raise ValueError(
            "Who takes part would depend on the clients' data, which no noise covers. Received: "
            "Weighted(size) with the numbers of examples as weights. Use Poisson or Uniform."
        )
    reducer = built.aggregator
    if mechanism.place == CLIENT_UPDATE or reducer.denominator is not None:
        return
    if facts["scheme"] in (POISSON, "custom"):
        raise ValueError(
            "Where cohorts differ in size, that tells who took part, so the sum must be divided by "
            f"a fixed number. Received: {reducer.name} with {sampler!r}. "
            "Give mean('uniform', denominator=expected number of clients a round)."
        )
    if any(float(reducer.weight(tf.constant(n))) != 1 for n in _SIZES):
        raise ValueError(
            "The sum of the clients' weights tells how many examples they have, so the divisor "
            f"must be fixed. Received: {reducer.name}. Give mean(…, denominator=…)."
        )


def _weighs_examples(sampler, clients):
    """Whether the weights of a `Weighted` are in proportion to the clients' numbers of examples."""
    if sampler.weights is None:
        return True
    sizes = np.asarray(clients.sizes(), np.float64)
    if len(sizes) != len(sampler.weights) or np.ptp(sampler.weights) == 0:
        return False
    return np.allclose(sampler.weights * sizes.sum(), sizes * sampler.weights.sum(), rtol=1e-6)


def _on_weights(mechanism, built, facts):
    """The mechanism with its multiplier: one client moves the weights by lr · bound / divisor."""
    if not built.server.plain_sgd:
        raise ValueError(
            "Noise on the averaged weights protects clients only where the server keeps nothing "
            "else of their updates. Received: a server optimizer with a state or a schedule. Use "
            "keras.optimizers.SGD(learning_rate) without momentum, or noise on the sum."
        )
    _check_rate(built.server.learning_rate)
    moved = built.aggregator.moves(built.aggregator.bound, facts.get("size"))
    clip = built.server.learning_rate * moved
    return mechanism._replace(clip=clip, noise_multiplier=mechanism.stddev / clip)


def _check_rate(server_rate):
    if not 0 < server_rate < math.inf:
        raise ValueError(
            "What a client moves the weights by, which the noise on them must hide, is in "
            "proportion to the server's learning rate, so this must be positive and finite. "
            f"Received: learning_rate={server_rate}. Set a small one instead."
        )


def _uses(mechanism, recipe, clients):
    """`((steps, probability of being in one), …)` of an example in a round of its client."""
    if mechanism.unit != "example":
        return ((1, None),)
    uses = recipe.uses and recipe.uses(clients)
    if uses is None or mechanism.sampled and uses.sampled is None:
        how = "sampling='poisson' with " if mechanism.sampled else ""
        raise ValueError(
            "How a round uses a client's examples must be known to account for it. Received: "
            f"{how}the algorithm {recipe.name}, which does not say. Give its Recipe `uses`."
        )
    return uses.sampled if mechanism.sampled else ((uses.passes, None),)


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

    def with_one_more(self, cohort):
        """In how many rounds that client will have taken part after one of this cohort."""
        return max([self.most, *(self._counts[cid] + 1 for cid in cohort)])

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
