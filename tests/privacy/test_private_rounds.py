"""Whole rounds with private stages: hostile clients, noise in the weights, other processes."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import tffed
from tests.helpers import needs_tf_privacy, softmax_gradient
from tests.shell import LOSS, classifier
from tffed import chain, clip, mean
from tffed.privacy.stages import (
    adaptive_gaussian,
    gaussian,
    local_gaussian,
    tree_gaussian,
    weight_noise,
)

pytestmark = needs_tf_privacy
ROOT = Path(__file__).parent.parent.parent
RATE = 0.5


def federation(clients=6, scale=1.0):
    rng = np.random.default_rng(3)
    return {
        k: (scale * rng.normal(size=(8, 4)).astype(np.float32), rng.integers(0, 2, 8))
        for k in range(clients)
    }


def trained(parts, data, *, model=None, rounds=1, rate=RATE, jit=True, **fit):
    """A `Federated` after some rounds, its history, and its weights before them."""
    fed = tffed.Federated(model or classifier(), tffed.fed_avg(batch_size=8), seed=3)
    fed.compile(keras.optimizers.SGD(rate), loss=LOSS, aggregator=chain(*parts), jit_compile=jit)
    before = [w.astype(np.float64) for w in fed.model.get_weights()]
    return fed, fed.fit(data, rounds=rounds, verbose=0, **fit).history, before


def hostile():
    """Six clients: the updates of 1 to 3 are not finite, or their norms overflow; 4's is huge."""
    data = federation()
    for k, bad in ((1, 5e37), (2, 1e30), (3, 1e25), (4, 1e12)):
        data[k] = (data[k][0] * np.float32(bad), data[k][1])
    return data


@pytest.mark.parametrize(
    "stage, jit",
    [
        (lambda c: gaussian(c, 0), True),
        (lambda c: tree_gaussian(c, 0, period=2), False),
        (lambda c: adaptive_gaussian(c, 0, count_stddev=0, expected_clients=6), False),
    ],
    ids=["gaussian", "tree", "adaptive"],
)
def test_hostile_clients_count_as_zero_or_bounded_and_in_the_denominator(stage, jit):
    bound = 0.1
    data = hostile()
    fed, history, before = trained([stage(bound), mean("uniform")], data, jit=jit)
    total = np.array([np.zeros_like(w) for w in before] + [None], object)[:-1]
    for k in (0, 4, 5):
        update = -RATE * softmax_gradient(before, data[k][0].astype(np.float64), data[k][1])
        norm = np.sqrt(sum(np.square(a).sum() for a in update))
        assert norm > bound  # all are clipped
        total = total + update * (bound / norm)
    for w, w0, moved in zip(fed.model.get_weights(), before, total, strict=True):
        np.testing.assert_allclose(w, w0 + moved / 6, atol=1e-6)
    assert history["dropped"] == [3]
    assert history.get("clip_norm", [bound]) == [pytest.approx(bound)]


def wide(units=10_000):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])


def changes(fed, history, before):
    after = fed.model.get_weights()
    return np.concatenate([(a - b).ravel() for a, b in zip(after, before, strict=True)])


@pytest.mark.parametrize(
    "parts, stddev",
    [
        (lambda: [local_gaussian(0.5, 2.0), mean("uniform")], 0.5 * 2.0 / np.sqrt(3)),
        (lambda: [gaussian(0.5, 2.0), mean("examples", max_weight=9, denominator=5)], 0.2),
        (lambda: [clip(0.5), weight_noise(0.25), mean("uniform")], 0.25),
    ],
    ids=["local", "sum", "weights"],
)
def test_noise_arrives_in_the_weights(parts, stddev):
    # 50,000 weights and updates of nearly nothing: the stddev within 5 of its standard errors,
    # wrong for one run in a million. Two rounds: the noise of both adds up, so they differ.
    data = federation(3)
    jit = chain(*parts()).mechanisms[0].place == "client update"
    noise = changes(*trained(parts(), data, model=wide(), rate=1e-9, rounds=2, jit=jit))
    assert np.std(noise) == pytest.approx(np.sqrt(2) * stddev, rel=5 / np.sqrt(2 * noise.size))
    assert abs(np.mean(noise)) < 5 * np.sqrt(2) * stddev / np.sqrt(noise.size)


def test_hostile_clients_send_bounded_updates_with_local_noise():
    moved = changes(*trained([local_gaussian(0.1, 0), mean("uniform")], hostile(), jit=False))
    assert 0 < np.linalg.norm(moved) <= 0.1


def test_a_tree_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    parts = [tree_gaussian(0.5, 1.0, period=3), mean("uniform")]
    data, how = federation(3), {"jit": False, "sampler": tffed.data.Cyclic(1)}
    fed, _, _ = trained(parts, data, rounds=2, checkpoint_dir=tmp_path, **how)
    fed.fit(data, rounds=5, initial_round=2, verbose=0, sampler=how["sampler"])
    again, _, _ = trained(parts, data, rounds=5, checkpoint_dir=tmp_path, **how)
    fresh, _, _ = trained(parts, data, rounds=5, **how)
    for a, b, c in zip(*(f.model.get_weights() for f in (fed, again, fresh)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).min() > 0  # another run has another secret


NOISE_OF_A_PROCESS = """
import keras, numpy as np, tensorflow as tf, tffed
from tffed import random
from tffed.privacy.stages import gaussian, local_gaussian
zeros = (tf.zeros(4),)
for seeded in (True, False):
    if seeded:
        keras.utils.set_random_seed(5)
        tf.random.set_seed(5)
    for jit in (True, False):
        parts = local_gaussian(1.0, 1.0).encode, gaussian(1.0, 1.0).finish
        encode, finish = (tf.function(f, autograph=False, jit_compile=jit) for f in parts)
        secret = random.secret()
        print(*encode((), (), zeros, secret)[0][0].numpy())
        print(*finish((), zeros, {}, tf.constant(1.0), random.fold_in(secret, 1))[0][0].numpy())

keras.utils.set_random_seed(5)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_initializer="zeros")])
fed = tffed.Federated(model, tffed.fed_avg(batch_size=4), seed=1)
aggregator = tffed.chain(gaussian(1.0, 1.0), tffed.mean("uniform"))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
fed.compile(keras.optimizers.SGD(1e-9), loss=loss, aggregator=aggregator, jit_compile=False)
data = {0: (np.ones((4, 2), "f"), np.zeros(4, int))}
for rounds in (1, 2):
    fed.fit(data, rounds=rounds, initial_round=rounds - 1, verbose=0)
    print(*model.get_weights()[0].ravel())
"""


def test_no_two_processes_runs_or_rounds_have_the_same_noise():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", NOISE_OF_A_PROCESS]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [process.communicate(timeout=200)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len(lines[0]) == len(lines[1]) == 10
    numbers = [float(x) for line in lines[0] + lines[1] for x in line.split()]
    assert len(set(numbers)) == len(numbers) == 80 and np.std(numbers) > 0.5
