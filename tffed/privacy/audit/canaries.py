"""Canaries: units planted in one run, by whose traces an attacker tells which were there.

Each canary is included or not by the toss of a fair coin. The attacker knows all but the coins,
scores each canary by the inner product of its direction with what was released, and guesses that
the highest scores were in and the lowest out. How often that is right bounds ε from below.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tffed import random, tree
from tffed.arguments import positive, positive_integer
from tffed.privacy.audit import bounds

_SHARES = (1 / 256, 1 / 64, 1 / 16, 1 / 4)  # of the canaries, on which the attacker guesses
_CENTRED_FROM = 10
_EXAMPLES = 1e6  # of each canary client: it counts as much as a client can


class AuditResult(NamedTuple):
    """What an audit found.

    Attributes:
        epsilon_lower: The mechanism is not (ε, δ)-DP for any smaller ε, with this confidence.
        epsilon_estimate: The ε of the normal distributions that the scores look like; no bound.
        claimed_epsilon: The ε that was claimed, or None.
        delta: The δ of all three.
        confidence: Probability with which `epsilon_lower` is a lower bound.
        canaries: How many there were to guess.
        guesses: How many were guessed; of several numbers tried, the one that gave the bound.
        correct: How many guesses were right.
    """

    epsilon_lower: float
    epsilon_estimate: float
    claimed_epsilon: float | None
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int

    @property
    def refuted(self):
        """Whether the bound lies above what was claimed."""
        return self.claimed_epsilon is not None and self.epsilon_lower > self.claimed_epsilon

    def __str__(self):
        text = (
            f"epsilon >= {self.epsilon_lower:.2f} at delta = {self.delta:g} with "
            f"{self.confidence:.0%} confidence ({self.correct} of {self.guesses} guesses right, "
            f"{self.canaries} canaries); estimate, without confidence: {self.epsilon_estimate:.2f}"
        )
        if self.claimed_epsilon is None:
            return text
        verdict = "REFUTED" if self.refuted else "not refuted"
        return f"{text}; claimed {self.claimed_epsilon:.2f}: {verdict}"


def audit_examples(
    release,
    *,
    norm,
    dimension=None,
    canaries=100_000,
    rounds=40,
    takes_part="once",
    directions="axes",
    guesses=None,
    delta=1e-5,
    confidence=0.95,
    claimed_epsilon=None,
    test="tradeoff",
    seed=None,
) -> AuditResult:
    """Audits whatever adds up one vector a unit with noise, e.g. a clipped gradient an example.

    ```python
    def release(gradients, seed):          # [examples, parameters] and a secret int64 seed
        noise = tf.random.stateless_normal(gradients.shape[1:], seed)
        return tf.reduce_sum(tf.clip_by_norm(gradients, 1.0, axes=1), 0) + z * noise

    print(audit_examples(release, norm=1.0, claimed_epsilon=epsilon, delta=1e-5))
    ```

    The ε is that of neighbours that differ by one unit more or less. Takes memory for the canaries
    of a round times `dimension` floats, twice.

    Args:
        release: `(vectors [units, dimension], seed) -> [dimension]`. Any positive multiple of the
            sum will do.
        norm: L2 norm of the canaries: the largest that the mechanism lets through.
        dimension: Length of the vectors; by default as few as the directions need.
        canaries: How many there are to guess.
        rounds: How many releases there are.
        takes_part: `"once"`: each canary in one round, in turn; the claim is what one round costs,
            and many canaries fit into few dimensions. `"always"`: in every round; the claim is
            what all rounds cost together.
        directions: `"axes"`: canary k is a multiple of the k-th unit vector, so that canaries do
            not disturb each other; or `"random"`: uniform on the sphere, for dimensions far above
            the number of canaries.
        guesses: How many coins the attacker guesses, half of them as in. Of several numbers each is
            tested at its share of 1 - confidence, and the best bound counts. By default from a
            256th to a fourth of the canaries.
        delta: The δ of the claim.
        confidence: Probability with which the bound holds.
        claimed_epsilon: The ε to be put beside the bound.
        test: As in `audit.one_run`.
        seed: An integer for an audit that can be repeated; by default all is of the operating
            system's entropy.

    Raises:
        ValueError: An argument is outside its range.
    """
    norm, number = positive("norm", norm), _at_a_time(canaries, rounds, takes_part)
    units = _directions(directions, number, dimension, seed)
    included = np.random.default_rng(seed).random(canaries) < 0.5
    scores = np.zeros(canaries)
    noise = random.secret(seed)
    for t in range(rounds):
        here = np.arange(t, canaries, rounds) if takes_part == "once" else np.arange(canaries)
        rows = units[: len(here)]
        vectors = tf.constant(norm * rows[included[here]])
        released = np.asarray(release(vectors, random.fold_in(noise, t)), np.float64)
        if released.shape != units.shape[1:] or not np.isfinite(released).all():
            raise ValueError(
                f"Expected `release` to return a finite vector of {units.shape[1]} numbers. "
                f"Received: shape {released.shape}, {np.isfinite(released).sum()} finite."
            )
        scores[here] += rows @ released
    if takes_part == "once" and rounds >= _CENTRED_FROM:
        scores -= _common(scores, np.arange(canaries) // rounds)
    return judge(scores, included, guesses, delta, confidence, claimed_epsilon, test)


def audit_clients(aggregator, like=None, *, norm=None, others=(), **options) -> AuditResult:
    """Audits an aggregator with canary clients, through all that it does to an update.

    Each canary's update has a norm of `norm` and goes through `encode`, `report` and `finish` as a
    client's does; the attacker sees what the server's optimizer would. The aggregator's state goes
    on from round to round, while clients' own state is new in each.

    ```python
    aggregator = tffed.chain(tffed.privacy.gaussian(clip=1.0, …), tffed.mean("uniform"))
    print(audit_clients(aggregator, claimed_epsilon=report.epsilon, delta=report.delta))
    ```

    Args:
        aggregator: From `tffed.chain`.
        like: Flat tuple of tensors like the trainable weights, all float32; by default one vector
            of as many values as the canaries need.
        norm: Norm of the canaries' updates; by default the bound of the aggregator.
        others: Updates of clients that are there in every round.
        **options: All of `audit_examples` but `dimension`.

    Raises:
        ValueError: An argument is outside its range, or the aggregator sums nothing or bounds
            nothing.
    """
    if aggregator.collect:
        raise ValueError(
            "Expected an aggregator that adds up its clients' updates. Received: "
            f"{aggregator.name}, which has no ε to audit."
        )
    norm = aggregator.bound if norm is None else norm
    if norm is None:
        raise ValueError(
            f"Expected an aggregator that bounds updates. Received: {aggregator.name}, with "
            "norm=None. Give the norm of the canaries' updates."
        )
    release = _Releases(aggregator, like, others)
    dimension = None if like is None else tree.size(like)
    return audit_examples(release, norm=norm, dimension=dimension, **options)


class _Releases:
    """An aggregator's releases, one a call, with its state from call to call."""

    def __init__(self, aggregator, like, others):
        self._aggregator, self._like, self._state = aggregator, like, None
        self._others = [tree.pack(tuple(update))[0] for update in others]
        self._round = tf.function(self._sum_and_finish, autograph=False, reduce_retracing=True)

    def __call__(self, vectors, seed):
        if self._state is None:
            if self._like is None:
                self._like = (tf.zeros(vectors.shape[1:]),)
            self._state = self._aggregator.init(self._like)
        if self._others:
            vectors = tf.concat([vectors, tf.stack(self._others)], 0)
        released, self._state = self._round(self._state, vectors, seed)
        return released

    def _sum_and_finish(self, state, vectors, seed):
        aggregator = self._aggregator
        shared, own = aggregator.shared(state), aggregator.client_init(self._like)
        to_clients, to_server = random.fold_in(seed, 0), random.fold_in(seed, 1)

        def report(vector, number):
            update = tree.unpack((vector,), self._like)
            encoded, _ = aggregator.encode(
                shared, own, update, tf.constant(_EXAMPLES), random.fold_in(to_clients, number)
            )
            return aggregator.report(shared, encoded, self._like)

        def add(number, total):
            return number + 1, tree.add(total, report(vectors[number], number))

        nothing = tree.zeros_like(report(tf.zeros([tree.size(self._like)]), 0))
        start = (tf.constant(0), nothing)
        _, total = tf.while_loop(lambda number, _: number < tf.shape(vectors)[0], add, start)
        update, state, _ = aggregator.finish(state, total, to_server)
        return tree.pack(update)[0], state


def _at_a_time(canaries, rounds, takes_part):
    """The number of canaries of a round."""
    positive_integer("canaries", canaries)
    positive_integer("rounds", rounds)
    if takes_part not in ("once", "always"):
        raise ValueError(
            f"`takes_part` must be 'once' or 'always'. Received: takes_part={takes_part!r}"
        )
    return -(-canaries // rounds) if takes_part == "once" else canaries


def _directions(name, number, dimension, seed):
    """Unit vectors, one for each canary of a round; later rounds use them again."""
    dimension = number if dimension is None else dimension
    if name == "axes":
        if dimension < number:
            raise ValueError(
                f"Expected a dimension for each of {number} canaries of a round. Received: "
                f"dimension={dimension}. Plant fewer canaries, or spread them over more rounds."
            )
        return np.eye(number, dimension, dtype=np.float32)
    if name == "random":
        found = np.random.default_rng(None if seed is None else [seed, 1])
        found = found.standard_normal((number, dimension), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)
    raise ValueError(f"`directions` must be 'axes' or 'random'. Received: directions={name!r}")


def _common(scores, direction):
    """The mean score of the canaries of one direction, each in another round.

    It is what other clients add in every round, or noise that comes again: no attacker leaves it
    in. Of ten rounds or more, taking it off costs next to nothing.
    """
    mean = np.bincount(direction, scores) / np.bincount(direction)
    return mean[direction]


def judge(scores, included, guesses, delta, confidence, claimed_epsilon, test):
    """The result of the attacker's guesses by the scores."""
    canaries = len(scores)
    if guesses is None:
        guesses = [max(2, round(canaries * share)) for share in _SHARES]
    numbers = list(guesses) if isinstance(guesses, Iterable) else [guesses]
    order, found = np.argsort(scores), []
    for number in numbers:
        low, high = number // 2, number - number // 2
        right = np.sum(~included[order[:low]]) + np.sum(included[order[canaries - high :]])
        share = 1 - (1 - confidence) / len(numbers)
        bound = bounds.one_run(canaries, number, int(right), delta, share, test)
        found.append((bound, number, int(right)))
    bound, number, right = max(found)
    estimate = _estimate(scores[included], scores[~included], delta)
    return AuditResult(
        bound, estimate, claimed_epsilon, delta, confidence, canaries, number, right
    )


def _estimate(inside, outside, delta):
    """The ε of two normal distributions of one deviation, fitted to the scores."""
    if min(len(inside), len(outside)) < 2 or delta == 0:
        return float("nan")
    deviation = np.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    return bounds.normals((inside.mean(), deviation), (outside.mean(), deviation), delta)
