"""A federated algorithm as a record of pure functions, cut where the wire is.

state ──broadcast──▶ bc ──▶ client(bc, client_state, data, seed) ──▶ message, client_state
════════════════ the wire of a real deployment ════════════════
                     report(bc, message)            summed over clients
════════════════ the wire of a cluster: one sum a chunk ═══════
state, total ──finish──▶ state, metrics
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tffed import random, tree
from tffed.model import ModelWeights
from tffed.wire import Raw


class ServerState(NamedTuple):
    """All that the server carries from round to round.

    Attributes:
        round: int32 scalar, the rounds done.
        weights: `ModelWeights` of the global model.
        optimizer: The server optimizer's `OptimizerState`.
        aggregator: The state of each stage of the aggregator.
        learning_rate: float32 scalar, the clients' learning rate in the next round.
        extra: The algorithm's own server state.
        noise: The secret seed of all noise that protects someone; `()` where there is none.
        down: The state of the stages through which weights travel to the clients.
        part: The state of the `Submodel` that clients train.
    """

    round: Any
    weights: ModelWeights
    optimizer: Any
    aggregator: tuple
    learning_rate: Any
    extra: Any
    noise: Any = ()
    down: Any = ()
    part: Any = ()

    def __repr__(self):
        return without_secret(self)


def without_secret(record):
    """The text of a named tuple, with nothing of its `noise`: texts end up in logs."""
    found = {**record._asdict()} | ({"noise": "(secret)"} if tf.is_tensor(record.noise) else {})
    said = ", ".join(f"{name}={value!r}" for name, value in found.items())
    return f"{type(record).__name__}({said})"


def raw(nest):
    """Codecs that send each leaf of a nest as it is."""
    return tree.map(lambda leaf: Raw(), nest)


class Algorithm(NamedTuple):
    """A federated algorithm: pure functions that an engine runs where it sees fit.

    Attributes:
        init: `(weights, population) -> ServerState`; `population` is the number of clients.
        broadcast: `(state) -> bc`: what every client of the round receives.
        client_init: `(bc) -> client_state` of a client never seen before.
        client: `(bc, client_state, data, seed) -> (message, client_state)`: local training and
            encoding. `data` is a `LocalData`. The message crosses the wire.
        report: `(bc, message) -> report`: decoded and weighted, ready to be added.
        finish: `(state, total, seed) -> (state, metrics)`: one server step from the added reports.
        personal: `(weights, client_state) -> ModelWeights` that a client would evaluate.
        collect: Whether reports are stacked, one row a client, instead of added.
        name: For messages and checkpoints.
        maskable: `(batch) -> bool`: whether `client` also works on padded `LocalData` of such
            examples, as XLA needs; None: never.
        mechanisms: The `tffed.privacy.Mechanism`s that protect clients or their examples.
        sent_up: `(message) -> (nest, codecs)`: what of it travels, and how each leaf becomes bytes
            (see `tffed.wire`).
        sent_down: `(bc) -> (nest, codecs)`: the same of what a client receives.
        send: `(bc, seed) -> bc`: what one client receives in place of the broadcast; None: the
            broadcast itself.
        receive: `(bc) -> bc`: of what travelled, what `client` takes.
        renew: `(weights, total, population) -> extra`: the algorithm's own server state for another
            population, from the sum of its clients' own states (None: there are none yet); None:
            it does not depend on who the clients are.
    """

    init: Callable
    broadcast: Callable
    client_init: Callable
    client: Callable
    report: Callable
    finish: Callable
    personal: Callable
    collect: bool
    name: str
    maskable: Callable | None = None
    mechanisms: tuple = ()
    sent_up: Callable = lambda message: (message, raw(message))
    sent_down: Callable = lambda bc: (bc, raw(bc))
    send: Callable | None = None
    receive: Callable = lambda bc: bc
    renew: Callable | None = None


class Uses(NamedTuple):
    """How a round uses the examples of its clients.

    Attributes:
        passes: In how many steps one example takes part at most, if steps go through them in turn.
        sampled: `((steps, rate), …)` if each step draws its own from all of a client's: for
            clients of each number of batches the steps, and the largest expected share of the
            examples in one. No client's part costs more than that of the worst of these. None
            where steps take all.
    """

    passes: int
    sampled: tuple | None = None


class Recipe(NamedTuple):
    """An algorithm that still awaits its model and optimizers, e.g. `tffed.fed_avg()`.

    Attributes:
        name: The algorithm's name.
        build: `(model, client_optimizer, server_optimizer, aggregator) -> Algorithm`.
        config: The hyperparameters, JSON-able, for checkpoints and reports.
        local_training: Whether clients take optimizer steps (`client_optimizer` is needed).
        needs_server_optimizer: Whether the server optimizer has no default.
        uses: `(clients) -> Uses` of a `ClientData`, for the accounting of noise in local steps;
            None: not known.
    """

    name: str
    build: Callable
    config: dict
    local_training: bool = True
    needs_server_optimizer: bool = False
    uses: Callable | None = None

    def __call__(self, model, *, client_optimizer=None, server_optimizer, aggregator):
        if self.local_training and client_optimizer is None:
            raise ValueError(
                f"{self.name} trains on the clients and needs a client optimizer. Received: "
                "client_optimizer=None. Pass e.g. client_optimizer=keras.optimizers.SGD(0.1)."
            )
        if not self.local_training and client_optimizer is not None:
            raise ValueError(
                f"Clients take no steps in {self.name}; the server optimizer takes the step. "
                "Received: a client optimizer. Leave client_optimizer out."
            )
        part = aggregator.part.trained_by(model, client_optimizer)
        aggregator = aggregator._replace(part=part)
        return self.build(model, client_optimizer, server_optimizer, aggregator)


class Broadcast(NamedTuple):
    """What the clients of a round receive.

    The trainable weights are as the aggregator's `down` sends them. `noise` is the secret seed of
    the clients' noise in a simulation. It does not travel: a client that is really apart draws its
    own instead, else the server could take the noise off again. `part` is what clients know of the
    `Submodel`, `mask` what they make of it: ones where they train, like the trainable weights, or
    `()`.
    """

    round: Any
    weights: ModelWeights
    aggregator: tuple
    learning_rate: Any
    extra: Any
    noise: Any = ()
    part: Any = ()
    mask: Any = ()

    def __repr__(self):
        return without_secret(self)


class LocalUpdate(NamedTuple):
    """What an algorithm's local work gives to `compose`.

    Attributes:
        update: Flat tuple like the trainable weights, to be averaged; the server moves along it.
        non_trainable: The client's statistics after training.
        extra: A nest added up uniformly over clients, for the algorithm's own server state.
        state: The algorithm's new client state.
        examples: float32 scalar, the client's number of examples n_k.
        sums: The sums of the training metrics (see `FunctionalModel`).
    """

    update: tuple
    non_trainable: tuple
    extra: Any
    state: Any
    examples: Any
    sums: tuple


class ClientState(NamedTuple):
    """A client's own state: the algorithm's, the aggregator stages', and local statistics."""

    algorithm: Any
    aggregator: tuple
    statistics: tuple


class Message(NamedTuple):
    """What crosses the wire from a client to the server.

    `part` is the seed by which the server knows which part of the model the update is of.
    """

    update: Any
    non_trainable: tuple
    extra: Any
    examples: Any
    sums: tuple
    part: Any = ()


class Report(NamedTuple):
    """A decoded message, or the sum of several.

    Attributes:
        update: The aggregator's report.
        non_trainable: Weighted changes of the statistics.
        extra: Added uniformly.
        examples: Examples of the clients that count.
        sums: Training metrics.
        clients: Clients that count, in `dropped` those left out for non-finite values, and in
            `empty` those without examples.
        present: Where clients train parts of their own, the weight of those that had each
            coordinate.
    """

    update: Any
    non_trainable: tuple
    extra: Any
    examples: Any
    sums: tuple
    clients: Any
    dropped: Any
    empty: Any
    present: Any = ()


def server_seed(seed, round_number):
    """The seed of the server's own random draws in a round."""
    return random.fold_in(random.fold_in(seed, round_number), -1)
