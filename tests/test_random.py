"""Random streams: pure functions of (seed, round, client id, step)."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tffed import random

KEY = tf.constant(random.client_key("anna"))


def values(seeds):
    return {tuple(np.asarray(s).tolist()) for s in seeds}


@pytest.mark.parametrize("value", [-1, 2**62, 1.0, True, "1", None])
def test_seed_refuses(value):
    with pytest.raises(ValueError, match="`seed` must be an integer.*Received: seed="):
        random.seed(value)


def test_seeds_differ():
    numbers = [0, 1, 2**31 - 1, 2**31, 2**40, 2**62 - 1]
    assert len(values(random.seed(n) for n in numbers)) == len(numbers)


def test_client_keys_tell_ids_apart():
    ids = [0, 1, -1, 10, "0", "1", "10", "anna", "Anna", ""]
    assert len(values(random.client_key(i) for i in ids)) == len(ids)
    np.testing.assert_array_equal(random.client_key(np.int32(10)), random.client_key(10))
    np.testing.assert_array_equal(random.client_key(np.str_("anna")), random.client_key("anna"))


def test_client_keys_are_the_same_in_every_process():
    code = "from tffed import random; print(random.client_key('anna').tolist())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(random.client_key("anna").tolist())


def test_streams_are_apart():
    clients = [
        random.client_seed(random.seed(s), r, tf.constant(random.client_key(i)))
        for s in (1, 2)
        for r in (0, 1)
        for i in (0, "0")
    ]
    assert len(values(clients)) == 8
    one = clients[0]
    streams = [
        draw(one, k)
        for draw in (random.model_seed, random.shuffle_seed, random.stage_seed)
        for k in range(4)
    ]
    assert len(values([one, *streams])) == 13


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_streams_are_those_of_eager_execution(jit_compile):
    rows = tf.range(100, 150)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def draw(seed, key, step):
        seed = random.client_seed(seed, step, key)
        return random.model_seed(seed, step), random.shuffle(rows, random.shuffle_seed(seed, step))

    for step in (0, 3):
        got = draw(random.seed(9), KEY, tf.constant(step))
        expected = draw.python_function(random.seed(9), KEY, tf.constant(step))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_shuffle_is_a_fair_permutation():
    seeds = [random.fold_in(random.seed(3), k) for k in range(400)]
    orders = np.array([random.shuffle(tf.range(4), s) for s in seeds])
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    # Each value at each place about 100 times; five standard deviations are 43.
    counts = np.array([[np.sum(orders[:, place] == v) for v in range(4)] for place in range(4)])
    assert np.abs(counts - 100).max() < 43
    assert len({tuple(o) for o in orders.tolist()}) == 24


@pytest.mark.parametrize("padded", [40, 700, 3000])
def test_padding_does_not_change_the_order_of_what_counts(padded):
    shuffle = tf.function(random.shuffle, autograph=False, jit_compile=True)
    values, seed = tf.range(5, 5 + padded), random.seed(6)
    for count in {1, 32, 33, min(padded, 600), padded}:
        got = shuffle(values, seed, tf.constant(count)).numpy()
        np.testing.assert_array_equal(got[:count], random.shuffle(values[:count], seed))
        np.testing.assert_array_equal(np.sort(got), values)


def test_secret_seeds_are_128_bits_of_the_operating_system():
    found = [random.secret() for _ in range(50)]
    assert {s.dtype for s in found} == {tf.int64} and len(values(found)) == 50
    ones = np.unpackbits(np.array([s.numpy() for s in found]).view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.5 / np.sqrt(50 * 128) * 5  # fails by chance once in 2 million
    np.testing.assert_array_equal(random.secret(7), random.secret(7))


def test_secret_seeds_keep_128_bits_and_do_not_follow_from_a_global_seed():
    secret = tf.constant([2**60 + 7, -3], tf.int64)
    children = [random.fold_in(secret, n) for n in range(2000)]
    children += [random.fold_in(children[0], n) for n in range(2000)]
    children += [random.fold_in(secret + tf.constant([1, 0], tf.int64), n) for n in range(2000)]
    assert {c.dtype for c in children} == {tf.int64} and len(values(children)) == 6000
    for half in (0, 1):  # each half alone tells them apart: neither is a counter or constant
        assert len({int(c[half]) for c in children}) == 6000
    tf.random.set_seed(1)
    compiled = tf.function(random.fold_in, jit_compile=True)
    np.testing.assert_array_equal(compiled(secret, 5), children[5])


def test_the_noise_of_clients_steps_rounds_and_the_server_is_all_different():
    secret, found = random.secret(), []
    for number in range(3):
        clients, server = random.round_noise(secret, tf.constant(number))
        found += [clients, server]
        for cid in ("anna", "ben"):
            public = random.client_seed(random.seed(1), number, tf.constant(random.client_key(cid)))
            mine = random.client_noise(clients, public)
            found += [random.noise_seed(mine, step) for step in range(3)]
            found += [random.stage_seed(mine, index) for index in range(3)]
    assert len(values(found)) == len(found) == 3 * (2 + 2 * 6)
    assert random.round_noise((), 0) == ((), ())
    assert random.noise_seed(random.client_noise((), public), 0) == ()
