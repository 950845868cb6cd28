"""`compose`: an algorithm from local work, an aggregator and a server optimizer."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tffed import random, tree
from tffed.algorithm import (
    Algorithm,
    Broadcast,
    ClientState,
    Message,
    Report,
    ServerState,
    raw,
)
from tffed.model import ModelWeights


def compose(
    name,
    work,
    *,
    model,
    server_optimizer,
    aggregator,
    learning_rate=None,
    client_init=lambda bc: (),
    server_init=lambda weights, population: (),
    server_update=lambda extra, total, clients: extra,
    server_metrics=lambda extra: {},
    personal=lambda weights, state: weights,
    maskable=None,
    renew=None,
) -> Algorithm:
    """Makes an `Algorithm` of local work, an aggregator and a server optimizer.

    The server step is `w ← step(w, -mean update)`: with SGD(1.0), `w + mean update`. A client whose
    message holds a NaN, an infinity or a negative weight is left out and counted, and its state
    stays as it was. A client without examples is passed over and counted as `empty`, and its bytes
    in both directions too, as only its answer tells that it is; with noise for clients it counts
    like the others, its update being zero. If no client is left, the server still
    takes its step, with a zero update: momentum goes on.

    Args:
        name: The algorithm's name.
        work: `(bc, state, data, seed) -> LocalUpdate`; `state` is the algorithm's client state.
        model: The `FunctionalModel`.
        server_optimizer: An `Optimizer` for the server step.
        aggregator: An `Aggregator`, from `chain`.
        learning_rate: The clients' initial learning rate, or None.
        client_init: `(bc) -> state` of the algorithm for a new client.
        server_init: `(weights, population) -> extra`, the algorithm's own server state.
        server_update: `(extra, total, clients) -> extra`, from the sum of the clients' `extra`.
        server_metrics: `(extra) -> metrics` of a round, from the state before it.
        personal: `(weights, state) -> weights` with which a client is evaluated.
        maskable: `(batch) -> bool`: whether `work` takes padded `LocalData` of such examples; the
            shared loop does if the model's `maskable` says so and batches have a size. None: never.
        renew: As in `Algorithm`.
    """
    hooks = _Hooks(work, client_init, server_init, server_update, server_metrics, personal)
    whole = _Composition(name, hooks, model, server_optimizer, aggregator, learning_rate)
    return Algorithm(
        init=whole.init,
        broadcast=whole.broadcast,
        client_init=whole.client_init,
        client=whole.client,
        report=whole.report,
        finish=whole.finish,
        personal=whole.personal,
        collect=aggregator.collect,
        name=name,
        maskable=maskable,
        mechanisms=whole.mechanisms,
        sent_up=whole.sent_up,
        sent_down=whole.sent_down,
        send=whole.send if aggregator.part.own else None,
        receive=whole.receive,
        renew=renew,
    )


class _Hooks(NamedTuple):
    """What an algorithm brings, as in `compose`."""

    work: Callable
    client_init: Callable
    server_init: Callable
    server_update: Callable
    server_metrics: Callable
    personal: Callable


class _Composition:
    """The functions of a composed algorithm, over what they all read."""

    def __init__(self, name, hooks, model, server_optimizer, aggregator, learning_rate):
        self.mechanisms = tuple(
            m for m in (model.mechanism, *aggregator.mechanisms) if m is not None
        )
        self._name = name
        self._hooks = hooks
        self._model = model
        self._optimizer = server_optimizer
        self._aggregator = aggregator
        self._down, self._part = aggregator.down, aggregator.part
        self._learning_rate = learning_rate
        self._local = model.local_statistics
        self._like = tuple(tf.TensorSpec(v.shape, v.dtype) for v in model.variables)
        self._inner = self._part.like(self._like)

    def init(self, weights, population):
        part = self._part
        return ServerState(
            tf.constant(0, tf.int32),
            weights,
            self._optimizer.init(weights.trainable),
            self._aggregator.init(part.like(weights.trainable)),
            tf.constant(self._learning_rate or 0.0, tf.float32),
            self._hooks.server_init(weights, population),
            random.secret() if self.mechanisms else (),
            self._down.init(weights.trainable),
            part.init(weights.trainable),
        )

    def broadcast(self, state):
        shared = self._aggregator.shared(state.aggregator)
        noise, _ = random.round_noise(state.noise, state.round)
        known, weights = self._known(state), state.weights
        if not self._part.own:
            weights = weights._replace(trainable=self._sent(state)[0])
        rate = state.learning_rate
        return Broadcast(state.round, weights, shared, rate, state.extra, noise, known)

    def send(self, bc, seed):
        weights = bc.weights.trainable
        parts = self._part.choose(bc.part, self._part.seed(seed))
        payload, _ = self._down.send(self._down.init(weights), parts, weights, bc.round)
        return bc._replace(weights=bc.weights._replace(trainable=payload))

    def receive(self, bc):
        return bc._replace(part=self._part.known(bc.part))

    def client_init(self, bc):
        if not self._part.own:
            bc = self._received(bc, self._part.choose(bc.part, ()))
        statistics = bc.weights.non_trainable if self._local else ()
        own = self._aggregator.client_init(self._inner)
        return ClientState(self._hooks.client_init(bc), own, statistics)

    def client(self, bc, state, data, seed):
        chosen = self._part.seed(seed)
        parts = self._part.choose(bc.part, chosen)
        bc = self._received(bc, parts)
        bc = bc._replace(weights=self._own_statistics(bc.weights, state))
        done = self._hooks.work(bc, state.algorithm, data, seed)
        _check_extra(self._name, self._aggregator, done.extra)
        if self._aggregator.mechanisms:
            seed = random.client_noise(bc.noise, seed)
        taken = done.update if self._part.resized else self._part.take(parts, done.update)
        update, stages = self._aggregator.encode(
            bc.aggregator, state.aggregator, taken, done.examples, seed
        )
        moved, kept = tree.subtract(done.non_trainable, bc.weights.non_trainable), ()
        if self._local:
            moved, kept = (), done.non_trainable
        message = Message(update, moved, done.extra, done.examples, done.sums, chosen)
        new = ClientState(done.state, stages, kept)
        changes = tree.all_finite((_told(message), new))
        if not self._aggregator.private:
            changes &= done.examples > 0
        return message, tree.select(changes, new, state)

    def report(self, bc, message):
        update = self._aggregator.report(bc.aggregator, message.update, self._inner)
        parts, present = self._part.choose(bc.part, message.part), ()
        update = update._replace(total=self._part.put(parts, update.total, self._like))
        if self._part.own:
            present = tree.scale(self._part.mask(parts, self._like), update.weight)
        full = Report(
            update,
            tree.scale(message.non_trainable, update.weight),
            message.extra,
            message.examples,
            message.sums,
            tf.constant(1.0),
            tf.constant(0.0),
            tf.cast(message.examples == 0, tf.float32),
            present,
        )
        finite = tree.all_finite((_told(message), _told(full)))
        ok = finite & (update.weight >= 0) & (message.examples >= 0)
        nothing = tree.zeros_like(full)
        left_out = nothing._replace(dropped=tf.constant(1.0))
        if self._aggregator.private:  # what is divided by must not tell who was left out
            total = tree.select(tree.all_finite(update.total), update.total, nothing.update.total)
            kept = update._replace(total=total, stats=nothing.update.stats)
            left_out = left_out._replace(update=kept)
        else:  # who has no examples is passed over; of a finite message
            full = tree.select(message.examples > 0, full, nothing._replace(empty=full.empty))
        return tree.select(ok, full, left_out)

    def finish(self, state, total, seed):
        if self._aggregator.mechanisms:
            _, seed = random.round_noise(state.noise, state.round)
        update, stages, metrics = self._aggregator.finish(state.aggregator, total.update, seed)
        rest, weight = total, total.update.weight
        if self._aggregator.collect:
            rest = tree.map(lambda x: tf.reduce_sum(x, 0), total._replace(update=()))
            weight = tf.reduce_sum(weight)
        update = self._put_right(update, weight, rest.present)
        optimizer, trainable = self._step(state, update)
        before = state.weights.trainable
        trainable = self._aggregator.settle(before, trainable, rest.present)
        trainable = self._aggregator.release(stages, trainable, seed)
        part, trainable, found = self._part.advance(state.part, trainable, state.round + 1)
        statistics = state.weights.non_trainable
        if not self._local:
            moved = tree.scale(rest.non_trainable, tf.math.divide_no_nan(1.0, weight))
            statistics = tree.add(statistics, moved)
        new = state._replace(
            round=state.round + 1,
            weights=ModelWeights(trainable, statistics),
            optimizer=optimizer,
            aggregator=stages,
            extra=self._hooks.server_update(state.extra, rest.extra, rest.clients),
            down=state.down if self._part.own else self._sent(state)[1],
            part=part,
        )
        names = ("clients", "dropped", "empty", "examples")
        counts = {name: getattr(rest, name) for name in names}
        own = self._hooks.server_metrics(state.extra)
        return new, _merged(self._model.report(rest.sums), counts, own, metrics, found)

    def _step(self, state, update):
        """The server's step; as in Keras, weights that no loss depends on stay as they are."""
        connected = self._model.connected
        used = connected() if connected is not None else [True] * len(update)
        pairs = zip(tree.scale(update, -1.0), used, strict=True)
        grads = tuple(g if u else None for g, u in pairs)
        return self._optimizer.step(state.optimizer, state.weights.trainable, grads)

    def personal(self, weights, state):
        return self._hooks.personal(self._own_statistics(weights, state), state.algorithm)

    def sent_up(self, message):
        return message, raw(message)._replace(update=self._aggregator.codecs(message.update))

    def sent_down(self, bc):
        bc = bc._replace(noise=(), part=self._part.told(bc.part))
        weights = raw(bc.weights)._replace(trainable=self._down.codecs(bc.weights.trainable))
        rest = raw(bc._replace(weights=(), part=()))
        return bc, rest._replace(weights=weights, part=self._part.wire(bc.part))

    def _known(self, state):
        return self._part.known(self._part.shared(state.part))

    def _sent(self, state):
        """What travels of the weights where all clients have the same part, and the new state."""
        parts = self._part.choose(self._known(state), ())
        return self._down.send(state.down, parts, state.weights.trainable, state.round)

    def _received(self, bc, parts):
        trainable, mask = self._down.receive(bc.weights.trainable, self._like), ()
        if self._part.partial and not self._part.resized:
            trainable = self._part.put(parts, trainable, self._like)
            mask = self._part.mask(parts, self._like)
        return bc._replace(weights=bc.weights._replace(trainable=trainable), mask=mask)

    def _own_statistics(self, weights, state):
        return weights._replace(non_trainable=state.statistics) if self._local else weights

    def _put_right(self, update, weight, present):
        """The mean update of the whole model, from that of clients' parts."""
        if self._part.own:  # the mean of each coordinate is over the clients that had it
            update = tree.map(
                lambda u, p: u * tf.math.divide_no_nan(tf.cast(weight, p.dtype), p),
                update,
                present,
            )
        factors = self._part.scale(self._like)
        if factors is not None:
            update = tree.map(tree.scale, update, tuple(1 / factor for factor in factors))
        return update


def _merged(*reports):
    """All that a round reports; no number goes by another one's name."""
    names = [name for report in reports for name in report]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Expected one number by each name in the history. Received: several called "
            f"{', '.join(twice)}, from the metrics, the algorithm or the stages. Rename the metric."
        )
    return {name: value for report in reports for name, value in report.items()}


def _told(message):
    """A message or report without the states of metrics: one may be undefined, and so NaN."""
    return message._replace(sums=message.sums[:2])


def _check_extra(name, aggregator, extra):
    if aggregator.mechanisms and tf.nest.flatten(extra):
        raise ValueError(
            f"{name} sends more than its update, which noise on the updates or their sum does not "
            f"cover. Received: the aggregator {aggregator.name}. Use an algorithm that sends "
            "updates alone (fed_avg, fed_prox, fed_opt, fed_sgd), or noise in the clients' steps."
        )
