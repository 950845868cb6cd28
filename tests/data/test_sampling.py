"""Samplers of clients: their laws, their cost, and refusals."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from tffed import data

SAMPLERS = [
    data.Uniform(4), data.Poisson(0.3), data.Weighted(4, np.arange(1.0, 21.0)), data.Cyclic(4)
]


def cohorts(sampler, clients, rounds, seed=11):
    return [sampler.sample(clients, seed=seed, round=r) for r in range(rounds)]


def counts(drawn, population):
    return np.bincount(list(itertools.chain(*drawn)), minlength=population)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.scheme)
def test_a_cohort_is_a_function_of_seed_and_round(sampler):
    first = cohorts(sampler, 20, 30)
    np.random.seed(0)
    sampler.sample(20, seed=5, round=2)  # what was drawn before does not matter
    assert first[17] == sampler.sample(20, seed=11, round=17)
    assert first == cohorts(sampler, 20, 30)
    assert all(len(set(cohort)) == len(cohort) for cohort in first)
    if sampler.scheme != "cyclic":
        assert first != cohorts(sampler, 20, 30, seed=12)
        assert len(set(map(tuple, first))) > 20
        assert all(cohort == sorted(cohort) for cohort in first)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.scheme)
def test_populations_of_every_kind_give_the_same_places(sampler):
    names = [f"client {i}" for i in range(20)]
    clients = data.from_function(names, lambda i: (np.zeros((1, 1)), np.zeros(1)))
    places = sampler.sample(20, seed=3, round=1)
    assert places == sampler.sample(np.arange(20), seed=3, round=1)
    for population in (names, clients):
        assert sampler.sample(population, seed=3, round=1) == [names[p] for p in places]
    assert all(type(i) is int for i in sampler.sample(range(20), seed=3, round=1))


def test_schemes_are_declared_for_accounting():
    assert data.Uniform(3).describe() == {"scheme": "fixed_size_without_replacement", "size": 3}
    assert data.Poisson(0.25).describe() == {"scheme": "poisson", "rate": 0.25}
    assert data.Cyclic(3).describe() == {"scheme": "cyclic", "size": 3}
    assert data.Weighted(3).describe() == {"scheme": "weighted", "size": 3, "weights": "examples"}
    assert data.Weighted(1, [1.0]).describe()["weights"] == "given"
    assert data.Uniform.scheme == data.Uniform(3).scheme


def test_uniform_inclusion_is_even():
    # Counts of N clients over R rounds have variance R p (1 - p) and sum R n, so the sum of their
    # squared deviations times (N - 1) / N over that variance is chi-square with N - 1 = 29
    # degrees of freedom: outside [8.5, 68] with probability below 1e-4.
    population, size, rounds = 30, 6, 2000
    got = counts(cohorts(data.Uniform(size), population, rounds), population)
    p = size / population
    variance = rounds * p * (1 - p) * population / (population - 1)
    square = np.sum((got - rounds * p) ** 2) / variance
    assert got.sum() == rounds * size and 8.5 < square < 68, square


def test_poisson_is_a_coin_per_client():
    # Counts are independent binomials: chi-square with 40 degrees of freedom, outside [14, 85] with
    # probability below 1e-4. The cohort's size is binomial (mean 8, variance 6.4): its sample mean
    # and variance lie within 5 standard errors.
    population, rate, rounds = 40, 0.2, 2000
    drawn = cohorts(data.Poisson(rate), population, rounds)
    variance = rounds * rate * (1 - rate)
    square = np.sum((counts(drawn, population) - rounds * rate) ** 2) / variance
    sizes = np.array([len(cohort) for cohort in drawn])
    assert 14 < square < 85, square
    assert abs(sizes.mean() - 8) < 5 * np.sqrt(6.4 / rounds)
    assert abs(sizes.var() - 6.4) < 5 * 6.4 * np.sqrt(2 / rounds)


def test_poisson_may_be_empty_and_may_be_all():
    assert data.Poisson(1e-9).sample(100, seed=0, round=0) == []
    assert data.Poisson(1.0).sample(5, seed=0, round=0) == [0, 1, 2, 3, 4]


def test_weighted_inclusion_against_enumeration():
    # The chance of each pair by drawing one after another without replacement; frequencies of the
    # six pairs lie within 5 standard errors, passed by chance with probability below 1e-5.
    weights, rounds = np.array([1.0, 2.0, 3.0, 4.0]), 4000
    chance = dict.fromkeys(itertools.combinations(range(4), 2), 0.0)
    for a, b in itertools.permutations(range(4), 2):
        drawn = weights[a] / 10 * weights[b] / (10 - weights[a])
        chance[min(a, b), max(a, b)] += drawn
    got = cohorts(data.Weighted(2, weights), 4, rounds)
    for pair, p in chance.items():
        frequency = got.count(list(pair)) / rounds
        assert abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / rounds), (pair, frequency, p)


def test_weights_of_zero_and_numbers_of_examples():
    assert data.Weighted(2, [0, 1, 0, 5]).sample(4, seed=0, round=0) == [1, 3]
    clients = data.from_dict({
        i: (np.zeros((size, 1)), np.zeros(size)) for i, size in enumerate([1, 9, 90])
    })
    by_size = cohorts(data.Weighted(1), clients, 200)
    assert by_size == cohorts(data.Weighted(1, [1, 9, 90]), 3, 200)
    assert counts(by_size, 3)[2] > 150


def test_cyclic_goes_round():
    assert cohorts(data.Cyclic(3), 7, 4) == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]]


@pytest.mark.parametrize(
    "sampler", [data.Uniform(100), data.Poisson(1e-4), data.Cyclic(100)], ids=lambda s: s.scheme
)
def test_a_million_clients_cost_what_the_cohort_costs(sampler):
    population = range(1_000_000)
    sampler.sample(population, seed=0, round=0)
    tracemalloc.start()
    begin = time.perf_counter()
    drawn = cohorts(sampler, population, 20)
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(60 < len(cohort) < 150 for cohort in drawn)
    assert seconds < 2 and peak < 1e6, (seconds, peak)


BAD = {
    "uniform size": (lambda: data.Uniform(0), "at least 1.*size=0"),
    "share as size": (lambda: data.Uniform(0.1), "size=0.1.*Poisson"),
    "larger than population": (lambda: data.Uniform(5).sample(4, seed=0, round=0), "size=5, 4"),
    "cyclic too large": (lambda: data.Cyclic(5).sample(4, seed=0, round=0), "size=5, 4 clients"),
    "cyclic size": (lambda: data.Cyclic(-1), "size=-1"),
    "rate 0": (lambda: data.Poisson(0.0), "rate to be a finite number above 0 and at most 1"),
    "rate 2": (lambda: data.Poisson(2), "rate=2"),
    "rate nan": (lambda: data.Poisson(float("nan")), "rate=nan"),
    "negative weight": (lambda: data.Weighted(1, [1, -1]), "at least 0 per client"),
    "nan weight": (lambda: data.Weighted(1, [np.nan]), "finite"),
    "few weights": (lambda: data.Weighted(1, [1]).sample(2, seed=0, round=0), "1 weights, 2 cl"),
    "zeros": (lambda: data.Weighted(2, [1, 0]).sample(2, seed=0, round=0), "1 positive weight"),
    "no weights": (lambda: data.Weighted(1).sample(3, seed=0, round=0), "weights=None"),
    "weighted size": (lambda: data.Weighted(3, [1, 1]).sample(2, seed=0, round=0), "size=3, 2"),
    "no clients": (lambda: data.Uniform(1).sample([], seed=0, round=0), r"clients=\[\]"),
    "text": (lambda: data.Uniform(1).sample("ab", seed=0, round=0), "clients='ab'"),
    "seed": (lambda: data.Uniform(1).sample(2, seed=-1, round=0), "seed=-1"),
    "round": (lambda: data.Cyclic(1).sample(2, seed=0, round=-1), "round=-1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
