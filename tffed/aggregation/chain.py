"""`chain`: an aggregator from stages, as optax makes an optimizer from transforms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tffed import tree
from tffed.aggregation.downlink import Downlink
from tffed.aggregation.soundness import check_adds, check_down, check_part, check_private
from tffed.aggregation.stage import Stage, codecs, sequence
from tffed.aggregation.submodel import WHOLE, Submodel
from tffed.mechanism import AVERAGED_WEIGHTS, SERVER_SUM
from tffed.wire import Raw


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
        adds: Whether over the rounds the results add up to what clients have sent, or follow it.
        moves: `(bound, clients) -> distance`: how far, in the L2 norm, the result of so many
            clients moves at most if one of them, whose vector's norm is at most `bound`, sends
            zeros; None: no bound is known, as of votes and medians.
    """

    weight: Callable
    finish: Callable
    collect: bool
    name: str
    bounded: bool = False
    denominator: float | None = None
    adds: bool = True
    moves: Callable | None = None


class EncodedUpdate(NamedTuple):
    """A client's update as it travels: the payload of the `sequence` of stages, and numbers."""

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
        report: `(shared, EncodedUpdate, like) -> AggregatorReport`; `like` has the specs of the
            update.
        finish: `(state, total AggregatorReport, seed) -> (update, state, metrics)`.
        codecs: `(EncodedUpdate) -> codecs`: how it becomes bytes.
        down: The `Downlink`: how weights travel to the clients.
        collect: Whether reports are stacked instead of added.
        bound: The largest L2 norm of an update that enters the sum, or None.
        name: The names of the parts.
        mechanisms: The `tffed.privacy.Mechanism`s of the stages.
        denominator: That of the reducer.
        private: Whether the sum, or what follows from it, is noised: then no client is left out of
            it, not even one whose value is not finite (it counts as zero).
        moves: `(bound, clients) -> distance` of the reducer.
        noised: Of each stage, whether it has noise.
        calibrate: `(noise_multiplier) -> Aggregator`: the same with other noise.
        settle: `(before, after, present) -> weights`: from the weights before and after the
            server's step to those that it keeps; `present` is by how much weight of clients each
            coordinate was had, or `()`.
        release: `(state, weights, seed) -> weights`, after that.
        weight: `(examples) -> weight` of the reducer.
        foreign: The names of stages and reducers that are not tffed's own.
        part: The `Submodel` that clients train; what is said of updates above is of this part.
    """

    init: Callable
    shared: Callable
    client_init: Callable
    encode: Callable
    report: Callable
    finish: Callable
    codecs: Callable
    down: Downlink
    collect: bool
    bound: float | None
    name: str
    mechanisms: tuple
    denominator: float | None
    private: bool
    calibrate: Callable
    settle: Callable
    release: Callable
    moves: Callable
    noised: tuple
    weight: Callable
    foreign: tuple
    part: Submodel = WHOLE


def chain(*parts, down=()) -> Aggregator:
    """An aggregator from stages and, last, a reducer.

    Encodes left to right on the client, decodes right to left on the server, finishes left to right
    on the sum, then reduces.

    Example:

    ```python
    aggregator = tffed.chain(tffed.clip(1.0), tffed.mean())
    aggregator = tffed.chain(
        tffed.error_feedback(tffed.top_k(0.01), tffed.quantize(8)), tffed.mean(),
        down=[tffed.quantize(8)],
    )
    ```

    Args:
        *parts: At most one `Submodel` such as `prune(…)`, any number of `Stage`s, then one
            `Reducer` such as `mean()`.
        down: Stages (or one) through which the server sends the weights themselves to the clients,
            which train and compute their updates from what they received. A stage with a state of
            its own keeps it on the server; none that adds up what it did not send, such as error
            feedback, for weights do not add up over the rounds.

    Raises:
        ValueError: The parts are not stages followed by one reducer, one comes after another that
            leaves it nothing, or what the stages do to protect clients has no effect with the
            others.
    """
    part = parts[0] if parts and isinstance(parts[0], Submodel) else WHOLE
    *stages, reducer = parts[part.partial :] or (None,)
    if not isinstance(reducer, Reducer) or not all(isinstance(s, Stage) for s in stages):
        names = [type(part).__name__ for part in parts]
        raise ValueError(
            "Expected stages and then one reducer, e.g. chain(clip(1.0), mean()). "
            f"Received: {names}."
        )
    down = check_down(down)
    whole = _Chain(part, stages, reducer)
    check_private(stages, whole.mechanisms, whole.bound, reducer)
    check_adds(stages, reducer)
    check_part(part, stages, whole.mechanisms, reducer)

    def calibrate(noise_multiplier):
        new = (s.calibrate(noise_multiplier) if s.calibrate else s for s in stages)
        return chain(*parts[: part.partial], *new, reducer, down=down)

    names = [part.name for part in parts]
    if down:
        names.append(f"down: {', '.join(stage.name for stage in down)}")
    return Aggregator(
        init=whole.sequence.init,
        shared=whole.sequence.shared,
        client_init=whole.client_init,
        encode=whole.encode,
        report=whole.report,
        finish=whole.finish,
        codecs=whole.codecs,
        down=Downlink(down, part),
        collect=reducer.collect,
        bound=whole.bound,
        name=", ".join(names),
        mechanisms=whole.mechanisms,
        denominator=reducer.denominator,
        private=whole.private,
        calibrate=calibrate,
        settle=whole.settle,
        release=whole.sequence.release,
        moves=reducer.moves,
        noised=tuple(stage.mechanism is not None for stage in stages),
        weight=reducer.weight,
        foreign=tuple(part.name for part in (*stages, reducer) if foreign(part)),
        part=part,
    )


def foreign(record):
    """Whether a record of functions has one that is not tffed's own."""
    functions = (getattr(value, "func", value) for value in record if callable(value))
    return not all(getattr(f, "__module__", "").startswith("tffed.") for f in functions)


class _Chain:
    """The functions of an aggregator, over its parts."""

    def __init__(self, part, stages, reducer):
        self.sequence = sequence(*stages)
        self.bound = self.sequence.bound(None)
        self.mechanisms = tuple(s.mechanism for s in stages if s.mechanism is not None)
        self.private = any(m.place in (SERVER_SUM, AVERAGED_WEIGHTS) for m in self.mechanisms)
        self._part = part
        self._reducer = reducer
        self._decodes = any(stage.decodes for stage in stages)

    def client_init(self, like):
        found = self.sequence.client_init(like)
        if self._part.partial and tree.leaves(found):
            raise ValueError(
                f"What a client keeps from round to round is of other weights after "
                f"{self._part.name} has chosen anew. Received: {self.sequence.name}. Leave out the "
                "stage that keeps a state, such as error feedback."
            )
        return found

    def encode(self, shared, client_state, update, examples, seed):
        payload, new, stats = self.sequence.encode(shared, client_state, update, seed)
        return EncodedUpdate(payload, self._reducer.weight(examples), stats), new

    def report(self, shared, encoded, like):
        value = self.sequence.decode(shared, encoded.payload, like)
        weight = encoded.weight
        if self.private:  # a bound must hold whatever was sent
            weight = tf.where(tf.math.is_finite(weight), tf.clip_by_value(weight, 0.0, 1.0), 0.0)
        if not self._reducer.collect:
            value = tree.scale(value, weight)
        stats = self.sequence.decode_stats(encoded.stats)
        return AggregatorReport(value, weight, stats, tf.constant(1.0))

    def finish(self, state, total, seed):
        stats, clients = total.stats, total.clients
        if self._reducer.collect:
            stats, clients = tree.map(lambda x: tf.reduce_sum(x, 0), (stats, clients))
        value, state, metrics = self.sequence.finish(state, total.total, stats, clients, seed)
        weight, denominator = total.weight, self._reducer.denominator
        if self.private and denominator is not None:  # no reducer sees more than it says
            weight = tf.constant(denominator, tf.float32)
        return self._reducer.finish(value, weight), state, metrics

    def settle(self, before, after, present):
        if self._part.own:  # whatever the optimizer does, what no client had stays
            stays = lambda old, new, had: tf.where(had > 0, new, old)  # noqa: E731
            after = tree.map(stays, before, after, present)
        return self.sequence.settle(before, after)

    def codecs(self, encoded):
        values = None if self._decodes else self._part.codecs(encoded.payload.value)
        payload = codecs(self.sequence, encoded.payload, values)
        return tree.map(lambda leaf: Raw(), encoded)._replace(payload=payload)
