"""Compression beside noise: which orders are refused, and that what noise hides stays bounded."""

import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.helpers import arrays, needs_tf_privacy
from tests.privacy.stage_rounds import SECRET, SMALL, updates
from tests.shell import compiled, population
from tffed import tree
from tffed.privacy import gaussian, local_gaussian, weight_noise

pytestmark = needs_tf_privacy

UNIFORM = tffed.mean("uniform")
STAGES = {
    "quantize": lambda: [tffed.quantize(4)],
    "qsgd": lambda: [tffed.quantize(3, scale="l2")],
    "top_k": lambda: [tffed.top_k(0.5), tffed.quantize(8)],
    "random_k": lambda: [tffed.random_k(0.5)],
    "eden": lambda: [tffed.eden(1)],
    "sign": lambda: [tffed.sign()],
    "feedback": lambda: [tffed.error_feedback(tffed.top_k(0.5))],
}
CLIP = 0.5


@pytest.mark.parametrize("name", STAGES)
def test_after_the_noise_any_compression_may_come(name):
    for noise in (gaussian(CLIP, 1.0), local_gaussian(CLIP, 1.0)):
        assert tffed.chain(noise, *STAGES[name](), UNIFORM).mechanisms == (noise.mechanism,)


@pytest.mark.parametrize("name", ["top_k", "random_k", "feedback"])
def test_before_the_noise_none_may(name):
    first = STAGES[name]()[0]
    with pytest.raises(ValueError, match="before noise. Put it after"):
        tffed.chain(first, gaussian(CLIP, 1.0), UNIFORM)
    with pytest.raises(ValueError, match="has no noise on it"):
        tffed.chain(first, local_gaussian(CLIP, 1.0), UNIFORM)


def test_codes_cannot_be_noised():
    for noise in (gaussian(CLIP, 1.0), local_gaussian(CLIP, 1.0)):
        with pytest.raises(ValueError, match="sends codes"):
            tffed.chain(tffed.quantize(8), noise, UNIFORM)


def test_noise_on_the_weights_needs_a_bound_that_is_kept():
    noise = weight_noise(0.1)
    kept = tffed.chain(tffed.clip(CLIP), tffed.rotate(), tffed.top_k(0.5), noise, UNIFORM)
    assert kept.bound == CLIP
    for stage in (tffed.quantize(8), tffed.random_k(0.5), tffed.eden(1)):
        with pytest.raises(ValueError, match="without a bound"):
            tffed.chain(tffed.clip(CLIP), stage, noise, UNIFORM)


@pytest.mark.parametrize("name", STAGES)
def test_what_enters_the_noised_sum_is_within_the_clip(name):
    """Rounding lengthens updates, and a client may send anything: the server clips again."""
    aggregator = tffed.chain(gaussian(CLIP, 0.0), *STAGES[name](), UNIFORM)
    state = aggregator.init(SMALL)
    shared, own = aggregator.shared(state), aggregator.client_init(SMALL)
    for update in updates([0.1, CLIP, 5.0, 1e6]):
        encoded, own = aggregator.encode(shared, own, update, tf.constant(3.0), SECRET)
        longer = tree.map(lambda x: 1e3 * x if x.dtype.is_floating else x, encoded.payload)
        for payload in (encoded.payload, longer):
            found = aggregator.report(shared, encoded._replace(payload=payload), SMALL)
            norm = np.sqrt(sum(np.sum(np.square(a)) for a in arrays(found.total)))
            assert norm <= CLIP * (1 + 1e-5)


def test_seeds_that_travel_are_not_the_secret_ones():
    aggregator = tffed.chain(local_gaussian(CLIP, 1.0), tffed.rotate(), UNIFORM)
    own = aggregator.client_init(SMALL)
    encoded, _ = aggregator.encode(((), ()), own, SMALL, tf.constant(1.0), SECRET)
    seed = encoded.payload.side[1]["seed"]
    assert seed.dtype == tf.int32
    secret = tffed.random.stage_seed(SECRET, 1)
    assert not np.array_equal(seed.numpy(), tf.cast(secret, tf.int32).numpy())


def test_the_ledger_is_that_of_the_run_without_compression():
    reports = []
    for stages in ([], [tffed.quantize(8)]):
        noise = gaussian(CLIP, 2.0)
        fed = compiled(aggregator=tffed.chain(noise, *stages, tffed.mean("uniform", denominator=3)))
        history = fed.fit(population(), rounds=3, sampler=tffed.data.Poisson(0.5), verbose=0)
        sent, asked = (sum(history.history[name]) for name in ("bytes_up", "clients"))
        reports.append((fed.privacy_report(1e-5).epsilon, sent / asked))
    (plain, bytes_plain), (compressed, bytes_compressed) = reports
    assert plain == compressed and bytes_plain > bytes_compressed
