"""What mutants of the privacy path got away with before these tests (see `mutants.py`)."""

import itertools
import json
import stat
from collections import Counter
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.helpers import needs_tf_privacy
from tests.privacy.runs import DELTA, UNIFORM, compile_again, flat, make, pop
from tffed import privacy, random
from tffed.engines.round_noise import RoundNoise
from tffed.journal import Journal
from tffed.mechanism import CLIENT_STEPS, SERVER_SUM, Mechanism
from tffed.privacy import Budget, dp_sgd, gaussian, local_gaussian, weight_noise
from tffed.privacy.accounting import account, epsilon
from tffed.privacy.claims import releases
from tffed.privacy.ledger import Entry, Ledger, Record
from tffed.privacy.releases import Release, Sampling
from tffed.privacy.terms import Exposure, Terms

pytestmark = needs_tf_privacy


def terms(scheme="everyone", *, uses=((1, None),), **mechanism):
    settings = {"place": SERVER_SUM, "unit": "client", "clip": 1.0, "noise_multiplier": 2.0}
    found = Mechanism(**(settings | mechanism))
    return Terms(found, scheme, 10, None, 0.1 if scheme == "poisson" else None, uses, (), False)


def write(ledger, terms, rounds):
    for number, cohort in rounds:
        ledger.record(Record(terms, number, tuple(cohort), 0))


def test_bound_and_cohort_seeds_follow_from_the_secret_and_are_not_it():
    secrets = [random.secret() for _ in range(2)]
    assert len({tuple(random.bound(one, "x").numpy()) for one in secrets}) == 2
    assert len({random.cohort_seed(one) for one in secrets}) == 2
    for one in secrets:
        told = {int(word) >> 2 for word in one.numpy().view(np.uint64)}
        assert random.cohort_seed(one) not in told


class State(NamedTuple):
    weights: Any
    noise: Any


def test_the_seed_of_a_round_depends_on_all_that_it_computes_on():
    secret = random.secret()

    def seeds(context=b"a", weights=1.0, read=2.0, total=3.0):
        state = State(tf.constant(weights), secret)
        noise = RoundNoise(state, context)
        begun = noise.begin(state)
        drawn = noise.of_clients(begun, tf.constant(read)), noise.of_server(begun, total)
        np.testing.assert_array_equal(noise.end(begun).noise, secret)
        return [tuple(s.noise.numpy()) for s in (begun, *drawn)] + [noise.release]

    first = seeds()
    assert seeds() == first and len(set(first)) == 4
    for change, expected in (
        ({"context": b"b"}, [True, True, True, True]),
        ({"weights": 1.5}, [True, True, True, True]),
        ({"read": 2.5}, [False, True, False, True]),
        ({"total": 3.5}, [False, False, True, True]),
    ):
        assert [a != b for a, b in zip(first, seeds(**change), strict=True)] == expected


def test_noise_in_steps_depends_on_what_clients_have_kept():
    # SCAFFOLD's clients correct their steps by what they kept: a round that is repeated after that
    # has changed is another release, which noise that comes again would show.
    data, moves = pop(3), []
    fed = make(recipe=tffed.scaffold(batch_size=5), privacy=dp_sgd(1.0, 100.0))
    fed.fit(data, rounds=1, verbose=0)
    before, start = fed.state, flat(fed.model)
    kept = {cid: fed.store.get(cid) for cid in fed.store}
    for factor in (1.0, 1.0, 1.001):
        fed.state = before
        fed.model.set_weights([np.asarray(w) for w in before.weights.trainable])
        changed = {cid: [factor * leaf for leaf in leaves] for cid, leaves in kept.items()}
        fed.store.rollback(int(before.round))
        fed.store.put_all(int(before.round), changed)
        fed.fit(data, rounds=2, initial_round=1, verbose=0)
        moves.append(flat(fed.model) - start)
    np.testing.assert_array_equal(moves[0], moves[1])
    assert abs(np.corrcoef(moves[0], moves[2])[0, 1]) < 0.95
    assert fed.ledger.rounds == 3  # the first one, and two of three that differ


def test_rounds_that_do_not_follow_each_other_are_entries_of_their_own():
    ledger, here = Ledger(), terms("schedule")
    write(ledger, here, [(0, "a"), (1, "a"), (2, "b"), (1, "b"), (2, "c")])
    found = [(e.first, e.rounds, e.exposure) for e in ledger.entries]
    assert found == [(0, 3, 2), (1, 2, 1)]


def test_cohorts_of_another_run_are_other_cohorts():
    fed, fixed = make(UNIFORM), tffed.mean("uniform", denominator=3)
    for _ in range(2):
        compile_again(fed, gaussian(1.0, 4.0), fixed)
        fed.fit(pop(), rounds=2, sampler=tffed.data.Poisson(0.3), verbose=0)
    found = [(e.terms.scheme, e.rounds, e.run) for e in fed.ledger.entries]
    assert [entry[:2] for entry in found] == [("poisson", 2)] * 2
    assert found[0][2] != found[1][2]
    expected = privacy.epsilon(4.0, 4, DELTA, sampling_rate=0.3)
    assert fed.privacy_report(DELTA).epsilon == pytest.approx(expected, rel=1e-6)


def test_a_ledger_goes_on_from_json_with_all_that_it_knew():
    ledger, leaves = Ledger(), terms(kind="tree", period=4)
    write(ledger, leaves, [(0, "a"), (1, "b")])
    found = json.loads(json.dumps(ledger.to_json()))
    with pytest.raises(ValueError, match="client 'a' in rounds 1 and 3 of a tree"):
        Ledger().resumed(found).check_tree(4, 2, ["c", "a"])
    write(ledger, leaves, [(2, "c")])
    assert ledger.resumed(found) is ledger  # it knows of a round since then

    ledger, busy = Ledger(), terms("schedule")
    write(ledger, busy, [(0, "ab"), (1, "a")])
    found = json.loads(json.dumps(ledger.to_json()))
    other = Ledger()
    write(other, terms(), [(0, "a")])
    again = other.resumed(found)
    write(again, busy, [(2, "a")])
    assert [(e.rounds, e.exposure) for e in again.entries] == [(1, 0), (3, 3)]


def test_noise_on_weights_is_accounted_at_the_servers_rate_of_each_round():
    rates = [0.5, 0.25, 0.25]
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    server = keras.optimizers.SGD(0.5)
    fed = make(tffed.clip(0.5), weight_noise(0.3), UNIFORM, server_optimizer=server)
    fed.fit(pop(), rounds=3, callbacks=[schedule], verbose=0)
    multipliers = [e.terms.mechanism.noise_multiplier for e in fed.ledger.entries]
    np.testing.assert_allclose(multipliers, [0.3 / (rate * 0.5 / 10) for rate in (0.5, 0.25)])
    assert [e.rounds for e in fed.ledger.entries] == [1, 2]


def test_a_journal_keeps_whole_lines_of_rounds_that_a_checkpoint_does_not_hold(tmp_path):
    journal = Journal(tmp_path / "releases.jsonl")
    for number in range(4):
        journal.add({"number": number, "text": "a\nb"})
    assert stat.S_IMODE((tmp_path / "releases.jsonl").stat().st_mode) == 0o600
    journal.drop_before(2)
    with (tmp_path / "releases.jsonl").open("ab") as file:
        file.write(b'{"number": 9, "te')  # killed while it wrote
    assert [(r["number"], r["text"]) for r in journal.read()] == [(2, "a\nb"), (3, "a\nb")]


def test_the_client_that_takes_part_most_often_counts():
    exposure = Exposure()
    for cohort, most in (("ab", 1), ("a", 2), ("b", 2), ("c", 2), ("a", 3), ("bc", 3)):
        exposure.add(cohort)
        assert exposure.most == most
    assert exposure.with_one_more("a") == 4 and exposure.with_one_more("c") == 3


def test_noise_for_examples_hides_no_client_and_the_other_way_round():
    of = {"client": terms(), "example": terms(unit="example", place=CLIENT_STEPS)}
    for unit, other in itertools.permutations(of):
        entries = [Entry(of[unit], 2, 0, 0), Entry(of[other], 1, 0, 0)]
        assert account(releases(entries, unit), DELTA).epsilon == np.inf
        alone = account(releases(entries[:1], unit), DELTA).epsilon
        assert alone == pytest.approx(privacy.epsilon(2.0, 2, DELTA), rel=1e-6)


def test_a_tree_that_goes_on_counts_the_leaves_before():
    dp = pytest.importorskip("dp_accounting")
    entry = Entry(terms(kind="tree", period=8), 1, 0, 0, first=7)  # the eighth leaf of a tree
    found = account(releases([entry], "client"), DELTA, "rdp").epsilon
    relation = dp.NeighboringRelation.REPLACE_SPECIAL
    accountant = dp.rdp.RdpAccountant(neighboring_relation=relation)
    accountant.compose(dp.SingleEpochTreeAggregationDpEvent(2.0, 8))
    assert found == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


def test_too_many_kinds_of_clients_are_bounded_by_the_worst_of_each():
    settings = {"unit": "example", "place": CLIENT_STEPS, "sampled": True}
    several = [
        tuple((steps + k, 0.5 / steps) for steps in range(1, 10)) for k in range(3)
    ]  # 729 combinations
    entries = [Entry(terms("schedule", uses=uses, **settings), 2, 2, 0) for uses in several]
    (found,) = releases(entries, "example")
    assert [(r.rounds, r.sampling.rate) for r in found] == [(18, 0.5), (20, 0.5), (22, 0.5)]


@pytest.mark.parametrize("accountant", ["rdp", "pld", None])
def test_the_worst_of_alternatives_counts_by_each_accountant(accountant):
    # By Rényi divergences the sampled rounds seem to cost more, which they do not.
    full = (Release(4.0, Sampling("full"), 10),)
    sampled = (Release(0.8, Sampling("poisson", rate=0.01), 1000),)
    small = (Release(9.0, Sampling("full"), 10),)
    each = [epsilon(one, DELTA, accountant=accountant) for one in (full, sampled, small)]
    for order in itertools.permutations([full, sampled, small]):
        assert account(order, DELTA, accountant).epsilon == pytest.approx(max(each), rel=1e-3)
    rdp, pld = ([epsilon(r, DELTA, accountant=a) for r in (full, sampled)] for a in ("rdp", "pld"))
    assert rdp[0] < rdp[1] and pld[0] > 1.01 * pld[1]


def test_the_draw_of_a_cohort_hides_no_example():
    # Steps that nobody sees drawn, by clients who are seen to take part: their rounds count.
    data, sampler = pop(4), tffed.data.Uniform(2)
    fed = make(recipe=tffed.fed_avg(batch_size=10), privacy=dp_sgd(1.0, 3.0), seed=3)
    fed.fit(data, rounds=5, sampler=sampler, verbose=0)
    drawn = [sampler.sample(list(data), seed=3, round=number) for number in range(5)]
    most = max(Counter(itertools.chain(*drawn)).values())
    assert 2 < most < 5
    expected = privacy.epsilon(3.0, most, DELTA)
    assert fed.privacy_report(DELTA).epsilon == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_client_that_diverges_sends_noise_like_any_other(bad):
    stage, value = local_gaussian(0.5, 2.0), (tf.fill((300, 100), bad),)
    (sent,), _, _ = stage.encode((), (), value, random.secret())
    assert np.std(sent) == pytest.approx(1.0, rel=5 / np.sqrt(2 * 30_000))


def test_a_budget_holds_where_clients_take_part_by_a_schedule():
    fed = make(local_gaussian(1.0), UNIFORM)
    cyclic = tffed.data.Cyclic(2)
    fed.fit(pop(), rounds=10, sampler=cyclic, privacy=Budget(2.0, DELTA), verbose=0)
    z = fed.ledger.entries[0].terms.mechanism.noise_multiplier
    assert 1.98 < privacy.epsilon(z, 2, DELTA) <= 2.0  # ten rounds are twice round five cohorts


def test_a_budget_holds_where_the_servers_rate_rises():
    # At rate 1 a round has the multiplier 1 / (1 · 1 / 10) = 10, at rate 10 it has 1: ε = 4.38.
    def private(rate, later, rounds=4, **budget):
        server = keras.optimizers.SGD(1.0)
        fed = make(tffed.clip(1.0), weight_noise(1.0), UNIFORM, server_optimizer=server)
        fed.server_optimizer.learning_rate = rate
        rates = keras.callbacks.LearningRateScheduler(lambda k: later if k else rate)
        fed.fit(pop(), rounds=rounds, callbacks=[rates], verbose=0, **budget)
        return fed.privacy_report(DELTA).epsilon

    budget = {"privacy": Budget(1.0, DELTA)}
    with pytest.raises(ValueError, match="rate of 1,.*Received: 10 in round 2.*epsilon=4"):
        private(1.0, 10.0, **budget)
    with pytest.raises(ValueError, match="allows one more round"):
        private(10.0, 10.0, **budget)  # set before the fit that plans
    with pytest.raises(ValueError, match="positive and finite. Received: learning_rate=0.0"):
        private(0.0, 0.0)
    found = private(1.0, 1.2, **budget)  # dearer than was planned, and within the budget
    expected = np.hypot(1.0, np.sqrt(3) * 1.2) / 10
    assert found == pytest.approx(privacy.audit.gaussian_epsilon(expected, DELTA), rel=1e-3)


def test_every_mutation_changes_one_place():
    from tests.privacy import mutants

    for mutation in mutants.MUTATIONS:
        mutants.check(mutation)
    assert len(mutants.MUTATIONS) >= 100
