"""The rounds of one `fit`: callbacks, validation, checkpoints."""

import contextlib
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tffed.arguments import fraction, integer
from tffed.callbacks import Snapshot
from tffed.data import Sampler, Uniform
from tffed.privacy.accounts import Accounts
from tffed.training import run_round


class Plan(NamedTuple):
    """What a call of `fit` asks for.

    Attributes:
        clients: A `ClientData`.
        sampler: Who takes part.
        rounds: `(first, last)`, as a range.
        validate: `(state) -> {name: float}`, or None.
        validation_freq: Rounds from one validation to the next.
        checkpoint_freq: Rounds from one checkpoint to the next.
        callbacks: The user's Keras callbacks.
        all_callbacks: A `keras.callbacks.CallbackList` of those, the history and the progress.
        history: The `keras.callbacks.History`.
        files: The `RunFiles`.
        seed: Integer seed.
        terms: The `tffed.privacy.terms.Terms` of the rounds.
        ledger: The `tffed.privacy.ledger.Ledger` that they are written to.
        exposures: As in `tffed.privacy.budget.Spending`.
        context: Bytes that the noise of the rounds is bound to (see `RoundNoise`).
        budget: The `tffed.privacy.Budget` that the rounds keep to, or None.
    """

    clients: Any
    sampler: Any
    rounds: range
    validate: Any
    validation_freq: int
    checkpoint_freq: int
    callbacks: list
    all_callbacks: Any
    history: Any
    files: Any
    seed: int
    terms: Any
    ledger: Any
    exposures: list | None = None
    context: bytes = b""
    budget: Any = None


def fit_rounds(plan, engine, model, start, rates, keras_model, keep):
    """Runs the rounds of a plan.

    Args:
        plan: The `Plan`.
        engine: The engine of the algorithm.
        model: The `FunctionalModel`.
        start: `() -> ServerState` to begin with if there is no checkpoint.
        rates: The `LearningRates` of the two Keras optimizers.
        keras_model: The Keras model that callbacks see.
        keep: Called with each new state and the client store.
    """
    plan.all_callbacks.on_train_begin()
    snapshot = Snapshot(plan.callbacks)
    # Begun only now: a callback may have set the weights.
    state, rounds = _resume(plan, start(), snapshot, rates, keras_model)
    keep(state, plan.files.store)
    model.assign(state.weights)

    def save(state, epoch):
        record = {"epoch": plan.history.epoch, "history": plan.history.history}
        record |= {"stopped": bool(keras_model.stop_training), "privacy": plan.ledger.to_json()}
        plan.files.save(rates.write(state), epoch, record, snapshot.capture())

    if plan.terms.mechanism is not None and plan.files.empty:
        # Else a run that is killed in its first round would draw other noise.
        save(state, rounds.start)
    accounts = Accounts(plan, state)
    for epoch in rounds:
        plan.all_callbacks.on_epoch_begin(epoch)
        state = rates.write(_with_weights(plan, model, state))
        number = int(state.round)
        accounts.check(number, float(state.optimizer.learning_rate))
        state, logs = run_round(
            engine,
            state,
            plan.clients,
            accounts.cohorts,
            seed=plan.seed,
            store=plan.files.store,
            last=epoch + 1 == plan.rounds.stop,
            shown=epoch + 1,
            context=plan.context,
        )
        # Before anybody sees what the round released, it is written down and done.
        accounts.write(state, number, logs["dropped"], engine.release)
        keep(state, plan.files.store)
        if plan.validate is not None and (epoch + 1) % plan.validation_freq == 0:
            logs |= {f"val_{name}": value for name, value in plan.validate(state).items()}
        state = _show_callbacks(plan, model, state, epoch, logs)
        keep(state, plan.files.store)
        last = epoch + 1 == plan.rounds.stop or keras_model.stop_training
        if last or (epoch + 1) % plan.checkpoint_freq == 0:
            save(state, epoch + 1)
        if keras_model.stop_training:  # as in Keras, not looked at before the first round is done
            break
    model.assign(state.weights)
    plan.all_callbacks.on_train_end()
    # EarlyStopping, for one, puts the best weights back at the end.
    keep(state._replace(weights=model.init()), plan.files.store)


def _show_callbacks(plan, model, state, epoch, logs):
    """Ends a round for the callbacks, which see and may set the Keras model's weights."""
    if not plan.callbacks:
        plan.all_callbacks.on_epoch_end(epoch, logs)
        return state
    model.assign(state.weights)
    plan.all_callbacks.on_epoch_end(epoch, logs)
    return _with_weights(plan, model, state)


def _with_weights(plan, model, state):
    """The state with the weights that the Keras model has, if callbacks may have set them."""
    return state._replace(weights=model.init()) if plan.callbacks else state


def _resume(plan, state, snapshot, rates, keras_model):
    """The state and the rounds to do: from the newest checkpoint if there is one."""
    resumed = plan.files.load(state)
    if resumed is None:
        return state, plan.rounds
    snapshot.restore(*resumed.callbacks)
    rates.read(resumed.state)
    plan.history.epoch = list(resumed.history["epoch"])
    plan.history.history.update(resumed.history["history"])
    keras_model.stop_training = stopped = resumed.history["stopped"]
    return resumed.state, range(resumed.epoch, resumed.epoch if stopped else plan.rounds.stop)


@contextlib.contextmanager
def lent(optimizer, model):
    """Makes an optimizer the model's own for a while: where callbacks look for the rate.

    What is saved meanwhile is the optimizer that the model was compiled with.
    """
    own = model.optimizer
    model.optimizer = optimizer
    if own is not None and own is not optimizer:
        optimizer.save_own_variables = own.save_own_variables
    try:
        yield
    finally:
        vars(optimizer).pop("save_own_variables", None)
        model.optimizer = own


class LearningRates:
    """The learning rates that live in two Keras optimizers, where callbacks set them.

    Attributes:
        client: The clients' Keras optimizer, or None.
        server: The server's.
        asked: The constant rates of both that the user has set, which are part of what a run is;
            None for schedules, and without clients' optimizer.
    """

    def __init__(self, client, server):
        self.client = client
        self.server = server
        self.asked = self._left = self._now()

    def begin(self):
        """Takes note of the rates that were set since the last `fit`."""
        compared = zip(self.asked, self._left, self._now(), strict=True)
        self.asked = tuple(asked if now == left else now for asked, left, now in compared)

    def end(self):
        """Takes note of the rates that a `fit` has come to."""
        self._left = self._now()

    def _now(self):
        return tuple(
            _value(optimizer) if optimizer is not None and _constant(optimizer) else None
            for optimizer in (self.client, self.server)
        )

    def write(self, state):
        """The state with the rates that the Keras optimizers have now."""
        if _constant(self.server):
            rate = tf.constant(_value(self.server), tf.float32)
            state = state._replace(optimizer=state.optimizer._replace(learning_rate=rate))
        if self.client is not None and _constant(self.client):
            state = state._replace(learning_rate=tf.constant(_value(self.client), tf.float32))
        return state

    def read(self, state):
        """Sets the Keras optimizers' rates to those of a state."""
        if _constant(self.server):
            self.server.learning_rate = float(state.optimizer.learning_rate)
        if self.client is not None and _constant(self.client):
            self.client.learning_rate = float(state.learning_rate)


def _constant(optimizer):
    return not callable(optimizer._learning_rate)


def _value(optimizer):
    return float(np.asarray(optimizer.learning_rate))


def callback_list(callbacks, model, rounds):
    """The `keras.callbacks.CallbackList` of a run."""
    found = keras.callbacks.CallbackList(callbacks, model=model)
    found.set_params({"epochs": rounds, "verbose": 0, "steps": 1})
    return found


def choose_sampler(clients, sampler, clients_per_round, client_fraction):
    """The sampler that the arguments of `fit` ask for; every client by default.

    Raises:
        ValueError: More than one is given, a number is out of range, or it is no sampler.
    """
    given = {
        name: value
        for name, value in (
            ("sampler", sampler),
            ("clients_per_round", clients_per_round),
            ("client_fraction", client_fraction),
        )
        if value is not None
    }
    if len(given) > 1:
        raise ValueError(
            "Give at most one of sampler, clients_per_round and client_fraction. "
            f"Received: {', '.join(f'{k}={v!r}' for k, v in given.items())}"
        )
    population = len(clients)
    if sampler is not None:
        if not isinstance(sampler, Sampler):
            raise ValueError(
                f"Expected a sampler such as tffed.data.Poisson(0.1). Received: sampler={sampler!r}"
            )
        return sampler
    if client_fraction is not None:
        share = fraction("client_fraction", client_fraction)
        return Uniform(max(1, round(share * population)))
    size = population if clients_per_round is None else integer(clients_per_round)
    if size is None or not 1 <= size <= population:
        raise ValueError(
            f"`clients_per_round` must be an integer from 1 to the {population} clients there are. "
            f"Received: clients_per_round={clients_per_round!r}"
        )
    return Uniform(size)
