"""Stages of an aggregator that make a federation differentially private towards its clients.

Each is the place of one noise in a chain: `chain(gaussian(clip=1.0, noise_multiplier=0.8),
mean("uniform"))`. They run tensorflow-privacy's queries on noise of their own (see `queries`).
"""

import functools

import tensorflow as tf

from tffed import tree
from tffed.aggregation.stage import Stage
from tffed.arguments import (
    SMALLEST_NORM,
    norm_bound,
    not_negative,
    open_fraction,
    positive,
    positive_integer,
)
from tffed.mechanism import AVERAGED_WEIGHTS, CLIENT_UPDATE, SERVER_SUM, Mechanism
from tffed.privacy import queries, tf_privacy, tree_noise


def gaussian(clip, noise_multiplier=None, *, per_layer=False) -> Stage:
    """Central DP of clients: Σ_k u_k · min(1, C / ‖u_k‖₂) + N(0, (zC)² I) (McMahan et al. 2018).

    Clients clip, and the server clips again what it decodes: whatever a client sends, or a stage
    after this one does to it, it moves the sum by at most C. A value that is not finite counts as
    zero, and its client still in the mean's divisor.

    Args:
        clip: The largest L2 norm C of an update.
        noise_multiplier: z, the standard deviation of the noise over C. None: `fit` finds it from
            its `privacy` budget. 0: no noise, and no privacy.
        per_layer: Whether each of the L trainable tensors is clipped to C / √L, instead of all
            together to C. The sum's bound, and so the noise, is the same.

    Raises:
        ValueError: An argument is outside its range.
        ImportError: tensorflow-privacy is not installed.
    """
    clip, noise_multiplier = _checked(clip, noise_multiplier)
    query = queries.gaussian_by_layer(clip, per_layer)
    encode, decode = _clipping(query)

    def finish(state, total, stats, clients, seed):
        del stats, clients
        stddev = clip * _given(noise_multiplier)
        return queries.noised(query(total, stddev, seed), total), state, {}

    return Stage(
        encode=encode,
        decode=decode,
        finish=finish,
        bound=_at_most(clip),
        name=f"gaussian({clip}, {noise_multiplier}{_layers(per_layer)})",
        mechanism=Mechanism(
            SERVER_SUM, "client", clip, noise_multiplier, name="Gaussian noise on the clients' sum"
        ),
        calibrate=lambda z: gaussian(clip, z, per_layer=per_layer),
    )


def adaptive_gaussian(
    clip=0.1,
    noise_multiplier=None,
    *,
    quantile=0.5,
    learning_rate=0.2,
    count_stddev=None,
    expected_clients,
) -> Stage:
    """`gaussian` at a norm that follows a quantile of the clients' norms (Andrew et al. 2021).

    Each client also sends b_k = ±½, whether its norm was within C. After the round, with m expected
    clients, C ← C · exp(-η (b - γ)), b = (Σ_k b_k + N(0, s_b²)) / m + ½ within [0, 1]. One client
    moves the count by ½, so both releases together cost what one of multiplier z does if the sum's
    own is z_v = (z⁻² - (2 s_b)⁻²)^(-½). Reports the private C as `clip_norm`.

    Args:
        clip: The first norm C.
        noise_multiplier: z, of both releases together; see `gaussian`.
        quantile: The fraction γ of updates that should not be clipped, in (0, 1).
        learning_rate: η, positive.
        count_stddev: s_b, above z / 2; `expected_clients / 20` by default, as in the paper.
        expected_clients: The number m of clients a round.

    Raises:
        ValueError: An argument is outside its range, or s_b too small for z.
        ImportError: tensorflow-privacy is not installed.
    """
    clip, noise_multiplier = _checked(clip, noise_multiplier)
    expected = positive("expected_clients", expected_clients)
    learning_rate = positive("learning_rate", learning_rate)
    quantile = open_fraction("quantile", quantile)
    if count_stddev is None:
        count_stddev = expected / 20
    count_stddev = not_negative("count_stddev", count_stddev)
    of_sum = None
    if noise_multiplier is not None:
        of_sum = queries.multiplier_of_sum(noise_multiplier, count_stddev)

    query = functools.partial(
        queries.adaptive,
        quantile=quantile,
        learning_rate=learning_rate,
        count_stddev=count_stddev,
        expected=expected,
    )

    def encode(bound, client_state, value, seed):
        del seed
        record, below = queries.preprocess(query(bound, 0.0), value)
        return queries.cast_like(value, record), client_state, {"below": below}

    def finish(bound, total, stats, clients, seed):
        del clients
        asked = query(bound, _given(of_sum), seed=seed)
        sums = asked._SampleState(queries.float32(total), stats["below"])
        noised, new, _ = asked.get_noised_result(sums, asked.initial_global_state())
        noised = queries.cast_like(total, noised)
        moved = tf.maximum(new.sum_state.l2_norm_clip, SMALLEST_NORM)
        return noised, moved, {"clip_norm": bound}

    return Stage(
        init=lambda like: tf.constant(clip),
        shared=lambda bound: bound,
        encode=encode,
        decode=lambda bound, payload, like: queries.bounded(queries.gaussian(bound, 0.0), payload),
        decode_stats=lambda stats: {"below": tf.clip_by_value(stats["below"], -0.5, 0.5)},
        finish=finish,
        name=f"adaptive_gaussian({clip}, {noise_multiplier}, {quantile}, {learning_rate}, "
        f"{count_stddev}, {expected})",
        mechanism=Mechanism(
            SERVER_SUM,
            "client",
            clip,
            noise_multiplier,
            name="Gaussian noise on the clients' sum and on the count that adapts its clip",
        ),
        calibrate=lambda z: adaptive_gaussian(
            clip,
            z,
            quantile=quantile,
            learning_rate=learning_rate,
            count_stddev=count_stddev,
            expected_clients=expected,
        ),
    )


def tree_gaussian(clip, noise_multiplier=None, *, period) -> Stage:
    """`gaussian` with the noise of DP-FTRL (Kairouz et al. 2021), for cohorts not drawn at random.

    The noise of rounds 1 to t adds up to that of a binary tree over the rounds, whose nodes are
    N(0, (zC)² I), by Honaker's estimator: of variance (zC)² Σ_j 1 / (2 - 2⁻ʲ) over the bits j of t,
    instead of t (zC)². With `SGD` at the server that is DP-FTRL without momentum. After `period`
    rounds a new tree begins. The state keeps up to log₂(period + 1) + 1 times the weights.

    Args:
        clip: The largest L2 norm C of an update.
        noise_multiplier: z; see `gaussian`.
        period: Rounds from one restart to the next.

    Raises:
        ValueError: An argument is outside its range.
        ImportError: tensorflow-privacy is not installed.
    """
    clip, noise_multiplier = _checked(clip, noise_multiplier)
    period = positive_integer("period", period)
    encode, decode = _clipping(queries.gaussian_by_layer(clip, False))

    def finish(state, total, stats, clients, seed):
        del stats, clients
        stddev = clip * _given(noise_multiplier)
        found, state = tree_noise.noised(total, state, clip, stddev, period, seed)
        return found, state, {}

    return Stage(
        init=lambda like: tree_noise.init(like, period),
        encode=encode,
        decode=decode,
        finish=finish,
        bound=_at_most(clip),
        name=f"tree_gaussian({clip}, {noise_multiplier}, {period})",
        mechanism=Mechanism(
            SERVER_SUM,
            "client",
            clip,
            noise_multiplier,
            kind="tree",
            period=period,
            name="tree of Gaussian noise on the clients' sums",
        ),
        calibrate=lambda z: tree_gaussian(clip, z, period=period),
    )


def local_gaussian(clip, noise_multiplier=None, *, per_layer=False) -> Stage:
    """Local DP: each client sends u · min(1, C / ‖u‖₂) + N(0, (zC)² I) and trusts nobody.

    A client whose update is not finite sends noise alone, so that this is not seen either.

    Args:
        clip: The largest L2 norm C of an update.
        noise_multiplier: z, the standard deviation of each client's noise over C; see `gaussian`.
        per_layer: As in `gaussian`.

    Raises:
        ValueError: An argument is outside its range.
        ImportError: tensorflow-privacy is not installed.
    """
    clip, noise_multiplier = _checked(clip, noise_multiplier)
    query = queries.gaussian_by_layer(clip, per_layer)

    def encode(shared, client_state, value, seed):
        del shared
        stddev = clip * _given(noise_multiplier)
        record = queries.bounded(query(value), value)
        return queries.noised(query(value, stddev, seed), record), client_state, {}

    return Stage(
        encode=encode,
        name=f"local_gaussian({clip}, {noise_multiplier}{_layers(per_layer)})",
        mechanism=Mechanism(
            CLIENT_UPDATE,
            "client",
            clip,
            noise_multiplier,
            name="Gaussian noise on each client's update",
        ),
        calibrate=lambda z: local_gaussian(clip, z, per_layer=per_layer),
    )


def weight_noise(stddev) -> Stage:
    """Noise on the averaged weights: after each of the server's steps, w ← w + N(0, stddev² I).

    What it protects depends on how far one client can move the weights: put `clip` before it.

    Args:
        stddev: The standard deviation, in units of the weights; 0: no noise.

    Raises:
        ValueError: `stddev` is negative or not finite.
    """
    stddev = not_negative("stddev", stddev)

    def release(state, weights, seed):
        del state
        noise = queries.cast_like(weights, queries.noise(weights, stddev, seed))
        return tree.add(weights, noise)

    return Stage(
        bound=lambda bound: bound,
        name=f"weight_noise({stddev})",
        mechanism=Mechanism(
            AVERAGED_WEIGHTS,
            "client",
            None,
            None,
            stddev=stddev,
            name="Gaussian noise on the averaged weights",
        ),
        release=release,
    )


def _checked(clip, noise_multiplier):
    """Both as numbers; fails now, not in the first round, if tensorflow-privacy is missing."""
    tf_privacy.load("dp_query.gaussian_query")
    if noise_multiplier is not None:
        noise_multiplier = not_negative("noise_multiplier", noise_multiplier)
    return norm_bound("clip", clip), noise_multiplier


def _given(noise_multiplier):
    if noise_multiplier is None:
        raise ValueError(
            "The aggregator needs to know how much noise to add. Received: noise_multiplier=None. "
            "Give noise_multiplier=…, or fit(…, privacy=Budget(…))."
        )
    return noise_multiplier


def _clipping(query):
    """The `encode` and the `decode` of a stage that clips with `query(like)`."""

    def encode(shared, client_state, value, seed):
        del shared, seed
        return queries.clip(query(value), value), client_state, {}

    return encode, lambda shared, payload, like: queries.bounded(query(payload), payload)


def _at_most(clip):
    return lambda bound: clip if bound is None else min(bound, clip)


def _layers(per_layer):
    return ", per_layer=True" if per_layer else ""
