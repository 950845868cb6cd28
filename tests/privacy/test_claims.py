"""Ledgers, budgets and reports: what a run may claim is what dp-accounting says of what it did."""

import json
import math
import warnings

import keras
import numpy as np
import pytest

import tffed
from tests.helpers import needs_tf_privacy
from tests.shell import LOSS, blobs, classifier, population
from tffed.mechanism import CLIENT_STEPS, SERVER_SUM, Mechanism
from tffed.privacy import Budget, gaussian, local_gaussian, tree_gaussian, weight_noise
from tffed.privacy.ledger import Ledger, Record
from tffed.privacy.report import report
from tffed.privacy.terms import SCHEDULE, Terms

dp = pytest.importorskip("dp_accounting")
pytestmark = needs_tf_privacy
UNIFORM = tffed.mean("uniform")
DELTA = 1e-5


def terms(mechanism, scheme=SCHEDULE, **changes):
    found = Terms(mechanism, scheme, 100, 10, 0.1, ((1, None),), (), False)
    return found._replace(**changes)


def wrote(ledger, found, cohort, dropped=0.0):
    """Writes the next round, in the books of a run that goes on."""
    ledger.record(Record(found, ledger.rounds, tuple(cohort), dropped))


def on_sum(noise_multiplier):
    return Mechanism(SERVER_SUM, "client", 1.0, noise_multiplier)


def compiled(*parts, recipe=None, model=None, **arguments):
    fed = tffed.Federated(model or classifier(), recipe or tffed.fed_avg(batch_size=8), seed=3)
    client = None if recipe is not None else keras.optimizers.SGD(0.1)
    aggregator = tffed.chain(*(parts or [UNIFORM]))
    arguments = {"client_optimizer": client, "jit_compile": False} | arguments
    fed.compile(loss=LOSS, aggregator=aggregator, **arguments)
    return fed


def poisson_epsilon(noise_multiplier, rate, rounds):
    accountant = dp.rdp.RdpAccountant()
    one = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier))
    return accountant.compose(one, rounds).get_epsilon(DELTA)


def gaussian_epsilon(noise_multiplier, rounds):
    return poisson_epsilon(noise_multiplier, 1.0, rounds)


def test_a_poisson_run_reports_what_dp_accounting_says_of_it():
    fed = compiled(gaussian(1.0, 2.0), tffed.mean("uniform", denominator=3.0))
    fed.fit(population(), rounds=7, sampler=tffed.data.Poisson(0.5), verbose=0)
    fed.fit(population(), rounds=9, initial_round=7, sampler=tffed.data.Poisson(0.25), verbose=0)
    found = fed.privacy_report(DELTA, accountant="rdp")
    accountant = dp.rdp.RdpAccountant()
    for rate, rounds in ((0.5, 7), (0.25, 2)):
        one = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(2.0))
        accountant.compose(one, rounds)
    assert found.epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)
    assert (found.unit, found.relation, found.rounds) == ("client", "add_or_remove", 9)
    rounds, epsilons = found.by_round
    assert list(rounds) == list(range(1, 10)) and epsilons[-1] == found.epsilon
    assert epsilons[6] == pytest.approx(poisson_epsilon(2.0, 0.5, 7), rel=1e-6)
    assert fed.privacy_report(DELTA).epsilon <= found.epsilon
    assert "the training loss and metrics" in found.unprotected


def test_a_run_of_all_clients_is_not_amplified_and_a_fixed_cohort_no_poisson_sample():
    fed = compiled(gaussian(1.0, 4.0), UNIFORM)
    fed.fit(population(), rounds=3, verbose=0)
    found = fed.privacy_report(DELTA, accountant="rdp")
    assert found.epsilon == pytest.approx(gaussian_epsilon(4.0, 3), rel=1e-6)
    assert found.relation == "zero_out"
    twice = fed.privacy_report(DELTA, accountant="rdp", relation="replace_one").epsilon
    assert twice == pytest.approx(gaussian_epsilon(2.0, 3), rel=1e-6)
    fed.fit(population(), rounds=4, initial_round=3, clients_per_round=2, verbose=0)
    with pytest.raises(ValueError, match="add_or_remove"):
        fed.privacy_report(DELTA, relation="add_or_remove")


def test_noise_in_the_clients_counts_the_rounds_of_the_busiest_client():
    fed = compiled(local_gaussian(1.0, 5.0), UNIFORM)
    fed.fit(population(6), rounds=8, clients_per_round=2, verbose=0)
    sampler = tffed.data.Uniform(2)
    cohorts = [sampler.sample(6, seed=3, round=r) for r in range(8)]
    most = max(np.bincount(np.concatenate(cohorts)))
    assert most < 8
    found = fed.privacy_report(DELTA, accountant="rdp")
    assert found.epsilon == pytest.approx(gaussian_epsilon(5.0, int(most)), rel=1e-6)
    assert "the server too" in found.adversary


def test_noise_on_the_averaged_weights_has_the_multiplier_of_its_sensitivity():
    parts = (tffed.clip(0.5), weight_noise(0.3), UNIFORM)
    fed = compiled(*parts, server_optimizer=keras.optimizers.SGD(0.5))
    fed.fit(population(6), rounds=1, verbose=0)
    fed.server_optimizer.learning_rate = 0.25  # what a callback might do
    fed.fit(population(6), rounds=2, initial_round=1, verbose=0)
    # One of 6 clients moves the weights by at most rate · 0.5 / 6.
    multipliers = [e.terms.mechanism.noise_multiplier for e in fed.ledger.entries]
    np.testing.assert_allclose(multipliers, [0.3 / (0.5 * 0.5 / 6), 0.3 / (0.25 * 0.5 / 6)])
    accountant = dp.rdp.RdpAccountant()
    for multiplier in multipliers:
        accountant.compose(dp.GaussianDpEvent(multiplier))
    found = fed.privacy_report(DELTA, accountant="rdp")
    assert found.epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


def test_rounds_without_noise_are_never_forgotten():
    fed = compiled()
    fed.fit(population(), rounds=1, verbose=0)
    with pytest.raises(ValueError, match="1 rounds without any"):
        fed.privacy_report(DELTA)
    fed.compile(
        client_optimizer=keras.optimizers.SGD(0.1),
        loss=LOSS,
        aggregator=tffed.chain(gaussian(1.0, 1.0), UNIFORM),
    )
    fed.fit(population(), rounds=1, verbose=0)
    found = fed.privacy_report(DELTA)
    assert math.isinf(found.epsilon) and found.rounds == 2
    assert "without noise: nothing is protected" in str(found)


def test_a_budget_sets_the_noise_that_just_keeps_to_it():
    fed = compiled(gaussian(1.0), tffed.mean("uniform", denominator=3.0))
    budget = Budget(2.0, DELTA)
    sampler = tffed.data.Poisson(0.5)
    fed.fit(population(), rounds=6, sampler=sampler, privacy=budget, verbose=0)
    found = fed.privacy_report()
    assert 1.98 < found.epsilon <= 2.0 and found.rounds == 6
    with pytest.raises(ValueError, match="allows one more round.*spent"):
        again = {"initial_round": 6, "sampler": sampler, "privacy": budget, "verbose": 0}
        fed.fit(population(), rounds=60, **again)


def test_a_budget_ends_a_run_before_the_round_that_would_exceed_it(tmp_path):
    for _ in range(2):  # the second time, the run that is there is at its end
        fed = compiled(gaussian(1.0, 3.0), UNIFORM)
        with pytest.warns(UserWarning, match="ends the run after round"):
            history = fed.fit(
                population(), 40, privacy=Budget(2.5, DELTA), checkpoint_dir=tmp_path, verbose=0
            )
        done = len(history.epoch)
        assert 1 < done < 40
    assert fed.privacy_report().epsilon <= 2.5 < report(one_more(fed.ledger), DELTA).epsilon


def one_more(ledger):
    longer = Ledger()
    (entry,) = ledger.entries
    longer.entries = [entry._replace(rounds=entry.rounds + 1, exposure=entry.exposure + 1)]
    return longer


def test_a_resumed_run_has_the_bits_and_the_ledger_of_one_that_was_not(tmp_path):
    budget = Budget(3.0, DELTA)

    def fit(fed, folder, **arguments):
        arguments = {"rounds": 4, "checkpoint_dir": tmp_path / folder} | arguments
        fed.fit(population(), privacy=budget, verbose=0, **arguments)
        return fed

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    broken = compiled(gaussian(1.0), UNIFORM)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, "run", callbacks=[Stop()])
    resumed = fit(compiled(gaussian(1.0), UNIFORM), "run")
    assert resumed.ledger.rounds == 4
    assert resumed.privacy_report().epsilon <= 3.0
    # The process that was interrupted goes on as well, with the noise of the same secret seed.
    before = resumed.state.weights.trainable[0].numpy()
    whole = compiled(gaussian(1.0), UNIFORM)
    with pytest.raises(KeyboardInterrupt):
        fit(whole, "other", callbacks=[Stop()])
    assert not np.array_equal(whole.model.get_weights()[0], broken.model.get_weights()[0])
    assert not np.array_equal(before, fit(whole, "other").state.weights.trainable[0].numpy())


def test_killed_before_its_first_checkpoint_a_run_draws_the_same_noise(tmp_path):
    class Die(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.get_weights()[0])
            raise KeyboardInterrupt

    seen = []
    for _ in range(2):
        fed = compiled(gaussian(1.0, 1.0), UNIFORM)
        with pytest.raises(KeyboardInterrupt):
            fed.fit(
                population(), rounds=2, checkpoint_dir=tmp_path, callbacks=[Die()], verbose=0
            )
    np.testing.assert_array_equal(*seen)


def test_a_ledger_survives_json_and_merges_what_it_did_not_know():
    ledger = Ledger()
    for cohort in (["a", 1], ["a", 2], ["b", 1]):
        wrote(ledger, terms(on_sum(1.0)), cohort, 1.0)
    wrote(ledger, terms(on_sum(2.0)), ["a"])
    assert [(e.rounds, e.exposure, e.dropped) for e in ledger.entries] == [(3, 2, 3), (1, 1, 0)]
    found = json.loads(json.dumps(ledger.to_json()))
    same = Ledger().resumed(found)
    assert same.entries == ledger.entries
    wrote(same, terms(on_sum(2.0)), ["a"])
    assert same.entries[-1][1:3] == (2, 2)
    assert ledger.resumed(json.loads(json.dumps(same.to_json()))).rounds == 5
    assert same.resumed(found) is same  # it knows of a round since that checkpoint
    other = Ledger()
    wrote(other, terms(None), ["a"])
    assert other.resumed(found).rounds == 5


def test_of_two_branches_of_a_run_both_count():
    trunk, same = Ledger(), terms(on_sum(1.0), "poisson")
    for number in range(2):
        trunk.record(Record(same, number, (), 0, f"trunk {number}"))
    stem = json.loads(json.dumps(trunk.to_json()))
    branches = [Ledger().resumed(stem) for _ in range(2)]
    for name, branch in zip("ab", branches, strict=True):
        branch.record(Record(same, 2, (), 0, f"{name} 2"))
    branches[0].record(Record(same, 3, (), 0, "a 3"))
    later = json.loads(json.dumps(branches[1].to_json()))
    assert branches[0].resumed(stem) is branches[0]  # what it goes on from is no branch
    assert branches[0].resumed(later).rounds == 4 + 3


def test_rounds_share_an_entry_only_where_they_follow_each_other():
    ledger, same = Ledger(), terms(on_sum(1.0), "poisson")
    for number, release in ((0, "a"), (1, "b"), (1, "b"), (2, "c")):
        ledger.record(Record(same, number, (), 0, release))
    assert [(e.rounds, e.first) for e in ledger.entries] == [(3, 0)]  # b is one release
    ledger.record(Record(same, 1, (), 0, "other"))
    found = [(e.rounds, e.first, e.terms.scheme) for e in ledger.entries]
    assert found == [(1, 0, "poisson"), (1, 1, "everyone"), (1, 2, "poisson"), (1, 1, "everyone")]
    ledger.close()  # another compile: its rounds 0 and 1 have cohorts of their own
    ledger.record(Record(same, 0, (), 0, "d"))
    assert [e.terms.scheme for e in ledger.entries][-1] == "poisson"
    again = Ledger().resumed(json.loads(json.dumps(ledger.to_json())))
    again.record(Record(same, 0, (), 0, "e"))
    assert [e.terms.scheme for e in again.entries][-2:] == ["everyone", "everyone"]


@pytest.mark.parametrize(
    ("parts", "arguments", "fit", "words"),
    [
        ((gaussian, UNIFORM), {}, {"sampler": tffed.data.Poisson(0.5)}, "fixed number"),
        ((gaussian, tffed.mean("examples", max_weight=9)), {}, {}, "divisor must be fixed"),
        ((gaussian, UNIFORM), {}, {"sampler": tffed.data.Weighted(2)}, "depend on the clients"),
        ((gaussian, UNIFORM), {"model": True}, {}, "BatchNorm's statistics"),
        ((lambda *_: tree_gaussian(1.0, 1.0, period=4), UNIFORM), {}, {}, "takes part twice"),
        (
            (tffed.clip(1.0), lambda *_: weight_noise(1.0), UNIFORM),
            {"server_optimizer": keras.optimizers.SGD(1.0, momentum=0.9)},
            {},
            "without momentum",
        ),
        ((UNIFORM,), {}, {"privacy": Budget(1.0, DELTA)}, "A budget needs noise"),
    ],
    ids=lambda value: None,
)
def test_no_claim_is_made_that_is_not_true(parts, arguments, fit, words):
    parts = [part(1.0, 1.0) if callable(part) else part for part in parts]
    if arguments.get("model"):
        arguments = {"model": classifier(batch_norm=True)}
    fed = compiled(*parts, **arguments)
    with pytest.raises(ValueError, match=words):
        fed.fit(population(), rounds=4, verbose=0, **fit)


def test_noise_without_a_strength_and_claims_without_delta_are_refused():
    fed = compiled(gaussian(1.0), UNIFORM)
    with pytest.raises(ValueError, match="Noise needs a strength.*Budget"):
        fed.fit(population(), rounds=1, verbose=0)
    with pytest.raises(ValueError, match="Expected δ"):
        fed.privacy_report()
    with pytest.raises(ValueError, match="control variates|sends more than its update"):
        scaffold = tffed.scaffold(batch_size=8)
        compiled(
            gaussian(1.0, 1.0), UNIFORM, recipe=scaffold,
            client_optimizer=keras.optimizers.SGD(0.1),
        ).fit(population(), rounds=1, verbose=0)
    for wrong in ({"epsilon": 0, "delta": 0.1}, {"epsilon": 1, "delta": 1}):
        with pytest.raises(ValueError, match="Received: (epsilon=0|delta=1)"):
            Budget(**wrong)


def test_batch_norm_that_stays_on_the_clients_goes_with_noise_on_the_sum():
    fed = compiled(gaussian(1.0, 1.0), UNIFORM, model=classifier(True), batch_norm="local")
    fed.fit(population(), rounds=1, verbose=0)
    assert fed.privacy_report(DELTA).rounds == 1


def test_fixed_noise_is_repeated_and_said_aloud():
    runs = []
    for noise_seed in (1, 1, 2, None):
        fed = compiled(gaussian(1.0, 1.0), UNIFORM, noise_seed=noise_seed)
        fed.fit(population(), rounds=2, verbose=0)
        runs.append(fed)
    weights = [fed.model.get_weights()[0] for fed in runs]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    assert not np.array_equal(weights[0], weights[3])
    said = ["NOT MET" in str(fed.privacy_report(DELTA)) for fed in runs]
    assert said == [True, True, True, False]


def test_an_example_counts_once_for_each_pass_over_it():
    ledger = Ledger()
    steps = Mechanism(CLIENT_STEPS, "example", 1.0, 3.0)
    for cohort in (["a", "b"], ["a", "c"]):
        wrote(ledger, terms(steps, uses=((5, None),)), cohort)
    found = report(ledger, DELTA, accountant="rdp")
    assert found.epsilon == pytest.approx(gaussian_epsilon(3.0, 2 * 5), rel=1e-6)
    coarse = Ledger()
    wrote(coarse, terms(steps._replace(sensitivity=2.0)), ["a"])
    found = report(coarse, DELTA, accountant="rdp")
    assert found.epsilon == pytest.approx(gaussian_epsilon(1.5, 1), rel=1e-6)


def test_how_a_round_uses_examples_of_clients_of_each_number_of_batches():
    clients = tffed.data.from_dict({"few": blobs(5), "more": blobs(6), "many": blobs(40)})
    # Of three batches of 2, 5 examples are drawn at a larger share than 6.
    assert tffed.fed_avg(3, batch_size=2).uses(clients) == (3, ((60, 0.05), (9, 0.4)))
    assert tffed.fed_avg(3, batch_size=8).uses(clients) == (3, ((15, 0.2), (3, 1.0)))
    assert tffed.fed_avg(local_steps=7, batch_size=2).uses(clients) == (3, ((7, 0.4),))
    assert tffed.fed_avg(local_steps=7).uses(clients) == (7, ((7, 1.0),))
    assert tffed.fed_avg(2).uses(clients) == (2, ((2, 1.0),))
    assert tffed.fed_sgd().uses(clients) == (1, None)


def test_a_report_prints_draws_and_becomes_json(tmp_path):
    fed = compiled(gaussian(1.0, 1.0), UNIFORM)
    fed.fit(population(), rounds=3, clients_per_round=2, verbose=0)
    found = fed.privacy_report(DELTA)
    text = str(found)
    for words in ("differential privacy of each client after 3 rounds", "2 of 6 clients", "secret"):
        assert words in text
    assert json.loads(json.dumps(found.to_dict()))["epsilon"] == found.epsilon
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "privacy.png")
    assert (tmp_path / "privacy.png").stat().st_size > 10_000


def test_a_private_run_does_not_warn_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fed = compiled(gaussian(1.0, 50.0), UNIFORM)
        fed.fit(population(), rounds=2, privacy=Budget(4.0, DELTA), verbose=0)
    assert fed.ledger.rounds == 2


def test_cohorts_of_another_compile_are_new_and_a_broken_tree_is_its_own():
    rng = np.random.default_rng(5)
    clients = {
        k: (rng.normal(size=(5, 4)).astype("f4"), rng.normal(size=(5, 1)).astype("f4"))
        for k in range(20)
    }
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=5), seed=3)
    drawn = []

    class Noting(tffed.data.Poisson):
        def sample(self, clients, *, seed, round):
            found = super().sample(clients, seed=seed, round=round)
            drawn.append((seed, round, tuple(found)))
            return found

    for _ in range(2):
        fed.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
        fed.fit(clients, rounds=4, sampler=Noting(0.3), verbose=0)
    runs = [dict((r, ids) for s, r, ids in drawn if s == seed) for seed in {s for s, *_ in drawn}]
    assert len(runs) == 2 and all(runs[0][r] != runs[1][r] for r in range(4))

    fed = tffed.Federated(model, tffed.fed_avg(batch_size=5), seed=3)
    for _ in range(8):
        noise = tree_gaussian(clip=1.0, noise_multiplier=5.0, period=4)
        aggregator = tffed.chain(noise, UNIFORM)
        fed.compile(keras.optimizers.SGD(0.1), loss="mse", aggregator=aggregator)
        fed.fit(clients, rounds=1, sampler=tffed.data.Cyclic(5), verbose=0)
    assert [entry.rounds for entry in fed.ledger.entries] == [1] * 8
    # Cohort 0 enters each of eight trees of one node: μ = √8 / 5, which is ε = 2.288 at δ = 1e-5.
    assert fed.privacy_report(1e-5).epsilon >= 2.28
