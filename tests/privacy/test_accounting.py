"""Accounting: epsilons of the literature, closed forms, and attacks on what must not be claimed."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dp_accounting")

import dp_accounting as dp  # noqa: E402
from scipy import optimize, stats  # noqa: E402

from tffed.mechanism import SERVER_SUM, Mechanism  # noqa: E402
from tffed.privacy import calculator, curves, loss_distribution  # noqa: E402
from tffed.privacy.accounting import account, epsilon, event  # noqa: E402
from tffed.privacy.releases import Release, Sampling, release_of, sensitivity  # noqa: E402

FULL = Sampling("full")
COHORTS = Sampling("fixed_size_without_replacement", size=100, population=3400)
DELTA = 1 / 3400


def poisson(rate):
    return Sampling("poisson", rate=rate)


CLIENTS = poisson(100 / 3400)


def gaussian_delta(shift, eps):
    """delta of one Gaussian mechanism (Balle and Wang 2018, arXiv:1805.06530, theorem 8)."""
    a, b = shift / 2 - eps / shift, -shift / 2 - eps / shift
    return stats.norm.cdf(a) - math.exp(eps) * stats.norm.cdf(b)


def gaussian_epsilon(shift, delta):
    """Epsilon of a Gaussian mechanism whose means are `shift` standard deviations apart."""
    return optimize.brentq(lambda e: gaussian_delta(shift, e) - delta, 0, shift**2 + 40 * shift)


def mixtures_epsilon(p, q, rate, rounds, delta, width=1e-3):
    """A lower bound on the epsilon that tells two mixtures with unit noise apart, by convolution.

    P = (1 - rate) N(0, 1) + rate N(p, 1), Q the same with q. Losses are rounded down.
    """
    x = np.linspace(-10, 12, 220_001)
    density = [(1 - rate) * stats.norm.pdf(x) + rate * stats.norm.pdf(x, mean) for mean in (p, q)]
    loss = np.floor(np.log(density[0] / density[1]) / width).astype(int)
    size = 2**18
    mass = np.bincount(loss % size, weights=density[0] * (x[1] - x[0]), minlength=size)
    total = np.fft.irfft(np.fft.rfft(mass) ** rounds, size)
    losses = np.fft.fftfreq(size, 1 / size) * width
    keep = (losses > 0) & (total > 1e-14)

    def excess(eps):
        return np.sum(total[keep] * np.maximum(1 - np.exp(eps - losses[keep]), 0)) - delta

    return optimize.brentq(excess, 0, losses.max())


# What the literature states.


@pytest.mark.parametrize(
    "multiplier, sampling, rounds, delta, accountant, expected",
    [
        (1.1, poisson(250 / 60000), 60 * 240, 1e-5, "rdp", 2.562),
        (1.1, poisson(250 / 60000), 60 * 240, 1e-5, "pld", 2.350),
        (1.0, CLIENTS, 1500, DELTA, "rdp", 6.697),
        (1.0, CLIENTS, 1500, DELTA, "pld", 5.968),
        (1.0, COHORTS, 1500, DELTA, "rdp", 13.78),
        (1.2, poisson(120 / 3383), 100, 1e-5, "rdp", 1.986),
        (1.2, poisson(120 / 3383), 100, 1e-5, "pld", 1.707),
    ],
)
def test_golden(multiplier, sampling, rounds, delta, accountant, expected):
    relation = "replace_one" if sampling is COHORTS else "add_or_remove"
    release = Release(multiplier, sampling, rounds, relation=relation)
    spent = account([release], delta, accountant)
    assert spent.epsilon == pytest.approx(expected, rel=4e-4)
    assert spent[1:] == (delta, accountant, relation)


def test_golden_of_the_calculator():
    plan = dict(cohort=100, population=3400)
    assert calculator.epsilon(1.0, 1500, DELTA, sampling_rate=100 / 3400) == pytest.approx(
        5.968, rel=2e-4
    )
    # 13.78 is of noise s = 2 C, where a client is replaced by another one: the sum moves by 2 C.
    for relation in ("replace_one", "zero_out", None):
        eps = calculator.epsilon(2.0, 1500, DELTA, relation=relation, accountant="rdp", **plan)
        assert eps == pytest.approx(13.78, rel=4e-4)
    assert calculator.epsilon(1.0, 1500, DELTA, **plan) == pytest.approx(45.34, rel=3e-4)
    assert calculator.epsilon(3.0, 7, 1e-5) == pytest.approx(
        gaussian_epsilon(math.sqrt(7) / 3, 1e-5), rel=1e-4
    )
    z = calculator.noise_multiplier(3.0, 7, 1e-5, relation="replace_one")
    assert gaussian_epsilon(2 * math.sqrt(7) / z, 1e-5) == pytest.approx(3.0, rel=2e-3)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_event_is_what_dp_accounting_composes(accountant):
    releases = [Release(1.3, CLIENTS, 40, per_round=3), Release(4.0, FULL, 5)]
    made = {"rdp": dp.rdp.RdpAccountant, "pld": dp.pld.PLDAccountant}[accountant]()
    expected = made.compose(event(releases)).get_epsilon(1e-5)
    assert epsilon(releases, 1e-5, accountant=accountant) == pytest.approx(expected, rel=2e-4)


# Closed forms.


@pytest.mark.parametrize("multiplier, rounds, per_round", [(1.0, 1, 1), (5.0, 100, 1), (4, 9, 3)])
def test_composed_gaussians(multiplier, rounds, per_round):
    release = Release(multiplier, FULL, rounds, per_round)
    exact = gaussian_epsilon(math.sqrt(rounds * per_round) / multiplier, 1e-5)
    assert epsilon([release], 1e-5, accountant="pld") == pytest.approx(exact, rel=1e-4)
    by_rdp = epsilon([release], 1e-5, accountant="rdp")
    assert exact < by_rdp < 1.15 * exact
    assert account([release], 1e-5).accountant == "pld"


@pytest.mark.parametrize("sampling", [poisson(0.1), Sampling(COHORTS.scheme, None, 10, 100)])
@pytest.mark.parametrize("per_round", [1, 4])
def test_one_sampled_round(sampling, per_round):
    """delta = q H_a, a = 1 + (e^eps - 1) / q (Balle, Barthe, Gaboardi 2018), solved for epsilon."""
    z = 1.5

    def excess(eps):
        return 0.1 * gaussian_delta(math.sqrt(per_round) / z, math.log1p(math.expm1(eps) / 0.1))

    exact = optimize.brentq(lambda e: excess(e) - 1e-4, 1e-6, 20)
    release = Release(z, sampling, 1, per_round, relation="zero_out")
    assert epsilon([release], 1e-4, accountant="pld") == pytest.approx(exact, rel=3e-4)
    assert epsilon([release], 1e-4, accountant="rdp") > exact


@pytest.mark.parametrize("rounds, period", [(1, None), (7, None), (8, None), (70, 32), (96, 32)])
def test_trees(rounds, period):
    """A leaf's nodes are the aligned blocks of 1, 2, 4, … rounds that end within its tree."""
    squares = 0
    for start in range(0, rounds, period or rounds):
        leaves = min(period or rounds, rounds - start)
        squares += max(
            sum((leaf // 2**k + 1) * 2**k <= leaves for k in range(10)) for leaf in range(leaves)
        )
    release = Release(3.0, FULL, rounds, kind="tree", period=period, relation="zero_out")
    shift = math.sqrt(squares) / 3.0
    exact = gaussian_epsilon(shift, 1e-6)
    assert epsilon([release], 1e-6, accountant="pld") == pytest.approx(exact, rel=1e-4)
    orders = dp.rdp.RdpAccountant().orders
    by_rdp = dp.rdp.compute_epsilon(orders, orders * shift**2 / 2, 1e-6)[0]
    assert epsilon([release], 1e-6, accountant="rdp") == pytest.approx(by_rdp, rel=1e-9)
    made = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
    assert made.compose(event([release])).get_epsilon(1e-6) == pytest.approx(by_rdp, rel=1e-9)


@pytest.mark.parametrize("multiplier, rate", [(0.6, 0.3), (1.0, 0.01), (20.0, 0.05), (1.5, 1.0)])
def test_poisson_losses_are_those_of_dp_accounting(multiplier, rate):
    ours = loss_distribution.poisson(multiplier, rate, 1e-3)
    theirs = dp.pld.privacy_loss_distribution.from_gaussian_mechanism(
        multiplier, value_discretization_interval=1e-3, sampling_prob=rate
    )
    for direction in ("_pmf_remove", "_pmf_add"):
        a, b = getattr(ours, direction), getattr(theirs, direction)
        eps = np.array([-2.0, -0.1, -0.003, 0.0, 0.004, 0.2, 1.0, 5.0])
        np.testing.assert_allclose(
            a.get_delta_for_epsilon(eps), b.get_delta_for_epsilon(eps), rtol=1e-6, atol=1e-11
        )
    for rounds in (1, 300):
        composed = [
            losses.self_compose(rounds).get_epsilon_for_delta(1e-6) for losses in (ours, theirs)
        ]
        assert composed[0] == pytest.approx(composed[1], rel=1e-5)


# Cohorts of fixed size: what is claimed holds against the worst data, what is refused does not.


@pytest.mark.parametrize("relation, other", [("replace_one", 0), ("zero_out", 1)])
def test_fixed_size_claims_hold_against_an_attack(relation, other):
    """All others' updates are -C, the client's C or (its neighbour's) -C or 0; s = C, sums + mC."""
    attacked = mixtures_epsilon(2, other, 100 / 3400, 1500, DELTA)
    plan = dict(cohort=100, population=3400, relation=relation)
    for accountant in ("rdp", "pld"):
        assert attacked < calculator.epsilon(1.0, 1500, DELTA, accountant=accountant, **plan)
    # With the sensitivity of leaving one out, the claim would have been false.
    assert attacked > 22 > epsilon([Release(1.0, COHORTS, 1500, relation=relation)], DELTA)
    assert attacked > calculator.epsilon(1.0, 1500, DELTA, sampling_rate=100 / 3400)


def small_population_delta(ours, theirs, eps, z):
    """delta between cohorts of 2 of 4 clients, by integration over the noisy sum."""
    x = np.linspace(-9, 9, 6001) * max(z, 1)
    density = [
        np.mean([stats.norm.pdf(x, sum(pair), z) for pair in itertools.combinations(c, 2)], axis=0)
        for c in (ours, theirs)
    ]
    return np.sum(np.maximum(density[0] - math.exp(eps) * density[1], 0)) * (x[1] - x[0])


UPDATES = st.floats(-1, 1, width=32)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(UPDATES, UPDATES, UPDATES), UPDATES, UPDATES, st.floats(-1.5, 1.5), st.floats(0.7, 3)
)
def test_fixed_size_losses_dominate_every_small_population(others, mine, replaced, eps, z):
    losses = loss_distribution.fixed_size(z / 2, 2 / 4, 1e-2)
    real = small_population_delta((*others, mine), (*others, replaced), eps, z)
    assert real <= losses.get_delta_for_epsilon(eps) + 1e-7


@pytest.mark.parametrize("eps", [-1.0, -0.2, 0.0, 0.3, 1.0])
def test_fixed_size_losses_are_attained(eps):
    losses = loss_distribution.fixed_size(0.5, 2 / 4, 1e-3)
    worst = [((-1, -1, -1, 1), (-1,) * 4), ((-1,) * 4, (-1, -1, -1, 1))]
    real = max(small_population_delta(*pair, eps, 1.0) for pair in worst)
    assert losses.get_delta_for_epsilon(eps) == pytest.approx(real, abs=1e-5)


# Properties.


@settings(max_examples=5, deadline=None)
@given(
    st.floats(0.5, 5),
    st.integers(1, 300),
    st.sampled_from([poisson(0.02), Sampling(COHORTS.scheme, None, 3, 150), FULL]),
    st.sampled_from(["rdp", "pld", None]),
)
def test_monotone(multiplier, rounds, sampling, accountant):
    release = Release(multiplier, sampling, rounds, relation="zero_out")

    def eps(delta=1e-5, *more, **changes):
        releases = [release._replace(**changes), *more]
        return epsilon(releases, delta, accountant=accountant)

    here = eps()
    assert eps(noise_multiplier=1.2 * multiplier) < here
    assert eps(rounds=rounds + rounds // 5 + 1) > here
    assert eps(per_round=2) > here
    assert eps(delta=1e-4) < here
    assert eps(1e-5, release) > here
    if sampling.rate:
        assert eps(sampling=poisson(0.03)) > here
    elif sampling.size:
        assert eps(sampling=sampling._replace(size=4)) > here
    assert epsilon([release], 1e-5) <= here


def test_kinds_compose():
    tree = Release(9.0, FULL, 64, kind="tree", period=32, relation="zero_out")
    kinds = [tree, Release(2.0, COHORTS, 50, relation="zero_out")]
    kinds += [Release(2.0, poisson(0.01), 50, relation="zero_out")]
    for accountant in ("rdp", "pld"):
        together = epsilon(kinds, 1e-5, accountant=accountant)
        alone = [epsilon([k], 1e-5, accountant=accountant) for k in kinds]
        assert max(alone) < together
        assert epsilon(kinds[::-1], 1e-5, accountant=accountant) == pytest.approx(together)
    split = [kinds[1]._replace(rounds=20), kinds[1]._replace(rounds=30)]
    assert epsilon(split, 1e-5) == epsilon([kinds[1]], 1e-5)


@pytest.mark.parametrize("accountant", ["rdp", "pld", None])
def test_no_noise_and_no_rounds(accountant):
    bare, none = Release(0.0, CLIENTS, 1), Release(0.0, CLIENTS, 0)
    assert epsilon([Release(1.0, CLIENTS, 5), bare], 1e-5, accountant=accountant) == math.inf
    assert epsilon([none, Release(0.0, poisson(0.0), 9)], 1e-5, accountant=accountant) == 0
    assert epsilon([], 1e-5, accountant=accountant) == 0
    assert epsilon([Release(1e-4, CLIENTS, 9)], 1e-5, accountant=accountant) > 1e4


# From mechanisms.


def test_releases_of_mechanisms():
    mechanism = Mechanism(SERVER_SUM, "client", 0.5, 1.2)
    microbatch = mechanism._replace(unit="example", sensitivity=2.0)
    tree = mechanism._replace(kind="tree", period=8)
    for m, sampling, relation, expected in [
        (mechanism, CLIENTS, "add_or_remove", 1.2),
        (mechanism, CLIENTS, "zero_out", 1.2),
        (mechanism, COHORTS, "zero_out", 0.6),
        (mechanism, COHORTS, "replace_one", 0.6),
        (mechanism, FULL, "add_or_remove", 1.2),
        (mechanism, FULL, "replace_one", 0.6),
        (microbatch, CLIENTS, "add_or_remove", 0.6),
        (microbatch, FULL, "replace_one", 0.6),
        (tree, FULL, "zero_out", 1.2),
        (tree, FULL, "replace_one", 0.6),
    ]:
        release = release_of(m, sampling, 7, relation=relation, per_round=1)
        kind = ("tree", 8) if m is tree else ("gaussian", None)
        assert release == Release(expected, sampling, 7, 1, *kind, relation)
    with pytest.raises(ValueError, match="whose noise multiplier is set.*Received"):
        release_of(mechanism._replace(noise_multiplier=None), CLIENTS, 7)


@pytest.mark.parametrize(
    "sampling, kind, relation",
    [
        (COHORTS, "gaussian", "add_or_remove"),
        (CLIENTS, "gaussian", "replace_one"),
        (FULL, "tree", "add_or_remove"),
        (CLIENTS, "tree", "zero_out"),
        (FULL, "gaussian", "neighbours"),
    ],
)
def test_refused_relations(sampling, kind, relation):
    release = Release(1.0, sampling, 5, kind=kind, relation=relation)
    for refused in (
        lambda: epsilon([release], 1e-5),
        lambda: sensitivity(relation, sampling, kind=kind),
    ):
        with pytest.raises(ValueError, match="Received: (relation|scheme)="):
            refused()


@pytest.mark.parametrize(
    "changes",
    [
        dict(noise_multiplier=-1.0),
        dict(noise_multiplier=math.nan),
        dict(noise_multiplier=None),
        dict(rounds=-1),
        dict(rounds=1.5),
        dict(per_round=0),
        dict(kind="laplace"),
        dict(kind="tree", sampling=FULL, per_round=2, relation="zero_out"),
        dict(kind="tree", sampling=FULL, period=0, relation="zero_out"),
        dict(sampling=Sampling("shuffled")),
        dict(sampling=Sampling("poisson", rate=1.1)),
        dict(sampling=Sampling("poisson", rate=0.1, size=10, population=100)),
        dict(sampling=Sampling(COHORTS.scheme, rate=0.1)),
        dict(sampling=Sampling(COHORTS.scheme, size=11, population=10), relation="zero_out"),
    ],
)
def test_refused_releases(changes):
    with pytest.raises(ValueError, match="Received: "):
        epsilon([Release(1.0, CLIENTS, 5)._replace(**changes)], 1e-5)


def test_refused_accounts():
    release = Release(1.0, FULL, 5)
    for delta in (0.0, 1.0, -1e-5, None):
        with pytest.raises(ValueError, match="Received: delta="):
            epsilon([release], delta)
    with pytest.raises(ValueError, match="Received: accountant='moments'"):
        epsilon([release], 1e-5, accountant="moments")
    with pytest.raises(ValueError, match="under one relation"):
        epsilon([release, release._replace(relation="zero_out")], 1e-5)
    for arguments in (dict(cohort=5), dict(sampling_rate=0.1, cohort=5, population=50)):
        with pytest.raises(ValueError, match="Received: sampling_rate="):
            calculator.epsilon(1.0, 5, 1e-5, **arguments)


# Turned round.


@pytest.mark.parametrize(
    "budget, sampling, accountant",
    [(2.0, poisson(0.05), None), (1.0, COHORTS, "pld"), (8.0, COHORTS, "rdp"), (0.1, FULL, "rdp")],
)
def test_solved_noise_is_enough_and_hardly_more(budget, sampling, accountant):
    def plan(z):
        spent = Release(20.0, sampling, 5, relation="zero_out")
        return [spent, Release(z, sampling, 30, relation="zero_out")]

    if sampling is FULL:
        with pytest.raises(ValueError, match="Received: budget_epsilon=0.1.*already"):
            curves.solve_noise_multiplier(budget, 1e-5, plan, accountant=accountant)
        return
    z = curves.solve_noise_multiplier(budget, 1e-5, plan, accountant=accountant)
    assert epsilon(plan(z), 1e-5, accountant=accountant) <= budget
    assert epsilon(plan(z / 1.001), 1e-5, accountant=accountant) > budget


def test_solved_noise_of_nothing():
    plan = lambda z: [Release(z, FULL, 0)]  # noqa: E731
    assert curves.solve_noise_multiplier(1.0, 1e-5, plan) == 0.0
    for budget in (0, -1.0, math.inf, math.nan, "1"):
        with pytest.raises(ValueError, match="Received: budget_epsilon="):
            curves.solve_noise_multiplier(budget, 1e-5, plan)


@pytest.mark.parametrize("accountant", ["rdp", None])
def test_rounds_within(accountant):
    def more(rounds):
        return [Release(4.0, FULL, rounds)]

    def within(budget, spent, most):
        return curves.rounds_within(budget, 1e-5, spent, more, most, accountant)

    spent = [Release(6.0, FULL, 20)]
    count = within(4.0, spent, 1000)
    assert 0 < count < 1000
    assert epsilon([*spent, *more(count)], 1e-5, accountant=accountant) <= 4.0
    assert epsilon([*spent, *more(count + 1)], 1e-5, accountant=accountant) > 4.0
    assert within(4.0, spent, count) == count
    assert within(4.0, spent, count - 1) == count - 1
    assert within(1.0, spent, 1000) == 0
    if accountant is None:
        reach = [n for n in range(60) if gaussian_epsilon(math.sqrt(20 / 36 + n / 16), 1e-5) <= 4]
        assert count == reach[-1]


@pytest.mark.parametrize("accountant", ["rdp", "pld", None])
def test_epsilon_by_round(accountant):
    def after(n):
        return [Release(3.0, FULL, min(n, 10)), Release(2.0, FULL, max(n - 10, 0))]

    releases = after(24)
    rounds, epsilons = curves.epsilon_by_round(after, 24, 1e-5, accountant, points=13)
    np.testing.assert_array_equal(rounds, [1, 3, 5, 7, 9, 11, 12, 14, 16, 18, 20, 22, 24])
    assert epsilons[-1] == pytest.approx(epsilon(releases, 1e-5, accountant=accountant), rel=1e-9)
    if accountant != "rdp":
        shifts = [math.sqrt(min(n, 10) / 9 + max(n - 10, 0) / 4) for n in rounds]
        exact = [gaussian_epsilon(s, 1e-5) for s in shifts]
        np.testing.assert_allclose(epsilons, exact, rtol=1e-3)
    assert np.all(np.diff(epsilons) > 0)


# The package.


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match="pip install dp-accounting"):
        event([Release(1.0, FULL, 5)])


def test_imports_load_neither_package():
    code = (
        "import sys, tffed.privacy.calculator\n"
        "assert not {'dp_accounting', 'tensorflow_privacy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
