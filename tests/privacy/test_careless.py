"""Careless and dishonest uses: each is counted rightly, or refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.helpers import needs_tf_privacy
from tests.privacy.runs import DELTA, UNIFORM, compile_again, flat, make, pop
from tffed import random, tree
from tffed.aggregation.chain import Reducer
from tffed.data import Poisson, Sampler
from tffed.privacy import Budget, gaussian, weight_noise

pytestmark = needs_tf_privacy
FIXED = tffed.mean("uniform", denominator=5)


def fit(fed, rounds=1, data=None, **arguments):
    fed.fit(pop() if data is None else data, rounds=rounds, verbose=0, **arguments)
    return fed.privacy_report(DELTA)


def on_weights():
    server = keras.optimizers.SGD(1.0)
    return make(tffed.clip(0.5), weight_noise(1.0), UNIFORM, server_optimizer=server)


def test_a_known_secret_that_is_put_into_the_state_protects_nobody():
    fed = make(gaussian(1.0, 1.0), UNIFORM)
    assert np.isfinite(fit(fed).epsilon)
    fed.state = fed.state._replace(noise=random.secret(3))
    assert fit(fed).epsilon == np.inf


def test_secret_cohorts_are_not_drawn_again_after_another_compile():
    fed = make(gaussian(1.0, 1.0), FIXED)
    fit(fed, sampler=Poisson(0.5))
    before = fed.state._replace(round=tf.constant(0))
    compile_again(fed, gaussian(1.0, 1.0), FIXED, client=0.2)
    fed.state = before
    with pytest.raises(ValueError, match="state of the present compile"):
        fit(fed, sampler=Poisson(0.5))
    assert fed.ledger.rounds == 1


def test_no_stage_sees_or_turns_the_sum_before_its_noise():
    seen = []

    def finish(state, total, stats, clients, seed):
        seen.append(total)
        return tree.scale(total, 1000.0), state, {}

    before = tffed.aggregation.Stage(finish=finish, name="mine")
    found = []
    for stages in ((before, gaussian(1.0, 1e-6), UNIFORM), (gaussian(1.0, 1e-6), UNIFORM)):
        fed = make(*stages)
        said = fit(fed).assumptions
        assert any("mine" in text for text in said) == (len(stages) == 3)
        found.append(flat(fed.model))
    np.testing.assert_allclose(*found, atol=1e-5)
    assert seen and np.linalg.norm(found[0]) < 1.001


def test_nobody_is_twice_in_a_cohort():
    class Twice(Sampler):
        scheme = "twice"

        def sample(self, clients, *, seed, round):
            return [clients.ids[0]] * 3

    with pytest.raises(ValueError, match="'c00' more than once in round 1"):
        fit(make(gaussian(1.0, 1.0), FIXED), sampler=Twice())


def test_a_budget_holds_whatever_becomes_of_the_servers_rate():
    fed = on_weights()
    faster = keras.callbacks.LearningRateScheduler(lambda epoch: 30.0 if epoch > 1 else 1.0)
    with pytest.raises(ValueError, match="Expected a server's learning rate of 1, with which"):
        fit(fed, 5, privacy=Budget(5.0, DELTA), callbacks=[faster])
    assert fed.ledger.rounds == 2 and fed.privacy_report(DELTA).epsilon < 5.0


@pytest.mark.parametrize("rate", [0.0, -1.0, np.nan, np.inf])
def test_rates_that_noise_on_the_weights_cannot_be_measured_by_are_refused(rate):
    fed = on_weights()
    fed.server_optimizer.learning_rate = rate
    with pytest.raises(ValueError, match="must be positive and finite"):
        fit(fed)
    assert fed.ledger.rounds == 0 and not np.isnan(flat(fed.model)).any()


def test_norms_that_float32_takes_for_zero_are_no_bounds():
    for stage in (lambda c: gaussian(c, 1.0), tffed.clip):
        with pytest.raises(ValueError, match="must be at least 1e-12"):
            stage(1e-26)
    fed = make(gaussian(1e-12, 1e-6), tffed.mean("uniform", denominator=1), client=1e-11)
    fit(fed, data=pop(1))
    assert np.linalg.norm(flat(fed.model)) == pytest.approx(1e-12, rel=1e-4)


def own_reducer(weight, denominator=None):
    def finish(total, sum_of_weights):
        return tree.scale(total, 1.0 / sum_of_weights)

    return Reducer(weight, finish, False, "mine", bounded=True, denominator=denominator)


def test_reducers_of_ones_own_tell_nothing_of_examples_and_numbers_of_clients():
    by_size = own_reducer(lambda examples: tf.minimum(examples, 100.0) / 100.0)
    with pytest.raises(ValueError, match="tells how many examples"):
        fit(make(gaussian(1.0, 1.0), by_size))
    # One that says 5 and would divide by the number of clients, 10, divides by 5.
    found = []
    for reducer in (own_reducer(tf.ones_like, 5.0), FIXED):
        fed = make(gaussian(1.0, 1e-6), reducer)
        fit(fed)
        found.append(flat(fed.model))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_weights_of_16_bits_are_refused_beside_noise():
    layers = [keras.Input((4,), dtype="bfloat16"), keras.layers.Dense(3, dtype="bfloat16")]
    with pytest.raises(ValueError, match="trained weights of bfloat16 beside noise"):
        fit(make(gaussian(1.0, 1.0), UNIFORM, model=keras.Sequential(layers)))
