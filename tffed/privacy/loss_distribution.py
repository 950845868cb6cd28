"""Privacy loss distributions of draws, on a grid, rounded up: the tight accountant.

dp-accounting has them for Gaussian mechanisms, sampled by Poisson or not. Here are two more: a
tree, which to a unit is one Gaussian mechanism, and fixed-size cohorts.
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


@functools.lru_cache(maxsize=8)
def _single(event, interval):
    dp = load()
    if isinstance(event, dp.SampledWithoutReplacementDpEvent):
        rate = event.sample_size / event.source_dataset_size
        return fixed_size(event.event.noise_multiplier, rate, interval)
    return load("pld.privacy_loss_distribution").from_gaussian_mechanism(
        event.event.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=event.sampling_probability,
    )


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


def fixed_size(noise_multiplier, rate, interval):
    """The loss distribution of a Gaussian mechanism on a fixed share of the units.

    With P = N(1, z²), Q = N(0, z²) and H_a(P | Q) = sup over events E of P(E) - a Q(E), replacing a
    unit by another one changes a release by no more than (Balle, Barthe, Gaboardi 2018,
    arXiv:1807.01647; Zhu, Dong, Wang 2022, arXiv:2106.08567)

        delta(eps) = rate · H_a(P | Q),   a = 1 + (exp(eps) - 1) / rate,   for eps >= 0,
        delta(-eps) = 1 - exp(-eps) + exp(-eps) delta(eps),                as neighbours are mutual.

    This is the profile of a loss distribution that dominates every pair of neighbours, so that it
    composes, also adaptively.

    Args:
        noise_multiplier: z, over the change by a swap of two units: 2 C for vectors of norm C.
        rate: Units a cohort over units there are.
        interval: Width of the grid.
    """
    from scipy import special

    mean = 1 / noise_multiplier
    log_ratio = mean * mean / 2 - mean * special.ndtri(_TAIL)
    top = math.ceil(np.logaddexp(math.log1p(-rate), math.log(rate) + log_ratio) / interval)
    eps = np.arange(top + 1) * interval
    log_a = eps + np.log1p(-(1 - rate) * np.exp(-eps)) - math.log(rate)
    delta = rate * (
        special.ndtr(mean / 2 - log_a / mean)
        - np.exp(log_a + special.log_ndtr(-mean / 2 - log_a / mean))
    )
    below = -np.expm1(-eps) + np.exp(-eps) * delta
    profile = np.minimum.accumulate(np.concatenate([below[:0:-1], np.maximum(delta, 0)]))
    pmf = load("pld.pld_pmf").create_pmf_pessimistic_connect_dots_fixed_gap(
        interval, -top, top, profile
    )
    return load("pld.privacy_loss_distribution").PrivacyLossDistribution(pmf)
