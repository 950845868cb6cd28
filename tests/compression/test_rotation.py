"""The random rotation, DRIVE and EDEN against their papers' formulas."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compression.passing import encoded, flat, often, through, values
from tests.helpers import assert_close
from tffed import random, tree
from tffed.aggregation import chain, mean
from tffed.compression import drive, eden, quantize, rotate, ternary
from tffed.compression.drive import lloyd_max
from tffed.compression.rotation import rotated
from tffed.wire import Format

SEED = random.seed(3)
# Max (1960): the mean squared error of the best 2, 4, 8 and 16 numbers.
DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
CNN = (5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)


@pytest.mark.parametrize("d", [2, 8, 64])
def test_the_rotation_is_a_hadamard_matrix_with_random_signs(d):
    # Each row of the identity is a block, but all blocks have signs of their own.
    rows = [rotated(tf.constant([[float(i == k) for i in range(d)]]), SEED)[0] for k in range(d)]
    matrix = np.stack(rows)
    np.testing.assert_allclose(np.abs(matrix), 1 / np.sqrt(d), rtol=1e-6)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(d), atol=1e-6)


def test_every_entry_has_a_sign_of_its_own():
    blocks = rotated(tf.ones([64, 32]), SEED).numpy()
    assert len({row.tobytes() for row in blocks}) == 64
    other = rotated(tf.ones([64, 32]), random.seed(4)).numpy()
    assert not np.allclose(blocks, other)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=4),
    st.integers(1, 10),
    st.integers(0, 99),
)
def test_lengths_stay_and_the_way_back_is_exact(shapes, power, seed):
    value, stage = values(shapes, seed=seed, scales=(1.0,)), rotate(2**power)
    sent = encoded([stage], value, SEED).payload
    spec = stage.passes(tree.spec(value))
    assert sent.value.shape == spec.shape and sent.value.dtype == spec.dtype
    norm = np.linalg.norm(flat(value))
    assert np.linalg.norm(flat(sent.value)) == pytest.approx(norm, rel=1e-6)
    assert_close(through([stage], value, SEED), value, 1e-6)
    assert stage.bound(2.0) == 2.0


def test_rotation_makes_few_bits_do_for_uneven_updates():
    x = np.zeros(4096, np.float32)
    x[:40] = np.random.default_rng(0).normal(size=40)
    value = (tf.constant(x),)

    def error(*stages):
        return np.square(often(stages, value, 20) - x).sum(1).mean() / np.square(x).sum()

    # The range of normal entries is 2 √(2 ln d) times their size; that of x is theirs before.
    assert error(rotate(), quantize(2, block=4096)) < error(quantize(2)) / 10


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_the_numbers_are_lloyds_and_maxs(bits):
    c = lloyd_max(bits)
    bounds = [-np.inf, *(c[1:] + c[:-1]) / 2, np.inf]
    means = [
        scipy.stats.norm.expect(lambda z: z, lb=a, ub=b, conditional=True)
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]
    np.testing.assert_allclose(c, means, atol=1e-8)
    np.testing.assert_array_equal(c, -c[::-1])
    if bits in DISTORTION:
        assert distortion(bits) == pytest.approx(DISTORTION[bits], rel=1e-3)


def distortion(bits):
    """E (z - Q(z))² of a standard normal z, integrated."""
    c = lloyd_max(bits)
    z = np.linspace(-9, 9, 200_001)
    nearest = c[np.searchsorted((c[1:] + c[:-1]) / 2, z)]
    return scipy.integrate.simpson((z - nearest) ** 2 * scipy.stats.norm.pdf(z), x=z)


def uneven(d, seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=d) * rng.lognormal(0, 1, size=d), tf.float32)


@pytest.mark.parametrize("scale", ["unbiased", "min_error"])
@pytest.mark.parametrize("bits", ["drive", 1, 2, 3, 4, 8])
def test_the_error_is_that_of_the_theory(bits, scale):
    d, times = 2**14, 24
    stage = drive(scale, d) if bits == "drive" else eden(bits, scale, d)
    least = distortion(1 if bits == "drive" else bits)
    expected = least if scale == "min_error" else least / (1 - least)
    x = uneven(d)
    errors = np.square(often([stage], (x,), times) - x.numpy()).sum(1) / np.square(x).sum()
    # 6 standard errors: 1e-7 over all cases (Student's t of 23); 3 / d for what vanishes with d.
    assert abs(errors.mean() - expected) < 9 * errors.std() / np.sqrt(times) + 3 * expected / d**0.5
    if bits == "drive":
        theory = np.pi / 2 - 1 if scale == "unbiased" else 1 - 2 / np.pi
        assert expected == pytest.approx(theory, rel=1e-4)
        assert errors.mean() == pytest.approx(theory, rel=0.02)


@pytest.mark.parametrize("stage", [drive(block=2048), eden(2, block=2048)], ids=lambda s: s.name)
def test_the_unbiased_scale_has_no_bias(stage):
    value, times = (uneven(3000), uneven(1096, 1)), 400
    x = flat(value)
    found = often([stage], value, times)
    # Along each block exactly: ⟨x̂, x⟩ = ‖x‖².
    for block in np.split(np.arange(4096), 2):
        products = found[:, block] @ x[block]
        np.testing.assert_allclose(products, np.square(x[block]).sum(), rtol=1e-4)
    error = np.square(found - x).sum(1).mean()
    left = np.square(found.mean(0) - x).sum() * times / error
    # Without bias ~ χ²(d) / d: further off than 6 standard deviations of it in 2e-9 of the runs.
    assert abs(left - 1) < 6 * np.sqrt(2 / 4096)


SMALL = [drive(), eden(3, "min_error"), quantize(4, scale="l2"), ternary(2.5)]
UNEVEN = {
    "two": [1.0, 0.5],
    "four": [1.0, 0.5, 0.25, 0.125],
    "equal": [1.0, 1.0],
    "1 / i": 1 / np.arange(1, 1025),
    "1 / i ** 1.5": np.arange(1, 1025) ** -1.5,
}


@pytest.mark.parametrize("bits", [1, 2])
def test_neither_bias_nor_error_depends_on_how_uneven_an_update_is(bits):
    d, times = 1024, 300
    error = distortion(bits) / (1 - distortion(bits))
    for name, entries in UNEVEN.items():
        x = np.zeros(d)
        x[: len(entries)] = entries
        found, square = often([eden(bits)], (tf.constant(x, tf.float32),), times), np.sum(x**2)
        errors = np.square(found - x).sum(1) / square
        assert errors.mean() == pytest.approx(error, rel=0.03), name
        # The mean of the draws is as far off as that of independent errors, to 15 %: 3 standard
        # deviations of χ²(d) / d. One rotation leaves 4 to 900 times as much.
        left = np.square(found.mean(0) - x).sum() / square * times / error
        assert left < 1.2, name
    least = often([eden(bits, "min_error")], (tf.constant(x, tf.float32),), 50)
    assert np.square(least - x).sum(1).mean() / square == pytest.approx(distortion(bits), rel=0.03)


@pytest.mark.parametrize("stage", SMALL, ids=lambda stage: stage.name)
@pytest.mark.parametrize("size", [1e-20, 1e-33])
def test_what_is_small_is_not_lost(stage, size):
    """Though the squares of its entries are zero in float32."""
    value = values([(50, 2)])
    expected, found = flat(through([stage], value, SEED)), tree.map(lambda v: v * size, value)
    np.testing.assert_allclose(flat(through([stage], found, SEED)) / size, expected, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 8), st.integers(0, 99))
def test_the_least_error_never_lengthens(bits, seed):
    value = (uneven(300, seed),)
    stage = eden(bits, "min_error", 64)
    found = flat(through([stage], value, SEED))
    assert np.linalg.norm(found) <= np.linalg.norm(flat(value)) * (1 + 1e-5)
    assert stage.bound(2.0) == 2.0 and eden(bits).bound(2.0) is None


@pytest.mark.parametrize("stage", [rotate(8), eden(5)], ids=lambda s: s.name)
@pytest.mark.parametrize("jit", [False, True])
def test_extremes(stage, jit):
    run = tf.function(lambda v: through([stage], v, SEED), jit_compile=jit, autograph=False)
    value = values()
    assert_close(run(tree.zeros_like(value)), tree.zeros_like(value), 0)
    for bad in (float("nan"), float("inf"), 1e30 if stage.name != "rotate(8)" else -float("inf")):
        x = value[1].numpy()
        x[1, 2] = bad
        assert not bool(tree.all_finite(run((value[0], tf.constant(x), value[2]))))
    assert bool(tree.all_finite(run(tree.scale(value, 1e-25))))


def test_graph_and_xla_agree():
    value = values([(300, 70), (41,)])  # large enough to be compiled inside a graph
    one, other = (
        tf.function(lambda v: through([eden(3)], v, SEED), jit_compile=jit)(value)
        for jit in (False, True)
    )
    apart = np.square(flat(one) - flat(other)).sum() / np.square(flat(value)).sum()
    assert apart < 1e-5  # an entry between two numbers may round to the other


def sent(*stages, shapes=CNN):
    """Bytes of a message with an update of such shapes."""
    specs = tuple(tf.TensorSpec(shape, tf.float32) for shape in shapes)
    aggregator = chain(*stages, mean())
    traced = tf.function(lambda v: encoded(stages, v, SEED), autograph=False)
    message = tree.spec(traced.get_concrete_function(specs).structured_outputs)
    return Format("update", message, aggregator.codecs(message)).fixed


def test_a_bit_is_a_bit():
    size, overhead = 1_663_370, 32 + 4 + 8  # the header, the weight, the rotation's seed
    floats = 4 * size
    for stage in (drive(), eden(1)):
        assert floats / 31.9 < sent(stage) < floats / 31
    assert sent(drive()) <= 407 * (4096 // 8 + 4) + overhead
    assert sent(eden(4)) <= 407 * (4096 // 2 + 4) + overhead
    assert floats / 3.999 > sent(quantize(8)) >= size + 8 * len(CNN)
    assert sent(rotate(), quantize(2, block=4096)) <= 407 * (1024 + 8) + overhead


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: rotate(3000), "`block` must be a power of two"),
        (lambda: rotate(1), "`block` must be a power of two"),
        (lambda: drive(block=2**17), "`block` must be a power of two"),
        (lambda: drive("least"), "`scale` must be one of"),
        (lambda: eden(9), "`bits` must be 1 to 8"),
        (lambda: eden(0), "`bits` must be a positive integer"),
        (lambda: chain(drive(), quantize(4), mean()), "sends codes"),
    ],
)
def test_refuses(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "Received: " in str(error.value)


def test_a_stage_after_the_rotation_sees_all_blocks():
    value = values()
    assert rotate(16).passes(tree.spec(value)).shape == (3, 16)
