"""Each place of the noise with each algorithm that allows it."""

import functools

import keras
import numpy as np
import pytest

import tffed
from tests.helpers import needs_tf_privacy
from tests.shell import LOSS, classifier, population
from tffed import privacy

pytestmark = needs_tf_privacy
UNIFORM = tffed.mean("uniform")
RECIPES = {
    "fed_avg": tffed.fed_avg(2, batch_size=8),
    "fed_prox": tffed.fed_prox(0.5, 2, batch_size=8),
    "fed_opt": tffed.fed_opt(2, batch_size=8),
    "fed_sgd": tffed.fed_sgd(),
    "scaffold": tffed.scaffold(2, batch_size=8),
}
STAGES = {
    "update": lambda clip, z: [privacy.local_gaussian(clip, z)],
    "sum": lambda clip, z: [privacy.gaussian(clip, z)],
    "adaptive": lambda clip, z: [
        privacy.adaptive_gaussian(clip, z, count_stddev=2.0 * z, expected_clients=3)
    ],
    "tree": lambda clip, z: [privacy.tree_gaussian(clip, z, period=2)],
    "weights": lambda clip, z: [tffed.clip(clip), privacy.weight_noise(clip * z)],
}


@functools.cache
def trained(recipe, place, clip=1e4, noise_multiplier=0.0):
    """Weights and the run after two rounds of two clients each, who come once."""
    fed = tffed.Federated(classifier(), RECIPES[recipe], seed=3)
    stages = STAGES[place](clip, noise_multiplier) if place in STAGES else []
    fed.compile(
        client_optimizer=None if recipe == "fed_sgd" else keras.optimizers.SGD(0.1),
        server_optimizer=keras.optimizers.SGD(0.5),
        loss=LOSS,
        aggregator=tffed.chain(*stages, UNIFORM),
        privacy=privacy.dp_sgd(clip, noise_multiplier) if place == "steps" else None,
        jit_compile=False,
    )
    fed.fit(population(), rounds=2, sampler=tffed.data.Cyclic(2), verbose=0)
    return np.concatenate([w.ravel() for w in fed.model.get_weights()]), fed


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        *((recipe, "steps") for recipe in RECIPES),
        *(("fed_sgd", place) for place in STAGES),
        *((recipe, "sum") for recipe in ("fed_avg", "fed_prox", "fed_opt")),
    ],
)
def test_without_noise_and_with_a_norm_out_of_reach_nothing_changes(recipe, place):
    found, plain = trained(recipe, place)[0], trained(recipe, None)[0]
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", [*STAGES, "steps"])
def test_noise_of_federated_sgd_moves_the_weights_by_as_much_as_it_should(place):
    clip, z = 1e-6, 1e6  # noise of deviation 1, and nothing else
    found, fed = trained("fed_sgd", place, clip, z)
    start = np.concatenate([w.ravel() for w in classifier().get_weights()])
    # Two rounds, the server's rate 0.5, two clients: of each client's noise, or of one for both.
    expected = {
        "update": 0.5 * np.sqrt(2 * 2) / 2,
        "sum": 0.5 * np.sqrt(2) / 2,
        "adaptive": 0.5 * np.sqrt(2) / 2 / np.sqrt(1 - 1 / 16),
        "tree": 0.5 * np.sqrt(2 / 3) / 2,  # Honaker's estimate of a sum of two leaves
        "weights": np.sqrt(2),
    }
    if place in ("adaptive", "steps"):  # its norm adapts; a batch of each client's size
        assert np.std(found - start) > 0
    else:
        # Ten numbers: their deviation is within these factors but once in 10,000 runs or more.
        ratio = np.sqrt(np.mean((found - start) ** 2)) / expected[place]
        assert 0.28 < ratio < 1.9, ratio
    assert fed.privacy_report(1e-5).epsilon < 1e-3


def test_trees_are_accounted_for_by_the_times_that_they_begin():
    dp = pytest.importorskip("dp_accounting")
    fed = tffed.Federated(classifier(), RECIPES["fed_sgd"], seed=3)
    fed.compile(
        server_optimizer=keras.optimizers.SGD(0.5),
        loss=LOSS,
        aggregator=tffed.chain(privacy.tree_gaussian(1.0, 2.0, period=3), UNIFORM),
        jit_compile=False,
    )
    fed.fit(population(6), rounds=5, sampler=tffed.data.Cyclic(2), verbose=0)
    accountant = dp.rdp.RdpAccountant(
        neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL
    )
    for steps in (3, 2):
        accountant.compose(dp.SingleEpochTreeAggregationDpEvent(2.0, steps))
    found = fed.privacy_report(1e-5, accountant="rdp")
    assert found.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
