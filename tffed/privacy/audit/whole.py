"""An audit of `Federated.fit` from end to end: what it releases against what its report claims.

Canaries are clients, or examples, of a linear model whose gradients lie along one weight each. They
go through all that a run does: data, local training, the aggregator, the server's step, callbacks,
a checkpoint and a process that goes on from it.
"""

import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from tffed.algorithms.fed_avg import fed_avg
from tffed.arguments import open_fraction, positive_integer
from tffed.data import Cyclic
from tffed.extras import require
from tffed.privacy.audit.canaries import AuditResult, judge

_SIZE = 1000.0  # of the canaries' gradients, beside which every clip is small
_TARGET = 1e6  # so far away that the mean absolute error's gradient always has one sign
_BESIDE = 2  # rounds without a canary that the attacker looks at to foretell its noise


class FitAudit(NamedTuple):
    """What an audit of `fit` found. The claim is refuted if either of two bounds lies above it.

    Attributes:
        any_mechanism: The `AuditResult` of guesses: a bound on ε whatever the mechanism is.
        mu: How many standard deviations of the noise a canary moves its score by, estimated.
        mu_lower: The lower confidence limit of that.
        gaussian_lower: The ε of `mu_lower`: a bound on ε if the noise is Gaussian.
        claimed_epsilon: The ε that the run's report claims.
        delta: The δ of all.
        confidence: Probability with which neither bound is above an ε that holds.
        rounds: Rounds that the run has done.
    """

    any_mechanism: AuditResult
    mu: float
    mu_lower: float
    gaussian_lower: float
    claimed_epsilon: float
    delta: float
    confidence: float
    rounds: int

    @property
    def epsilon_lower(self):
        """The larger one of the two bounds."""
        return max(self.any_mechanism.epsilon_lower, self.gaussian_lower)

    @property
    def refuted(self):
        """Whether that lies above the claim."""
        return self.epsilon_lower > self.claimed_epsilon

    def __str__(self):
        return (
            f"claimed epsilon {self.claimed_epsilon:.3f} at delta = {self.delta:g} after "
            f"{self.rounds} rounds; with {self.confidence:.0%} confidence at least "
            f"{self.any_mechanism.epsilon_lower:.3f} whatever the mechanism, "
            f"{self.gaussian_lower:.3f} of Gaussian noise: "
            f"{'REFUTED' if self.refuted else 'not refuted'}"
        )


def audit_fit(
    prepare,
    *,
    unit="client",
    canaries=600,
    turns=2,
    rounds=8,
    idle=200,
    delta=1e-5,
    confidence=0.99,
    folder=None,
    seed=0,
) -> FitAudit:
    """Audits a run of `Federated.fit` with canaries.

    ```python
    def prepare(fed, cohort):
        noise = tffed.privacy.gaussian(clip=1.0, noise_multiplier=2.0)
        fed.compile(keras.optimizers.SGD(1.0), loss="mae",
                    aggregator=tffed.chain(noise, tffed.mean("uniform")))

    print(audit_fit(prepare))
    ```

    A fair coin says of each canary whether it is in, with an example x = ±1000 e_i, or out, with
    x = 0, which moves nothing (neighbours by `"zero_out"`). The attacker sees the weights after
    each round, as any callback does, knows all but the coins, and scores canary i by the moves of
    weight i in the rounds in which it took part, less what the moves of other rounds foretell of
    them: nothing, unless rounds share noise, which then goes away.

    The bound whatever the mechanism is that of `audit.one_run` on guesses. The other takes scores
    as Gaussian and so is much closer. With m₁ canaries in and m₀ out, means x̄₁, x̄₀ and the pooled
    standard deviation s of the scores, μ̂ = (x̄₁ - x̄₀) / s has about the standard error
    √(1 / m₁ + 1 / m₀ + μ̂² / (2 (m₁ + m₀))) (Hedges and Olkin 1985). Of its lower limit μ, which
    makes the run at best μ-Gaussian differentially private (Dong, Roth and Su 2022), ε follows by
    `gaussian_epsilon`. Each bound is wrong with a probability of half of 1 - confidence.

    Args:
        prepare: `(fed, cohort)`, called twice: compiles a `Federated` with a loss of `"mae"`, a
            client optimizer of `SGD(1.0)` and noise; `cohort` is the number of clients of a round.
        unit: `"client"`: each canary is a client with one example. `"example"`: it is an example of
            a client, of which there is one for each turn.
        canaries: How many there are.
        turns: Into how many cohorts they are divided, which take turns (`Cyclic`); with 1, all are
            there in every round.
        rounds: How many rounds there are. The first half is done by one `Federated`, the rest by
            another one that goes on from its checkpoints.
        idle: Weights that no canary moves, on which the attacker learns what rounds share.
        delta: The δ of the claim.
        confidence: Probability with which a claim that holds is not refuted.
        folder: An empty folder for checkpoints; by default a temporary one.
        seed: Seed of the coins. The noise has its own secret.

    Returns:
        A `FitAudit`, beside the ε of `fed.privacy_report(delta)`.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: An argument is outside its range.
    """
    for name, value in (("canaries", canaries), ("turns", turns), ("idle", idle)):
        positive_integer(name, value)
    if canaries % turns or rounds < 2 or unit not in ("client", "example"):
        raise ValueError(
            "Expected canaries that `turns` divides, two rounds or more, and a unit of 'client' or "
            f"'example'. Received: canaries={canaries}, turns={turns}, rounds={rounds}, "
            f"unit={unit!r}"
        )
    delta, risk = open_fraction("delta", delta), (1 - open_fraction("confidence", confidence)) / 2
    rng = np.random.default_rng(seed)
    included, signs = rng.random(canaries) < 0.5, rng.choice([-1.0, 1.0], canaries)
    clients = _clients(np.where(included, signs, 0.0), unit, turns, idle)
    cohort = len(clients) // turns
    with tempfile.TemporaryDirectory() as temporary:
        run = _Run(prepare, clients, cohort, canaries + idle, turns, Path(folder or temporary))
        moves, report = run.released(rounds, delta)
    took_part = np.arange(rounds)[:, None] % turns == np.arange(canaries) * turns // canaries
    scores = signs * _scores(moves, took_part)
    claimed = report.epsilon
    found = judge(scores, included, None, delta, 1 - risk, claimed, "tradeoff")
    mu, lower = effect(scores[included], scores[~included], 1 - risk)
    bound = gaussian_epsilon(lower, delta)
    return FitAudit(found, mu, lower, bound, claimed, delta, confidence, report.rounds)


def effect(inside, outside, confidence):
    """`(μ̂, its lower confidence limit)` of two samples; see `audit_fit`.

    Args:
        inside: Scores of the canaries that were in.
        outside: Those of the others.
        confidence: Of the limit, which is one-sided.
    """
    m1, m0 = len(inside), len(outside)
    squares = np.square(inside - inside.mean()).sum() + np.square(outside - outside.mean()).sum()
    mu = (inside.mean() - outside.mean()) / max(math.sqrt(squares / (m1 + m0 - 2)), 1e-300)
    quantile = require("scipy.stats", "data").norm.ppf(confidence)
    return float(mu), float(mu - quantile * _standard_error(mu, m1, m0))


def power(mu, claimed_mu, canaries, confidence=0.99):
    """The probability that `audit_fit` refutes a claim by its Gaussian bound.

    Args:
        mu: What a canary really moves its score by, in standard deviations.
        claimed_mu: That of the claim.
        canaries: How many there are, about half of them in.
        confidence: As in `audit_fit`.
    """
    norm, half = require("scipy.stats", "data").norm, canaries / 2
    excess = (mu - claimed_mu) / _standard_error(mu, half, half)
    return float(norm.cdf(excess - norm.ppf(1 - (1 - confidence) / 2)))


def _standard_error(mu, m1, m0):
    return math.sqrt(1 / m1 + 1 / m0 + mu * mu / (2 * (m1 + m0)))


def gaussian_epsilon(mu, delta):
    """The ε of N(0, 1) and N(μ, 1) at δ: the root of δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ).

    That of the Gaussian mechanism of sensitivity 1 and standard deviation 1 / μ (Balle and Wang
    2018, Theorem 8), to 1e-9 of itself.

    Args:
        mu: μ; with 0 or less, ε is 0.
        delta: In (0, 1).
    """
    if mu <= 0:
        return 0.0
    log_cdf = require("scipy.special", "data").log_ndtr

    def exceeds(epsilon):
        a, b = log_cdf(mu / 2 - epsilon / mu), epsilon + log_cdf(-mu / 2 - epsilon / mu)
        return a > math.log(delta) and math.exp(a) * -math.expm1(b - a) > delta

    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    if not exceeds(low):
        return 0.0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return low


def _clients(signs, unit, turns, idle):
    """`{id: (x, y)}`, in which canary i has x = ±e_i, or zero, by its sign."""
    number = len(signs)
    size = number // turns if unit == "example" else 1
    found = {}
    for first in range(0, number, size):
        x = np.zeros((size, number + idle), np.float32)
        x[np.arange(size), np.arange(first, first + size)] = _SIZE * signs[first : first + size]
        found[first] = x, np.full((size, 1), _TARGET, np.float32)
    return found


class _Run:
    """A run in two parts, each of a `Federated` of its own."""

    def __init__(self, prepare, clients, cohort, weights, turns, folder):
        self._prepare, self._clients, self._cohort = prepare, clients, cohort
        self._weights, self._turns, self._folder = weights, turns, folder

    def released(self, rounds, delta):
        """`(moves of the weights [rounds, weights], PrivacyReport)`."""
        seen = [np.zeros(self._weights)]
        for last in (rounds // 2, rounds):
            fed = self._part(last, seen)
        return np.diff(seen, axis=0), fed.privacy_report(delta)

    def _part(self, last, seen):
        from tffed.federated import Federated

        dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((self._weights,)), dense])
        size = len(next(iter(self._clients.values()))[1])
        fed = Federated(model, fed_avg(batch_size=size))
        self._prepare(fed, self._cohort)
        fed.fit(
            self._clients,
            rounds=last,
            sampler=Cyclic(self._cohort) if self._turns > 1 else None,
            callbacks=[_watching(model, seen)],
            checkpoint_dir=self._folder,
            checkpoint_freq=max(1, last),
            verbose=0,
        )
        return fed


def _watching(model, seen):
    """A callback that adds the weights after each round to a list."""

    def look(epoch, logs=None):
        del epoch, logs
        (weights,) = model.get_weights()
        seen.append(weights.ravel().astype(np.float64))

    return keras.callbacks.LambdaCallback(on_epoch_end=look)


def _scores(moves, took_part):
    """How far each canary's weight moved in its rounds, less what other rounds foretell.

    Args:
        moves: `[rounds, canaries + idle]`.
        took_part: `[rounds, canaries]`, whether a canary did.
    """
    canaries = took_part.shape[1]
    found = np.zeros(canaries)
    for pattern in np.unique(took_part, axis=1).T:
        group = np.flatnonzero((took_part == pattern[:, None]).all(0))
        total, beside = moves[pattern].sum(0), moves[_nearest(pattern)]
        rows = np.vstack([beside, np.ones(moves.shape[1])])
        shares, *_ = np.linalg.lstsq(rows[:, canaries:].T, total[canaries:], rcond=None)
        found[group] = total[group] - shares @ rows[:, group]
    return found


def _nearest(pattern):
    """Rounds outside a pattern, a few of those that are the nearest to its first one."""
    outside = np.flatnonzero(~pattern)
    far = np.abs(outside - np.argmax(pattern))
    return outside[np.argsort(far, kind="stable")[:_BESIDE]]
