"""`chain`: an aggregator from stages, as optax makes an optimizer from transforms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tffed import random, tree
from tffed.mechanism import AVERAGED_WEIGHTS, SERVER_SUM


class Stage(NamedTuple):
    """One part of an aggregator. Every function is pure; the defaults change nothing.

    Attributes:
        init: `(like) -> state`, the stage's server state; `like` is the trainable weights.
        shared: `(state) -> shared`, the part of the state that clients may see.
        client_init: `(like) -> client_state`, e.g. the residual of error feedback.
        encode: `(shared, client_state, value, seed) -> (payload, client_state, stats)`, on the
            client. `stats` is a dictionary of scalars that are added over clients.
        decode: `(shared, payload) -> value`, on the server, for each client.
        decode_stats: `(stats) -> stats`, on the server, for each client, before they are added.
        finish: `(state, total, stats, clients, seed) -> (total, state, metrics)`, on the server,
            once: `total` is the weighted sum, `clients` how many it holds.
        bound: `(bound) -> bound`: from the largest L2 norm an update can have before the stage
            (None: unbounded) to that after it.
        name: For messages, reports and checkpoints, with the parameters.
        mechanism: The `tffed.privacy.Mechanism` by which the stage protects someone, or None. Then
            all stages of the chain receive secret seeds. If it is one on the server's sum, `decode`
            and `decode_stats` clip: whatever a client sends, what is added is within the bound.
        calibrate: `(noise_multiplier) -> Stage`: the same stage with other noise.
        release: `(state, weights, seed) -> weights`, on the server, after the optimizer's step; or
            None.
        leaks: Whether clients see state that was learnt from other clients without noise.
    """

    init: Callable = lambda like: ()
    shared: Callable = lambda state: ()
    client_init: Callable = lambda like: ()
    encode: Callable = lambda shared, client_state, value, seed: (value, client_state, {})
    decode: Callable = lambda shared, payload: payload
    decode_stats: Callable = lambda stats: stats
    finish: Callable = lambda state, total, stats, clients, seed: (total, state, {})
    bound: Callable = lambda bound: None
    name: str = "stage"
    mechanism: Any = None
    calibrate: Callable | None = None
    release: Callable | None = None
    leaks: bool = False


class Reducer(NamedTuple):
    """The last part of an aggregator: from all clients' values to one.

    Attributes:
        weight: `(examples) -> weight` of a client, float32 scalars.
        finish: `(total, weight) -> value`. With `collect`, both have one row a client, and a
            client that was left out has weight 0.
        collect: Whether the reducer needs every client's value, stacked, instead of their
            weighted sum.
        name: For messages.
        bounded: Whether no weight exceeds 1.
        denominator: What the sum is divided by, if that depends on no client; else None.
    """

    weight: Callable
    finish: Callable
    collect: bool
    name: str
    bounded: bool = False
    denominator: float | None = None


class EncodedUpdate(NamedTuple):
    """A client's update as it travels."""

    payload: Any
    weight: Any
    stats: tuple


class AggregatorReport(NamedTuple):
    """A decoded update times its weight, or the sum of several."""

    total: Any
    weight: Any
    stats: tuple
    clients: Any


class Aggregator(NamedTuple):
    """What `chain` makes.

    Attributes:
        init: `(like) -> state`.
        shared: `(state) -> shared`.
        client_init: `(like) -> client_state`.
        encode: `(shared, client_state, update, examples, seed) -> (EncodedUpdate, client_state)`.
        report: `(shared, EncodedUpdate) -> AggregatorReport`.
        finish: `(state, total AggregatorReport, seed) -> (update, state, metrics)`.
        collect: Whether reports are stacked instead of added.
        bound: The largest L2 norm of an update that enters the sum, or None.
        name: The names of the parts.
        mechanisms: The `tffed.privacy.Mechanism`s of the stages.
        denominator: That of the reducer.
        private: Whether the sum is noised: then no client is left out of it, not even one whose
            value is not finite (it counts as zero).
        calibrate: `(noise_multiplier) -> Aggregator`: the same with other noise.
        release: `(state, weights, seed) -> weights`, after the server's step.
    """

    init: Callable
    shared: Callable
    client_init: Callable
    encode: Callable
    report: Callable
    finish: Callable
    collect: bool
    bound: float | None
    name: str
    mechanisms: tuple
    denominator: float | None
    private: bool
    calibrate: Callable
    release: Callable


def chain(*parts) -> Aggregator:
    """An aggregator from stages and, last, a reducer.

    Encodes left to right on the client, decodes right to left on the server, finishes left to right
    on the sum, then reduces.

    Example:

    ```python
    aggregator = tffed.chain(tffed.clip(1.0), tffed.mean())
    ```

    Args:
        *parts: Any number of `Stage`s, then one `Reducer` such as `mean()`.

    Raises:
        ValueError: The parts are not stages followed by one reducer, or what the stages do to
            protect clients has no effect with the others.
    """
    *stages, reducer = parts or (None,)
    if not isinstance(reducer, Reducer) or not all(isinstance(s, Stage) for s in stages):
        names = [type(part).__name__ for part in parts]
        raise ValueError(
            "Expected stages and then one reducer, e.g. chain(clip(1.0), mean()). "
            f"Received: {names}."
        )
    bound = None
    for stage in stages:
        bound = stage.bound(bound)
    mechanisms = tuple(s.mechanism for s in stages if s.mechanism is not None)
    _check_private(stages, mechanisms, bound, reducer)
    private = any(m.place == SERVER_SUM for m in mechanisms)

    def encode(shared, client_state, update, examples, seed):
        value, new, stats = update, [], []
        for i, (stage, sh, st) in enumerate(zip(stages, shared, client_state, strict=True)):
            value, st, stat = stage.encode(sh, st, value, random.stage_seed(seed, i))
            new.append(st)
            stats.append(stat)
        return EncodedUpdate(value, reducer.weight(examples), tuple(stats)), tuple(new)

    def report(shared, encoded):
        value = encoded.payload
        for stage, sh in reversed([*zip(stages, shared, strict=True)]):
            value = stage.decode(sh, value)
        weight = encoded.weight
        if private:  # a bound must hold whatever was sent
            weight = tf.where(tf.math.is_finite(weight), tf.clip_by_value(weight, 0.0, 1.0), 0.0)
        if not reducer.collect:
            value = tree.scale(value, weight)
        stats = (s.decode_stats(x) for s, x in zip(stages, encoded.stats, strict=True))
        return AggregatorReport(value, weight, tuple(stats), tf.constant(1.0))

    def finish(state, total, seed):
        value, new, metrics = total.total, [], {}
        stats, clients = total.stats, total.clients
        if reducer.collect:
            stats, clients = tree.map(lambda x: tf.reduce_sum(x, 0), (stats, clients))
        for i, (stage, st) in enumerate(zip(stages, state, strict=True)):
            value, st, found = stage.finish(
                st, value, stats[i], clients, random.stage_seed(seed, i)
            )
            new.append(st)
            metrics |= found
        return reducer.finish(value, total.weight), tuple(new), metrics

    def calibrate(noise_multiplier):
        new = (s.calibrate(noise_multiplier) if s.calibrate else s for s in stages)
        return chain(*new, reducer)

    def release(state, weights, seed):
        for i, (stage, st) in enumerate(zip(stages, state, strict=True)):
            if stage.release is not None:
                weights = stage.release(st, weights, random.stage_seed(seed, i))
        return weights

    return Aggregator(
        init=lambda like: tuple(stage.init(like) for stage in stages),
        shared=lambda state: tuple(s.shared(x) for s, x in zip(stages, state, strict=True)),
        client_init=lambda like: tuple(stage.client_init(like) for stage in stages),
        encode=encode,
        report=report,
        finish=finish,
        collect=reducer.collect,
        bound=bound,
        name=", ".join(part.name for part in parts),
        mechanisms=mechanisms,
        denominator=reducer.denominator,
        private=private,
        calibrate=calibrate,
        release=release,
    )


def _check_private(stages, mechanisms, bound, reducer):
    if not mechanisms:
        return
    if leaking := [stage.name for stage in stages if stage.leaks]:
        raise ValueError(
            "Noise protects no one from what other stages learn of clients without any. Received: "
            f"{leaking[0]} beside noise. Use tffed.privacy.adaptive_gaussian: its norm is private."
        )
    if len(mechanisms) > 1:
        places = [m.place for m in mechanisms]
        raise ValueError(
            "Expected noise in one place of a chain: what two of them cost together is not "
            f"accounted for. Received: noise at {places}. Leave one out."
        )
    if reducer.collect or not reducer.bounded:
        raise ValueError(
            "Noise protects a client only in a sum to which each adds a bounded part. Received: "
            f"{reducer.name} after noise. Use mean('uniform'), or mean('examples', max_weight=…, "
            "denominator=…)."
        )
    places = [s.mechanism.place if s.mechanism else None for s in stages]
    before = stages[: places.index(SERVER_SUM)] if SERVER_SUM in places else ()
    plain = Stage._field_defaults["decode"]
    if decoding := [stage.name for stage in before if stage.decode is not plain]:
        raise ValueError(
            "The server decodes from the last stage to the first, so what comes before the noise "
            f"would change norms after they were clipped. Received: {decoding[0]} before noise. "
            "Put it after."
        )
    if mechanisms[0].place == AVERAGED_WEIGHTS and bound is None:
        raise ValueError(
            "Noise on the averaged weights protects no one while updates have any size. Received: "
            "a chain without a bound. Put clip(…) before it."
        )
