"""Random streams that are pure functions of (seed, round, client id, step).

A seed is an int32 tensor of shape (2,), a secret one (noise that protects someone comes from it) an
int64 tensor of that shape. Only integers are drawn, with a named generator: floats of TensorFlow's
stateless generators differ with and without XLA, integers do not.
"""

import functools
import hashlib
import math
import os

import numpy as np
import tensorflow as tf

from tffed.arguments import integer

_ALGORITHM = "philox"
_WORTH_COMPILING = 20_000
_SORTED_AT_ONCE = (32, 128, 512, 2048)
_MODEL_STREAM, _SHUFFLE_STREAM, _STAGE_STREAM, _NOISE_STREAM, _SAMPLE_STREAM = range(5)
_PART_STREAM = 5
_RUN_STREAM = 10  # of NumPy's, in which samplers and partitioners have others
_TO_CLIENTS, _TO_SERVER = range(2)
# Shifts and odd factors of MurmurHash3's last step; the factor 1 ends it.
_MIXING = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))
# sin(πv/2)/v and cos(πv/2) by powers of v² for |v| <= 1, to 1e-8 and 3e-10.
_SINE = (1.570796320, -0.645963760, 0.0796899224, -0.00467415030, 0.000151674905)
_COSINE = (1.0, -1.233700534, 0.253669322, -0.0208626875, 0.000917723819, -0.0000238245075)


def seed(value):
    """The seed tensor of an integer in [0, 2**62).

    Raises:
        ValueError: `value` is no integer in that range.
    """
    number = integer(value)
    if number is None or not 0 <= number < 2**62:
        raise ValueError(
            f"`seed` must be an integer in [0, 2**62), so that a run can be repeated. "
            f"Received: seed={value!r}"
        )
    return tf.constant([number >> 31, number & 0x7FFFFFFF], tf.int32)


def of_run(value, run):
    """The integer seed of run number `run` from one seed; that of the first is the seed itself."""
    if not run:
        return value
    words = np.random.SeedSequence(value, spawn_key=(_RUN_STREAM, run)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(2))


def secret(value=None):
    """A secret seed of 128 bits of the operating system's entropy.

    Or of an integer in [0, 2**62), for experiments that must be repeated: such a one is `known`.
    """
    if value is not None:
        return tf.cast(seed(value), tf.int64)
    while known(drawn := np.frombuffer(os.urandom(16), np.int64)):
        pass  # one in 2**66
    return tf.constant(drawn)


def known(secret):
    """Whether a secret seed is of an integer that somebody gave, so that it protects nobody."""
    return bool(np.all(np.asarray(secret) >> 31 == 0))


def bound(secret, *things):
    """A secret seed that only these things lead to: keyed BLAKE2b of their bytes.

    Args:
        secret: A secret seed.
        *things: Nests of tensors, arrays, text and bytes.
    """
    digest = hashlib.blake2b(digest_size=16, key=secret.numpy().tobytes())
    for leaf in tf.nest.flatten(things):
        array = np.asarray(leaf)
        if array.dtype.hasobject:
            content = repr(array.tolist()).encode()
        else:
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        digest.update(f"{array.dtype.str}{array.shape}{len(content)}:".encode())
        digest.update(content)
    return tf.constant(np.frombuffer(digest.digest(), np.int64))


def cohort_seed(secret):
    """The integer seed of cohorts that nobody is to know, from a run's secret seed."""
    words = bound(secret, "cohorts").numpy().view(np.uint64)
    return int(words[0] >> np.uint64(2))


def fold_in(seed, number):
    """A new seed from a seed and an integer scalar; of a secret one, another of 128 bits."""
    if seed.dtype == tf.int64:
        place = seed + tf.stack([tf.constant(0, tf.int64), tf.cast(number, tf.int64)])
        return tf.random.stateless_uniform(
            [2], place, minval=None, maxval=None, dtype=tf.int64, alg=_ALGORITHM
        )
    return tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int32), _ALGORITHM)


def public(seed):
    """An int32 seed that may be told, from a seed that may be secret; an int32 one as it is."""
    return _int32([2], seed) if seed.dtype == tf.int64 else seed


def words(size, seed, start=0):
    """Random 32-bit words number `start`, …, `start + size - 1` of a seed, uint32 `[size]`.

    Word i is m(m(i ⊕ k) ⊕ l) with two words k, l drawn from the seed and MurmurHash3's mixing m of
    32 bits (Appleby 2011), a bijection, so each is exactly uniform over the seeds. Fused into what
    uses them they cost an eighth of a counter-based generator's; none may protect anyone.
    """
    keys = tf.bitcast(_int32([2], seed), tf.uint32)
    word = tf.cast(tf.range(start, start + size), tf.uint32)
    for key in (keys[0], keys[1]):
        word = tf.bitwise.bitwise_xor(word, key)
        for shift, factor in _MIXING:
            shifted = tf.bitwise.right_shift(word, tf.constant(shift, tf.uint32))
            word = tf.bitwise.bitwise_xor(word, shifted) * tf.constant(factor, tf.uint32)
    return word


def uniform(size, seed, start=0):
    """`words` as float32 numbers in [0, 1]: of 2**31 evenly spaced ones, rounded."""
    half = tf.bitwise.right_shift(words(size, seed, start), tf.constant(1, tf.uint32))
    return tf.cast(tf.bitcast(half, tf.int32), tf.float32) * 2.0**-31


def integers(shape, limits, seed):
    """Uniform integers in [0, limits), int32; `limits` broadcasts against `shape`.

    Remainders of 32 bits: for a limit m, no number is more likely than another by more than
    m / 2**32 of its probability.
    """
    return tf.math.floormod(_int32(shape, seed), limits)


def _int32(shape, seed):
    return tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.int32, alg=_ALGORITHM
    )


def normal(shape, seed):
    """Independent standard normal numbers, float32: a pure function of the seed.

    Box and Muller's transform of 64-bit words w. Of each come two numbers, r sin a and r cos a:

        r = sqrt(-2 ln u),  u = |w| / 2**63,  a = ±(π / 2) v,  v = (the low 32 bits of w) / 2**31

    where the sign of w turns the half circle that v covers into a whole one. Given the angle, u is
    one of 2**31 evenly spaced numbers. So tails are those of the normal law to 6.5 standard
    deviations; beyond them (2**-31 of the draws) the angle follows from the radius, and none
    exceeds 9.5. With and without XLA numbers differ in their last bits only.

    Args:
        shape: A list of integers, or an int32 vector.
        seed: A seed tensor, secret or not.
    """
    if not isinstance(shape, list | tuple):
        return tf.reshape(_normal(tf.reduce_prod(shape), seed), shape)
    size = math.prod(shape)
    draw = _normal if size < _WORTH_COMPILING else _compiled_normal()
    return tf.reshape(draw(size, seed), shape)


@functools.cache
def _compiled_normal():
    """One pass over the numbers, instead of one for each operation; also inside a graph."""
    return tf.function(_normal, jit_compile=True, autograph=False)


def _normal(size, seed):
    # XLA takes a fifth of the time of tf.random.stateless_normal: it draws words of 64 bits faster
    # than of 32, has slow sines, and a cast in place of the bitcast would draw every word twice.
    words = tf.random.stateless_uniform(
        [(size + 1) // 2], seed, minval=None, maxval=None, dtype=tf.int64, alg=_ALGORITHM
    )
    signed = tf.cast(words, tf.float32)
    radius = tf.sqrt(-2.0 * tf.math.log(tf.abs(signed) * 2.0**-63 + 2.0**-64)) * tf.sign(signed)
    v = tf.cast(tf.bitcast(words, tf.int32)[:, 0], tf.float32) * 2.0**-31
    square = v * v
    sine, cosine = v * _polynomial(_SINE, square), _polynomial(_COSINE, square)
    return tf.concat([radius * sine, radius * cosine], 0)[:size]


def _polynomial(coefficients, x):
    *rest, value = coefficients
    for coefficient in reversed(rest):
        value = value * x + coefficient
    return value


def client_key(client_id):
    """Two int32 numbers that stand for a client id (int or str), the same in every process."""
    tagged = f"{type(client_id).__name__[0]}:{client_id}".encode()
    if isinstance(client_id, np.integer):
        tagged = f"i:{int(client_id)}".encode()
    digest = hashlib.blake2b(tagged, digest_size=8).digest()
    return np.frombuffer(digest, "<i4").copy()


def client_seed(seed, round_number, key):
    """The seed of one client in one round; `key` is the tensor of `client_key`."""
    return fold_in(fold_in(fold_in(seed, round_number), key[0]), key[1])


def round_noise(noise, round_number):
    """The secret seeds `(for the clients, for the server)` of one round.

    Neither follows from the other. `noise` is the run's secret seed; or `()`, which gives `()`.
    """
    if not tf.is_tensor(noise):
        return (), ()
    here = fold_in(noise, round_number)
    return fold_in(here, _TO_CLIENTS), fold_in(here, _TO_SERVER)


def client_noise(noise, client):
    """A client's secret seed in a round, from that of all clients (or `()`) and its own seed."""
    return fold_in(fold_in(noise, client[0]), client[1]) if tf.is_tensor(noise) else ()


def sample_seed(client, step):
    """The secret seed by which local step `step` draws its examples."""
    return fold_in(fold_in(client, _SAMPLE_STREAM), step)


def sample(values, expected, seed):
    """Each value of a vector with probability expected / size, by a coin of its own (Poisson)."""
    size = tf.size(values)
    bits = tf.random.stateless_uniform(
        [size], seed, minval=None, maxval=None, dtype=tf.uint32, alg=_ALGORITHM
    )
    # bits / 2³² < expected / size, in whole numbers
    limit = tf.cast(expected, tf.int64) * 2**32
    heads = tf.cast(bits, tf.int64) * tf.cast(size, tf.int64) < limit
    return tf.boolean_mask(values, heads)


def noise_seed(client, step):
    """The secret seed of the noise in local step `step`; `()` where there is no noise."""
    return fold_in(fold_in(client, _NOISE_STREAM), step) if tf.is_tensor(client) else ()


def model_seed(client, step):
    """The seed of dropout and its like in local step `step` of a client's seed."""
    return fold_in(fold_in(client, _MODEL_STREAM), step)


def shuffle_seed(client, epoch):
    """The seed of the order of a client's examples in local epoch `epoch`."""
    return fold_in(fold_in(client, _SHUFFLE_STREAM), epoch)


def part_seed(client):
    """The seed by which the part of the model is drawn that a client trains in a round."""
    return fold_in(client, _PART_STREAM)


def stage_seed(seed, index):
    """The seed of the aggregator's stage number `index`."""
    return fold_in(fold_in(seed, _STAGE_STREAM), index)


def shuffle(values, seed, count=None, whole=False):
    """A uniformly random permutation of the vector `values`, or of its first `count`.

    The order of the first `count` values is that of a vector of just these; `whole` says that the
    others are to be sorted too, without a branch.

    Sorts by 32-bit integer keys; of n values two share a key (and so keep their order) with
    probability about n**2 / 2**33, which is negligible for a client's examples.
    """
    if count is None or whole:
        return tf.gather(values, _random_order(tf.size(values), seed, count))
    # Sorting takes most of the time of clients that are padded to many times their size.
    most = values.shape[0]
    sizes = [*(size for size in _SORTED_AT_ONCE if size < most), most]

    def first(size):
        order = _random_order(size, seed, count)
        return tf.concat([tf.gather(values, order), values[size:]], 0)

    which = tf.reduce_sum([tf.cast(count > size, tf.int32) for size in sizes[:-1]] or [0])
    return tf.switch_case(which, [functools.partial(first, size) for size in sizes])


def _random_order(size, seed, count=None):
    keys = tf.random.stateless_uniform(
        [size], seed, minval=None, maxval=None, dtype=tf.int32, alg=_ALGORITHM
    )
    if count is not None:
        keys = tf.where(tf.range(size) < count, keys, tf.int32.max)
    return tf.argsort(keys, stable=True)
