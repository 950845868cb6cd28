"""tensorflow-privacy's queries, with noise from a secret seed.

As shipped, their noise comes from TensorFlow's stateful generators, which XLA, global seeds and
retraced functions replay, or from the clock. Queries hold no tensors from one call to the next:
each function here builds one for the time of a call, in any thread, and the caller keeps the state.
"""

import functools

import tensorflow as tf

from tffed import random, tree
from tffed.privacy import tf_privacy


def gaussian(clip, stddev, seed=None, stream=0):
    """A `GaussianSumQuery`: the sum of records of L2 norm at most `clip`, plus N(0, stddev² I)."""
    return _gaussian_class()(clip, stddev, seed, stream)


def layers(clip, stddev, number, seed=None):
    """A `NestedSumQuery` of `number` tensors, each clipped to clip / √number."""
    module = tf_privacy.load("dp_query.nested_query")
    share = clip / number**0.5
    return module.NestedSumQuery(tuple(gaussian(share, stddev, seed, i) for i in range(number)))


def adaptive(clip, noise_multiplier, quantile, learning_rate, count_stddev, expected, seed=None):
    """A `QuantileAdaptiveClipSumQuery`; `clip` may be a tensor, `expected` is that of records."""
    module = tf_privacy.load("dp_query.quantile_adaptive_clip_sum_query")
    normalized = tf_privacy.load("dp_query.normalized_query")
    query = module.QuantileAdaptiveClipSumQuery(
        clip, noise_multiplier, quantile, learning_rate, count_stddev, expected
    )
    # The two queries inside, which the class makes itself and gives no way to choose.
    query._sum_query = gaussian(clip, noise_multiplier * clip, seed, 0)
    query._quantile_estimator_query._below_estimate_query = normalized.NormalizedQuery(
        gaussian(0.5, count_stddev, seed, 1), expected
    )
    return query


def multiplier_of_sum(noise_multiplier, count_stddev):
    """z_v = (z⁻² - (2 s_b)⁻²)^(-½): what is left for the sum (Andrew et al. 2021, Theorem 1)."""
    if noise_multiplier == 0:
        return 0.0
    if 2 * count_stddev <= noise_multiplier:
        raise ValueError(
            f"The noise of the count alone costs more than noise_multiplier={noise_multiplier} "
            f"allows. Received: count_stddev={count_stddev}. Give one above "
            f"{noise_multiplier / 2} (several times that leaves more to the sum), or have more "
            "clients a round: it is expected_clients / 20 by default."
        )
    return (noise_multiplier**-2 - (2 * count_stddev) ** -2) ** -0.5


def gaussian_by_layer(clip, per_layer):
    """`(like, stddev, seed) -> query` of records like `like`: `gaussian`, or `layers`.

    The noise is only needed where a sum is noised.
    """

    def query(like, stddev=0.0, seed=None):
        if per_layer:
            return layers(clip, stddev, len(like), seed)
        return gaussian(clip, stddev, seed)

    return query


def preprocess(query, record):
    """What a record becomes before it is added, in float32: clipped; NaN if its norm overflows."""
    params = query.derive_sample_params(query.initial_global_state())
    return query.preprocess_record(params, float32(record))


def clip(query, record):
    """The record clipped; NaN if its norm is not finite."""
    return cast_like(record, preprocess(query, record))


def bounded(query, record):
    """The record clipped, or zeros if its norm is not finite: within the bound, whatever it is."""
    found = clip(query, record)
    return tree.select(tree.all_finite(found), found, tree.zeros_like(found))


def noised(query, total):
    """A sum of clipped records with the query's noise."""
    found, _, _ = query.get_noised_result(float32(total), query.initial_global_state())
    return cast_like(total, found)


def float32(nest):
    """The nest in float32, in which queries compute."""
    return tree.map(lambda leaf: tf.cast(leaf, tf.float32), nest)


def cast_like(like, nest):
    """The nest in the dtypes of `like`."""
    return tree.map(lambda old, leaf: tf.cast(leaf, old.dtype), like, nest)


def noise(like, stddev, seed):
    """N(0, stddev²) of the structure and shapes of `like`, each variable from a seed of its own.

    Raises:
        ValueError: The seed is not a secret one.
    """
    if getattr(seed, "dtype", None) != tf.int64:
        raise ValueError(
            "Noise that protects someone needs a secret seed, an int64 tensor from "
            f"tffed.random.secret(). Received: seed={seed!r}. A seed that others know takes the "
            "noise off again."
        )
    leaves = tf.nest.flatten(like)
    seeds = [random.fold_in(seed, i) for i in range(len(leaves))]
    drawn = [
        stddev * random.normal(list(leaf.shape), own)
        for leaf, own in zip(leaves, seeds, strict=True)
    ]
    return tf.nest.pack_sequence_as(like, drawn)


@functools.cache
def _gaussian_class():
    module = tf_privacy.load("dp_query.gaussian_query")

    class SecretGaussianSumQuery(module.GaussianSumQuery):
        """`GaussianSumQuery` whose noise is a function of a secret seed and a stream's number."""

        def __init__(self, l2_norm_clip, stddev, seed, stream):
            super().__init__(l2_norm_clip, stddev)
            self._seed, self._stream = seed, stream

        def get_noised_result(self, sample_state, global_state):
            seed = random.fold_in(self._seed, self._stream)
            added = tree.add(sample_state, noise(sample_state, global_state.stddev, seed))
            multiplier = global_state.stddev / global_state.l2_norm_clip
            return added, global_state, module.dp_accounting.GaussianDpEvent(multiplier)

    return SecretGaussianSumQuery
