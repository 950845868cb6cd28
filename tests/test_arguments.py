"""NumPy's numbers, and arrays and tensors of rank 0, are taken wherever Python's are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.shell import LOSS, classifier, compiled, population, weights
from tffed import data, privacy
from tffed.arguments import fraction, integer, not_negative, positive, positive_integer, real

KINDS = {
    "numpy": (np.int64, np.float64),
    "small": (np.uint8, np.float16),
    "rank 0": (lambda n: np.array(n), lambda f: np.array(f)),
    "tensor": (tf.constant, lambda f: tf.constant(f, tf.float64)),
}
# Numbers that float16 holds, so that every kind means the same.
RECIPES = {
    "fed_avg": lambda i, f: tffed.fed_avg(i(2), batch_size=i(5)),
    "steps": lambda i, f: tffed.fed_avg(local_steps=i(3)),
    "adaptive": lambda i, f: tffed.fed_avg(
        local_steps=tffed.adaptive_steps(i(9), least=i(2), most=i(9), every=i(2), decay=f(0.5))
    ),
    "fed_prox": lambda i, f: tffed.fed_prox(f(0.5), batch_size=i(5)),
    "fed_prox of an integer": lambda i, f: tffed.fed_prox(i(1)),
    "fed_sgd": lambda i, f: tffed.fed_sgd(batch_size=i(5)),
    "fed_opt": lambda i, f: tffed.fed_opt(local_steps=i(5)),
    "scaffold": lambda i, f: tffed.scaffold(local_steps=i(5), batch_size=i(2)),
}
PARTS = {
    "quantize": lambda i, f: tffed.quantize(i(8), block=i(64)),
    "ternary": lambda i, f: tffed.compression.ternary(f(2.5)),
    "eden": lambda i, f: tffed.compression.eden(i(2), block=i(64)),
    "drive": lambda i, f: tffed.compression.drive(block=i(64)),
    "rotate": lambda i, f: tffed.compression.rotate(i(64)),
    "top_k": lambda i, f: tffed.compression.top_k(i(3)),
    "top_k, a share": lambda i, f: tffed.compression.top_k(f(0.25), per_tensor=True),
    "random_k": lambda i, f: tffed.compression.random_k(i(3)),
    "random_k, a share": lambda i, f: tffed.compression.random_k(f(0.25), unbiased=False),
    "threshold": lambda i, f: tffed.compression.threshold(f(0.5)),
    "power_sgd": lambda i, f: tffed.compression.power_sgd(i(2), min_size=i(8)),
    "lazy": lambda i, f: tffed.compression.lazy(f(0.5)),
    "error_feedback": lambda i, f: tffed.compression.error_feedback(
        tffed.compression.top_k(i(3)), decay=f(0.5)
    ),
    "prune": lambda i, f: tffed.compression.prune(
        f(0.5), begin=i(0), end=i(4), every=i(2), power=i(3), initial_sparsity=f(0.25)
    ),
    "clip": lambda i, f: tffed.clip(f(0.5)),
    "clip of an integer": lambda i, f: tffed.clip(i(1)),
    "adaptive_clip": lambda i, f: tffed.adaptive_clip(f(0.5), f(0.25), f(0.25)),
    "mean": lambda i, f: tffed.mean(max_weight=i(3), denominator=f(2.5)),
}
OTHERS = {
    "Uniform": lambda i, f: data.Uniform(i(2)),
    "Cyclic": lambda i, f: data.Cyclic(i(2)),
    "Poisson": lambda i, f: data.Poisson(f(0.5)),
    "Dirichlet": lambda i, f: data.Dirichlet(f(0.5), min_size=i(2), bins=i(4)),
    "Shards": lambda i, f: data.Shards(i(3), bins=i(4)),
    "LogNormalQuantity": lambda i, f: data.LogNormalQuantity(f(0.5)),
    "PowerLawQuantity": lambda i, f: data.PowerLawQuantity(f(1.0)),
    "FeatureSkew": lambda i, f: data.FeatureSkew(f(0.5)),
    "Budget": lambda i, f: privacy.Budget(f(8.0), f(0.25)),
    "dp_sgd": lambda i, f: privacy.dp_sgd(f(0.5), f(1.0), microbatches=i(2)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES)
def test_algorithms_take_numbers_of_all_kinds(make, kind):
    assert make(*KINDS[kind]).config == make(int, float).config


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
def test_parts_of_an_aggregator_take_numbers_of_all_kinds(make, kind):
    assert make(*KINDS[kind]).name == make(int, float).name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_samplers_schemes_and_budgets_take_numbers_of_all_kinds(make, kind):
    assert repr(make(*KINDS[kind])) == repr(make(int, float))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_such_numbers_has_the_same_bits(kind, tmp_path):
    i, f = KINDS[kind]

    def run(i, f, **arguments):
        fed = tffed.Federated(classifier(), tffed.fed_avg(batch_size=i(8)), seed=i(3))
        parts = tffed.clip(f(0.5)), tffed.quantize(i(8)), tffed.mean()
        fed.compile(
            keras.optimizers.SGD(0.25), loss=LOSS, aggregator=tffed.chain(*parts), lanes=i(1)
        )
        fed.fit(population(), checkpoint_dir=tmp_path, verbose=0, **arguments)
        return fed

    first = run(int, float, rounds=1, clients_per_round=3)
    same = run(i, f, rounds=i(1), clients_per_round=i(3), checkpoint_freq=i(1))  # is resumed
    for a, b in zip(weights(first), weights(same), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("share", [0.5, np.float32(0.5), np.array(0.5), tf.constant(0.5)])
def test_fit_takes_counts_and_shares_of_all_kinds(share):
    fed = compiled()
    history = fed.fit(
        population(),
        rounds=np.int64(3),
        initial_round=np.array(1),
        client_fraction=share,
        validation_freq=tf.constant(1),
        verbose=0,
    )
    assert history.epoch == [1, 2] and history.history["clients"] == [3.0, 3.0]


def test_partitions_and_samplers_draw_the_same_with_numbers_of_all_kinds():
    x, y = np.arange(40.0)[:, None], np.arange(40) % 4
    expected = data.partition(x, y, clients=4, scheme=data.IID(), seed=5)
    found = data.partition(
        x, y, clients=np.array(4), scheme=data.IID(), seed=tf.constant(5, tf.int64)
    )
    for cid in range(4):
        np.testing.assert_array_equal(found[cid][0], expected[cid][0])
    drawn = data.Uniform(np.uint8(3)).sample(np.int64(100), seed=np.array(5), round=np.int32(2))
    assert drawn == data.Uniform(3).sample(100, seed=5, round=2)


def test_what_privacy_costs_is_the_same_with_numbers_of_all_kinds():
    pytest.importorskip("dp_accounting")
    expected = privacy.epsilon(2.0, 8, 0.25, sampling_rate=0.5)
    found = privacy.epsilon(
        np.array(2.0), np.int64(8), np.float32(0.25), sampling_rate=np.array(0.5)
    )
    assert found == expected


@pytest.mark.parametrize("value", [True, np.True_, np.array(True), "1", None, 1j, np.array([1])])
def test_what_is_no_number_is_none(value):
    assert integer(value) is None and np.isnan(real(value))
    for check in (positive, not_negative, positive_integer, fraction):
        with pytest.raises(ValueError, match="`n` must be .*Received: n="):
            check("n", value)


@pytest.mark.parametrize("value", [np.float64(2.5), np.array(2.0), np.nan, tf.constant(2.0)])
def test_a_fraction_is_no_integer(value):
    assert integer(value) is None
