"""Privacy loss distributions of draws, on a grid, rounded up: the tight accountant.

dp-accounting composes them and has that of the Gaussian mechanism. Here are those of sampled units.
"""

import functools
import math

import numpy as np

from tffed.privacy.dp_accounting import load

# Of P, this mass of losses counts as infinite: no delta that anyone states comes near it.
_TAIL = 1e-22


def composed(draws, interval):
    """The loss distribution of `[(event, how often)]` on a grid of width `interval`.

    Returns:
        A `dp_accounting.pld.privacy_loss_distribution.PrivacyLossDistribution`. Its hockey-stick
        divergences are those of the draws, or larger.
    """
    whole = load("pld.privacy_loss_distribution").identity(interval)
    for event, count in draws:
        whole = whole.compose(_repeated(event, count, interval))
    return whole


@functools.lru_cache(maxsize=32)
def _single(event, interval):
    if isinstance(event, load().SampledWithoutReplacementDpEvent):
        rate = event.sample_size / event.source_dataset_size
        return fixed_size(event.event.noise_multiplier, rate, interval)
    return poisson(event.event.noise_multiplier, event.sampling_probability, interval)


def _repeated(event, count, interval):
    dp = load()
    if isinstance(event, dp.PoissonSampledDpEvent | dp.SampledWithoutReplacementDpEvent):
        return _single(event, interval).self_compose(count)
    nodes = 1
    if isinstance(event, dp.SingleEpochTreeAggregationDpEvent):
        # The nodes that a unit enters are one vector: a Gaussian mechanism, also where later
        # inputs depend on earlier outputs (Denisov et al. 2022, arXiv:2202.08312).
        nodes = int(event.step_counts).bit_length()
    return load("pld.privacy_loss_distribution").from_gaussian_mechanism(
        event.noise_multiplier / math.sqrt(count * nodes), value_discretization_interval=interval
    )


def poisson(noise_multiplier, rate, interval):
    """The loss distributions of a Gaussian mechanism on units sampled by their own coins.

    With P = N(1, z²), Q = N(0, z²) and H_a(P | Q) the largest P(E) - a Q(E) of an event E, the
    removal of a unit turns (1 - rate) Q + rate P into Q; its addition does the reverse (Zhu, Dong,
    Wang 2022, arXiv:2106.08567). For eps >= 0 and c = 1 - (1 - rate) exp(eps):

        remove(eps) = rate · H_a(P | Q),            a = 1 + (exp(eps) - 1) / rate,
        add(eps) = c · H_b(P | Q) if c > 0 else 0,  b = rate exp(eps) / c,

    and below 0 each follows from the other: remove(-eps) = 1 - exp(-eps) + exp(-eps) add(eps).
    They are dp-accounting's, but for its loop over the grid in Python.

    Args:
        noise_multiplier: z, over the change by adding or removing a unit.
        rate: The probability of the coin, above 0.
        interval: Width of the grid.
    """
    eps = _grid(noise_multiplier, rate, interval)
    remove = _removed(noise_multiplier, rate, eps)
    reached = len(eps) if rate == 1 else math.ceil(-math.log1p(-rate) / interval) + 1
    add = _added(noise_multiplier, rate, eps[:reached])
    return load("pld.privacy_loss_distribution").PrivacyLossDistribution(
        _pmf(add, remove, interval), _pmf(remove, add, interval)
    )


def fixed_size(noise_multiplier, rate, interval):
    """The loss distribution of a Gaussian mechanism on a fixed share of the units.

    With `remove` as for `poisson`, replacing a unit by another one changes a release by no more
    than delta(eps) = remove(eps) for eps >= 0 (Balle, Barthe, Gaboardi 2018, arXiv:1807.01647).
    As neighbours are mutual, delta(-eps) = 1 - exp(-eps) + exp(-eps) delta(eps) (Zhu, Dong, Wang
    2022). This profile is that of a loss distribution which dominates every pair of neighbours, so
    that it composes, also adaptively.

    Args:
        noise_multiplier: z, over the change by a swap of two units: 2 C for vectors of norm C.
        rate: Units a cohort over units there are, above 0.
        interval: Width of the grid.
    """
    eps = _grid(noise_multiplier, rate, interval)
    delta = _removed(noise_multiplier, rate, eps)
    return load("pld.privacy_loss_distribution").PrivacyLossDistribution(
        _pmf(delta, delta, interval)
    )


def _removed(noise_multiplier, rate, eps):
    log_a = eps + np.log1p(-(1 - rate) * np.exp(-eps)) - math.log(rate)
    return rate * _gaussian(noise_multiplier, log_a)


def _added(noise_multiplier, rate, eps):
    # A unit's absence raises no probability by more than 1 / (1 - rate).
    to_most = np.minimum(eps + math.log1p(-rate), 0) if rate < 1 else np.full_like(eps, -np.inf)
    share = -np.expm1(to_most)
    reached = share > 0
    log_b = eps + math.log(rate) - np.log(np.where(reached, share, 1))
    return np.where(reached, share * _gaussian(noise_multiplier, log_b), 0)


def _gaussian(noise_multiplier, log_a):
    """H_a(P | Q) (Balle and Wang 2018, arXiv:1805.06530)."""
    from scipy import special

    mean = 1 / noise_multiplier
    below = np.exp(log_a + special.log_ndtr(-mean / 2 - log_a / mean))
    return np.maximum(special.ndtr(mean / 2 - log_a / mean) - below, 0)


def _grid(noise_multiplier, rate, interval):
    """Epsilons from 0 to the loss that all but `_TAIL` of P stays below."""
    from scipy import special

    mean = 1 / noise_multiplier
    loss = mean * mean / 2 - mean * special.ndtri(_TAIL)
    if rate < 1:
        loss = np.logaddexp(math.log1p(-rate), math.log(rate) + loss)
    return np.arange(math.ceil(loss / interval) + 1) * interval


def _pmf(backward, forward, interval):
    """The loss distribution with deltas `forward` at 0, 1, … grid points, and those of the reverse.

    Between grid points its deltas are larger (Doroshenko et al. 2022, arXiv:2207.04380).
    """
    eps = np.arange(len(backward)) * interval
    negative = (-np.expm1(-eps) + np.exp(-eps) * backward)[:0:-1]
    delta = np.concatenate([negative, forward])
    delta = np.minimum.accumulate(np.clip(delta, 0, 1))  # Rounding errors may make it rise.
    return load("pld.pld_pmf").create_pmf_pessimistic_connect_dots_fixed_gap(
        interval, 1 - len(backward), len(forward) - 1, delta
    )
