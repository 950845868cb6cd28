"""From noisy rounds to (epsilon, delta): what they cost together.

The conversion itself is dp-accounting's; `releases.py` settles what is handed to it.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from tffed.arguments import real
from tffed.privacy import loss_distribution
from tffed.privacy.dp_accounting import load
from tffed.privacy.releases import ADD_OR_REMOVE, FIXED_SIZE, POISSON, TREE, Release, check

_ACCOUNTANTS = ("pld", "rdp")
# Finest grid of privacy losses; and its width over epsilon, which moves epsilon by 1e-4 of itself.
_FINEST, _RESOLUTION = 1e-6, 1e-4


class Spent(NamedTuple):
    """A privacy guarantee: (`epsilon`, `delta`) under `relation`, as `accountant` computed it."""

    epsilon: float
    delta: float
    accountant: str
    relation: str


def event(releases):
    """The `dp_accounting.DpEvent` of releases that together see the same data.

    - Poisson sampling: the sampled Gaussian mechanism (Mironov, Talwar, Zhang 2019,
      arXiv:1908.10530).
    - Fixed size: Theorem 27 of Wang, Balle, Kasiviswanathan 2019 (arXiv:1808.00087). It compares
      three data sets: with the unit, with the unit as its neighbour has it, and with another unit
      in its place.
    - Full: composition of Gaussian mechanisms.
    - Several releases of multiplier z in a sampled round: one Gaussian of multiplier
      z / sqrt(per_round), sampled as a whole.
    - Trees: Kairouz et al. 2021 (arXiv:2103.00039), appendix D. A unit enters at most
      floor(log2 T) + 1 nodes of a tree over T rounds. Composed over the trees.

    Raises:
        ValueError: A release's fields contradict each other or its relation.
        ImportError: dp-accounting is missing.
    """
    dp = load()
    parts = [dp.SelfComposedDpEvent(e, n) for e, n in draws(releases)]
    return dp.ComposedDpEvent(parts) if parts else dp.NoOpDpEvent()


def account(releases, delta, accountant=None, grid=None):
    """The guarantee of all releases together.

    Args:
        releases: A sequence of `Release`, all of one relation; or of alternatives, each such a
            sequence, of which the worst holds.
        delta: The probability with which the guarantee may fail; less than 1 / population.
        accountant: `"rdp"`: Rényi divergences (Mironov 2017). `"pld"`: privacy loss distributions
            (Koskela, Jälkö, Honkela 2020; Doroshenko et al. 2022), which are tight. None: both, and
            the smaller epsilon holds.
        grid: The width of the grid of privacy losses; None: see `interval`.

    Returns:
        `Spent`; its epsilon is infinite if some release has no noise.

    Raises:
        ValueError: See `event`; or several relations, or a delta outside (0, 1).
    """
    releases = tuple(releases)
    if releases and not isinstance(releases[0], Release):
        return _worst(releases, delta, accountant, grid)
    _check_account(releases, delta, accountant)
    relation = releases[0].relation if releases else ADD_OR_REMOVE
    by_rdp = rdp_epsilon(releases, delta)
    if accountant == "rdp" or by_rdp in (0.0, math.inf):
        return Spent(by_rdp, delta, accountant or "rdp", relation)
    by_pld = pld_epsilon(releases, delta, grid or interval(by_rdp))
    if accountant is None and by_rdp < by_pld:
        return Spent(by_rdp, delta, "rdp", relation)
    return Spent(by_pld, delta, "pld", relation)


def _worst(alternatives, delta, accountant, grid):
    """`account` of the alternative with the largest epsilon.

    Tight accounting takes long, so it is done in the order of the epsilons by Rényi divergences,
    which bound it, and ends where these are no larger.
    """
    bounds = {tuple(one): account(one, delta, "rdp") for one in alternatives}
    found = None
    for releases, bound in sorted(bounds.items(), key=lambda pair: -pair[1].epsilon):
        if found is not None and bound.epsilon <= found.epsilon:
            break
        here = bound if accountant == "rdp" else account(releases, delta, accountant, grid)
        if found is None or here.epsilon > found.epsilon:
            found = here
    return found


def epsilon(releases, delta, *, accountant=None):
    """Epsilon of all releases together at `delta`; infinite without noise. See `account`."""
    return account(releases, delta, accountant).epsilon


def interval(by_rdp):
    """Width of a grid of privacy losses that resolves an epsilon known roughly, here by Rényi.

    A power of two, so that close epsilons share the distributions that are kept.
    """
    return 2.0 ** math.floor(math.log2(max(_RESOLUTION * by_rdp, _FINEST)))


@functools.lru_cache(maxsize=1024)
def rdp_epsilon(releases, delta):
    """Epsilon by Rényi divergences: they add up over the draws, at each order."""
    dp = load()
    curves = [count * _rdp(e) for e, count in draws(releases)]
    if not curves:
        return 0.0
    orders = dp.rdp.RdpAccountant().orders
    return float(dp.rdp.compute_epsilon(orders, sum(curves), delta)[0])


@functools.lru_cache(maxsize=256)
def pld_epsilon(releases, delta, interval):
    """Epsilon by privacy loss distributions on a grid of width `interval`, rounded up."""
    parts = draws(releases)
    if any(isinstance(e, load().NonPrivateDpEvent) for e, _ in parts):
        return math.inf
    try:
        return float(loss_distribution.composed(parts, interval).get_epsilon_for_delta(delta))
    except OverflowError:  # Losses of hundreds each round: no guarantee worth the name.
        return math.inf


def draws(releases):
    """`[(event of one draw, how often)]` of all releases, alike ones together."""
    counts = {}
    for release in releases:
        for single, count in _draws(release):
            counts[single] = counts.get(single, 0) + count
    return list(counts.items())


def _draws(release):
    check(release)
    dp, z, rounds, sampling = load(), release.noise_multiplier, release.rounds, release.sampling
    if not rounds or sampling.rate == 0 or sampling.size == 0:
        return []
    if not z:
        return [(dp.NonPrivateDpEvent(), 1)]
    if release.kind == TREE:
        trees, rest = divmod(rounds, release.period or rounds)
        steps = [(release.period or rounds, trees), (rest, 1)]
        return [(dp.SingleEpochTreeAggregationDpEvent(z, t), n) for t, n in steps if t and n]
    gaussian = dp.GaussianDpEvent(z / math.sqrt(release.per_round))
    if sampling.scheme == POISSON:
        gaussian = dp.PoissonSampledDpEvent(sampling.rate, gaussian)
    elif sampling.scheme == FIXED_SIZE:
        gaussian = dp.SampledWithoutReplacementDpEvent(sampling.population, sampling.size, gaussian)
    return [(gaussian, rounds)]


@functools.lru_cache(maxsize=1024)
def _rdp(single):
    # The relation that dp-accounting demands for an event says which theorem it applies. How far
    # neighbours are apart is in the noise multiplier already.
    dp = load()
    relation = {
        dp.SampledWithoutReplacementDpEvent: dp.NeighboringRelation.REPLACE_ONE,
        dp.SingleEpochTreeAggregationDpEvent: dp.NeighboringRelation.REPLACE_SPECIAL,
    }.get(type(single), dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    curve = dp.rdp.RdpAccountant(neighboring_relation=relation).compose(single).rdp
    return np.maximum(curve, 0)  # Next to no loss may come out as -1e-15.


def _check_account(releases, delta, accountant):
    relations = sorted({r.relation for r in releases})
    if len(relations) > 1:
        raise ValueError(
            "Releases compose under one relation between neighbours. Received: releases under "
            f"{relations}. State all of them under the same one."
        )
    if not 0 < real(delta) < 1:
        raise ValueError(
            "`delta` must be a probability above 0; less than 1 / population means something. "
            f"Received: delta={delta!r}"
        )
    if accountant is not None and accountant not in _ACCOUNTANTS:
        raise ValueError(
            f"`accountant` must be one of {_ACCOUNTANTS}, or None for the one with the smaller "
            f"epsilon. Received: accountant={accountant!r}"
        )
