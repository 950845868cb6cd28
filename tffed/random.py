"""Random streams that are pure functions of (seed, round, client id, step).

A seed is an int32 tensor of shape (2,), a secret one (noise that protects someone comes from it) an
int64 tensor of that shape. Only integers are drawn, with a named generator: floats of TensorFlow's
stateless generators differ with and without XLA, integers do not.
"""

import functools
import hashlib
import os

import numpy as np
import tensorflow as tf

_ALGORITHM = "philox"
_SORTED_AT_ONCE = (32, 128, 512, 2048)
_MODEL_STREAM, _SHUFFLE_STREAM, _STAGE_STREAM, _NOISE_STREAM = range(4)
_TO_CLIENTS, _TO_SERVER = range(2)


def seed(value):
    """The seed tensor of an integer in [0, 2**62).

    Raises:
        ValueError: `value` is no integer in that range.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**62:
        raise ValueError(
            f"`seed` must be an integer in [0, 2**62), so that a run can be repeated. "
            f"Received: seed={value!r}"
        )
    return tf.constant([int(value) >> 31, int(value) & 0x7FFFFFFF], tf.int32)


def secret(value=None):
    """A secret seed of 128 bits of the operating system's entropy; or of an integer, for tests."""
    if value is None:
        return tf.constant(np.frombuffer(os.urandom(16), np.int64))
    return tf.cast(seed(value), tf.int64)


def fold_in(seed, number):
    """A new seed from a seed and an integer scalar; of a secret one, another of 128 bits."""
    if seed.dtype == tf.int64:
        place = seed + tf.stack([tf.constant(0, tf.int64), tf.cast(number, tf.int64)])
        return tf.random.stateless_uniform(
            [2], place, minval=None, maxval=None, dtype=tf.int64, alg=_ALGORITHM
        )
    return tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int32), _ALGORITHM)


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


def noise_seed(client, step):
    """The secret seed of the noise in local step `step`; `()` where there is no noise."""
    return fold_in(fold_in(client, _NOISE_STREAM), step) if tf.is_tensor(client) else ()


def model_seed(client, step):
    """The seed of dropout and its like in local step `step` of a client's seed."""
    return fold_in(fold_in(client, _MODEL_STREAM), step)


def shuffle_seed(client, epoch):
    """The seed of the order of a client's examples in local epoch `epoch`."""
    return fold_in(fold_in(client, _SHUFFLE_STREAM), epoch)


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
