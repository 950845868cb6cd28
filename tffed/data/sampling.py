"""Samplers: which clients take part in a round.

A sampler is a frozen dataclass. Its `sample(clients, seed=, round=)` is a pure function, so that
a resumed run draws the same cohorts, and its cost does not grow with a population named by a
`range` (weights apart). Its `scheme` names the sampling scheme for privacy accounting: an
amplification bound holds for one scheme only and must not be reported for another.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tffed.arguments import plain
from tffed.data.client_data import ClientData
from tffed.data.schemes import is_count, plain_fields, require_number

_STREAM = 2  # keeps this stream of random numbers apart from that of the partitioners


class Sampler:
    """Base of the samplers.

    Attributes:
        scheme: `"fixed_size_without_replacement"`, `"poisson"`, `"weighted"` or `"cyclic"`.
    """

    scheme: ClassVar[str]

    def sample(self, clients: ClientData | int | Sequence, *, seed: int, round: int) -> list:
        """Returns the cohort of a round.

        Args:
            clients: The population: client data, their ids, or their number K for the ids
                `0 ... K - 1`.
            seed: Seed of the run, at least 0.
            round: Number of the round, from 0.

        Returns:
            Ids of distinct clients, in population order (`Cyclic`: in cyclic order).

        Raises:
            ValueError: The cohort is larger than the population, or a negative seed or round.
        """
        ids = _ids(clients)
        rng = _generator(seed, round)
        return [ids[int(position)] for position in self._positions(clients, len(ids), rng, round)]

    def _positions(self, clients, population, rng, round) -> np.ndarray:
        """Returns the places of the cohort in the population."""
        raise NotImplementedError

    def describe(self) -> dict:
        """Returns the scheme and its parameters, for privacy accounting and run records."""
        return {"scheme": self.scheme, **dataclasses.asdict(self)}


def _ids(clients) -> Sequence:
    if isinstance(clients, ClientData):
        return clients.ids
    if is_count(clients):
        return range(plain(clients))
    if isinstance(clients, np.ndarray):
        clients = clients.tolist()
    if isinstance(clients, Sequence) and not isinstance(clients, str) and len(clients):
        return clients
    raise ValueError(
        "Expected client data, a sequence of ids or a number of clients of at least 1. Received: "
        f"clients={clients!r}. Give the population to sample from."
    )


def _generator(seed, round) -> np.random.Generator:
    if not is_count(seed, 0) or not is_count(round, 0):
        raise ValueError(
            "Expected seed and round to be integers of at least 0. Received: "
            f"seed={seed!r}, round={round!r}. Rounds count from 0."
        )
    seed, round = plain(seed), plain(round)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM, round)))


def _check_size(size, population=None) -> None:
    if not is_count(size):
        raise ValueError(
            "Expected the number of clients per round to be an integer of at least 1. Received: "
            f"size={size!r}. Give the size of the cohort; for a share of the clients use Poisson."
        )
    if population is not None and size > population:
        raise ValueError(
            "Expected at most as many clients per round as there are clients. Received: "
            f"size={size}, {population} clients. Lower the size or bring more clients."
        )


@dataclasses.dataclass(frozen=True)
class Uniform(Sampler):
    """Draws `size` distinct clients, every cohort of that size being equally likely.

    Args:
        size: Clients per round.
    """

    size: int
    scheme: ClassVar[str] = "fixed_size_without_replacement"

    def __post_init__(self):
        plain_fields(self)
        _check_size(self.size)

    def _positions(self, clients, population, rng, round):
        _check_size(self.size, population)
        return np.sort(rng.choice(population, self.size, replace=False, shuffle=False))


@dataclasses.dataclass(frozen=True)
class Poisson(Sampler):
    """Takes each client independently with probability `rate`; a cohort may be empty.

    Args:
        rate: Probability, in (0, 1].
    """

    rate: float
    scheme: ClassVar[str] = "poisson"

    def __post_init__(self):
        plain_fields(self)
        require_number(
            "rate", self.rate, 0, 1,
            "Give the probability that a client takes part in a round.", above=True,
        )

    def _positions(self, clients, population, rng, round):
        # The number of clients is binomial and, given it, every cohort is equally likely: the
        # same law as a coin per client, at the cost of the cohort.
        size = rng.binomial(population, self.rate)
        return np.sort(rng.choice(population, size, replace=False, shuffle=False))


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted(Sampler):
    """Draws `size` distinct clients one after another, each with probability by weight.

    Equal to drawing from the clients that remain, with probability in proportion to their
    weights. A client's chance to be in the cohort is therefore not in proportion to its weight,
    unless `size` is 1. Costs time in the number of clients each round.

    Args:
        size: Clients per round.
        weights: `[K]` in population order, at least 0; the numbers of examples if `None`.

    References:
        Efraimidis and Spirakis 2006, Weighted Random Sampling with a Reservoir.
    """

    size: int
    weights: np.ndarray | None = None
    scheme: ClassVar[str] = "weighted"

    def __post_init__(self):
        plain_fields(self)
        _check_size(self.size)
        if self.weights is None:
            return
        weights = np.asarray(self.weights)
        if weights.ndim != 1 or weights.dtype.kind not in "biuf" or not (
            np.isfinite(weights).all() and (weights >= 0).all()
        ):
            raise ValueError(
                "Expected weights to be one finite number of at least 0 per client. Received: "
                f"weights={self.weights!r}. Give 0 to a client that is never to take part."
            )
        object.__setattr__(self, "weights", weights.astype(np.float64))

    def _positions(self, clients, population, rng, round):
        _check_size(self.size, population)
        weights = self._weights_for(clients, population)
        positive = np.flatnonzero(weights)
        if len(positive) < self.size:
            raise ValueError(
                "Expected at least as many clients of positive weight as clients per round. "
                f"Received: size={self.size}, {len(positive)} positive weights. Lower the size."
            )
        # The smallest of independent exponentials with these rates: their keys log(u) / w.
        arrival = rng.standard_exponential(population)[positive] / weights[positive]
        return np.sort(positive[np.argpartition(arrival, self.size - 1)[: self.size]])

    def _weights_for(self, clients, population):
        if self.weights is None and not isinstance(clients, ClientData):
            raise ValueError(
                "Expected weights, or client data to count the examples of. Received: weights=None "
                f"and clients of type {type(clients).__name__}. Give Weighted(size, weights)."
            )
        weights = clients.sizes() if self.weights is None else self.weights
        if len(weights) != population:
            raise ValueError(
                f"Expected one weight per client. Received: {len(weights)} weights, {population} "
                "clients. Give the weights in population order."
            )
        return weights

    def describe(self):
        weights = "examples" if self.weights is None else "given"
        return {"scheme": self.scheme, "size": self.size, "weights": weights}


@dataclasses.dataclass(frozen=True)
class Cyclic(Sampler):
    """Takes the clients in turn: round r starts where round r - 1 ended, around the population.

    Nothing is random. The cohort comes in cyclic order.

    Args:
        size: Clients per round.
    """

    size: int
    scheme: ClassVar[str] = "cyclic"

    def __post_init__(self):
        plain_fields(self)
        _check_size(self.size)

    def _positions(self, clients, population, rng, round):
        _check_size(self.size, population)
        return (round * self.size + np.arange(self.size)) % population
