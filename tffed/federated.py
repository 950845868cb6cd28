"""`Federated`: federated training of a Keras model with Keras's own verbs."""

import json
import warnings

import keras
import numpy as np
import tensorflow as tf

from tffed import assembly, random, tree, whereabouts
from tffed.algorithm import Recipe
from tffed.arguments import integer
from tffed.callbacks import check_callbacks, without_undefined
from tffed.checks import DataCheck, as_arrays, as_clients, check_rounds, is_clients
from tffed.data import ClientData
from tffed.data.leaf_values import column_names
from tffed.describe import describe
from tffed.engines.embedded import Embedded
from tffed.engines.packed import Packed
from tffed.evaluation import Evaluator, validation_sample
from tffed.fitting import (
    LearningRates,
    Plan,
    callback_list,
    choose_sampler,
    fit_rounds,
    lent,
)
from tffed.identity import compiled, fingerprint, population
from tffed.privacy.budget import plan
from tffed.privacy.ledger import Ledger, Record
from tffed.privacy.spent import mark
from tffed.privacy.unprotected import watched
from tffed.progress import RoundProgress
from tffed.resume import RunFiles
from tffed.store import ClientStore
from tffed.training import renewed


class Federated:
    """Trains a Keras model over clients whose data stays apart.

    ```python
    fed = tffed.Federated(model, tffed.fed_avg(local_epochs=1, batch_size=20), seed=7)
    fed.compile(client_optimizer=keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy",
                metrics=["accuracy"])
    history = fed.fit(clients, rounds=50, clients_per_round=10, validation_data=(x_test, y_test))
    model.save("global.keras")
    ```

    A round is what Keras calls an epoch. The model that is passed in is the one that is trained.

    Args:
        model: A built `keras.Model`.
        algorithm: A `Recipe`: `tffed.fed_avg(…)`, `fed_prox`, `fed_sgd`, `fed_opt`, `scaffold`.
        seed: Integer from which cohorts, shuffles and dropout follow.

    Attributes:
        model: The Keras model.
        client_optimizer: The Keras optimizer that `compile` was given.
        server_optimizer: The server's Keras optimizer.
        state: The `ServerState` after the last round, or None.
        history: The `keras.callbacks.History` of the last `fit`, or None.
        store: The `ClientStore` of the clients' own states, or None before the first `fit`.

    Raises:
        ValueError: `algorithm` is no recipe, or `seed` no integer that can seed.
    """

    def __init__(self, model, algorithm, *, seed=0):
        if not isinstance(algorithm, Recipe):
            raise ValueError(
                "Expected an algorithm such as tffed.fed_avg(local_epochs=1, batch_size=20). "
                f"Received: algorithm={algorithm!r}"
            )
        whereabouts.check("Federated(…)")
        random.seed(seed)
        self.model = model
        self.seed = integer(seed)
        self.state = None
        self.history = None
        self._recipe = algorithm
        self._parts = self._built = self._check = None
        self._budget = self._population = None
        self._run, self._seed = 0, self.seed
        self._left = set()  # marks of the secrets that earlier compiles had
        self.store = None
        self._ledger = Ledger()

    @property
    def ledger(self):
        """The `tffed.privacy.Ledger`: what all `fit`s so far have released."""
        return self._ledger

    def __reduce__(self):
        raise TypeError(
            "A Federated cannot be copied or pickled: it holds the secret of its noise, and the "
            "copy would spend the same privacy again, uncounted. Received: a copy of it. Save the "
            "model (model.save), go on from checkpoint_dir=… elsewhere, or make a new Federated."
        )

    __copy__ = __reduce__

    def __deepcopy__(self, memo):
        self.__reduce__()

    def compile(
        self,
        client_optimizer=None,
        server_optimizer=None,
        loss=None,
        metrics=None,
        *,
        loss_weights=None,
        weighted_metrics=None,
        class_weight=None,
        aggregator=None,
        batch_norm="average",
        lanes=None,
        jit_compile=True,
        processes=None,
        batched=None,
        payloads=False,
        privacy=None,
        noise_seed=None,
    ):
        """Sets what trains the model, as `keras.Model.compile` does.

        Called again after a `fit`, it begins a run of its own: rounds count from 0, and cohorts,
        shuffles and other draws are new ones, which follow from the seed too.

        Callbacks that read or set the learning rate (ReduceLROnPlateau, LearningRateScheduler) act
        on the server optimizer, which is `model.optimizer` during `fit`. Before and after, and in
        saved files, that is what the model was compiled with, else the client optimizer (the
        server's for `fed_sgd`); loss and metrics are those given here. The clients' rate can be
        set between rounds through `client_optimizer.learning_rate`.

        Args:
            client_optimizer: Keras optimizer of the local steps, afresh in each round; none for
                `fed_sgd`.
            server_optimizer: Keras optimizer of the server's step; `SGD(1.0)`, plain averaging, by
                default where the clients train.
            loss: As in `keras.Model.compile`; must average over the examples.
            metrics: As in `keras.Model.compile`.
            loss_weights: As in `keras.Model.compile`.
            weighted_metrics: As in `keras.Model.compile`.
            class_weight: `{class: weight}`, as in `keras.Model.fit`.
            aggregator: From `tffed.chain`; the mean weighted by examples by default.
            batch_norm: `"average"`, `"local"` or `"freeze"`; see `from_keras`.
            lanes: Clients trained at a time; one a processor by default. The result is the same.
            jit_compile: Whether to compile local training with XLA where it can be (see
                `Embedded`): dense models in batches of one size. Equal up to rounding.
            processes: Whether clients train in worker processes; by default those of larger models
                that XLA does not serve do (see `Embedded`). True gives the same bits on machines
                with other numbers of processors.
            batched: Whether clients that XLA serves train side by side; by default where there is a
                GPU. Equal up to rounding.
            payloads: Whether every message really becomes bytes and is read from them again, one
                client at a time (see `tffed.engines.packed.Packed`). What is counted and computed
                is the same without, and sooner.
            privacy: `tffed.privacy.dp_sgd(…)` for noise in the clients' steps; noise elsewhere is a
                stage of the aggregator.
            noise_seed: An integer from which all noise follows, for experiments that must be
                repeated. Such a run protects no one, and its privacy report says so.

        Raises:
            ValueError: Something is missing, contradictory or out of range.
        """
        if self.state is not None:  # other cohorts, shuffles and coins than those that were used
            self._run += 1
            self._seed = random.of_run(self.seed, self._run)
            self.ledger.close()
            self._left.add(_mark(self.state))
        self.state = self.store = None
        self._parts = parts = assembly.collect(
            self._recipe,
            self.model,
            client_optimizer,
            server_optimizer,
            aggregator,
            privacy,
            loss=loss,
            metrics=metrics,
            loss_weights=loss_weights,
            weighted_metrics=weighted_metrics,
            class_weight=class_weight,
            batch_norm=batch_norm,
        )
        if noise_seed is not None:
            random.seed(noise_seed)
            noise_seed = integer(noise_seed)
        self._noise_seed = noise_seed
        self._functional = parts.model
        self.client_optimizer = parts.client_optimizer
        self.server_optimizer = parts.server_optimizer
        self._rates = LearningRates(self.client_optimizer, self.server_optimizer)
        options = {"jit_compile": jit_compile, "processes": processes, "batched": batched}
        self._payloads = payloads
        self._settings = {
            "seed": self._seed,
            "aggregator": parts.aggregator.name,
            "batch_norm": batch_norm,
            "class_weight": describe(class_weight),
            **compiled(self.model),
            "privacy": None if privacy is None else repr(privacy),
            "noise_seed": noise_seed,
            "payloads": payloads,
            **options,
        }
        self._check = DataCheck(self.model, parts.model, self._check)
        self._options = {"lanes": lanes, "check": self._check, **options}
        self._use(assembly.build(self._parts))
        self._evaluator = Evaluator(parts.model)

    def fit(
        self,
        clients,
        rounds=1,
        *,
        clients_per_round=None,
        client_fraction=None,
        sampler=None,
        validation_data=None,
        validation_freq=1,
        validation_clients=None,
        callbacks=None,
        initial_round=0,
        checkpoint_dir=None,
        checkpoint_freq=1,
        verbose="auto",
        privacy=None,
    ):
        """Trains for `rounds - initial_round` rounds.

        A second call goes on from the state of the first. With `checkpoint_dir`, a run that was
        stopped, by whatever, goes on from its last checkpoint and ends with the bits of one that
        was not; call `fit` again with the same arguments.

        Args:
            clients: A `ClientData`, or a dictionary `{client id: (x, y)}`.
            rounds: Number of the last round, counted like `epochs` in Keras; with
                `checkpoint_dir`, from the start of the run that is there.
            clients_per_round: Size of each round's cohort, drawn uniformly without replacement.
            client_fraction: The same as a share of the population, rounded, at least one client.
            sampler: A sampler of `tffed.data` instead. By default every client takes part.
            validation_data: `(x, y[, sample_weight])`, or clients as above for pooled metrics and
                their 10th and 90th percentile over clients.
            validation_freq: Rounds from one validation to the next.
            validation_clients: On which of such clients to validate: a number, for a sample that
                stays the same, or ids. By default all, but at most 100.
            callbacks: One or more Keras callbacks; a round is an epoch to them.
            initial_round: The number of rounds to count as done.
            checkpoint_dir: Directory of the run's checkpoints.
            checkpoint_freq: Rounds from one checkpoint to the next.
            verbose: 0 silent, 1 lines and on a terminal a bar, 2 lines, "auto" is 1.
            privacy: A `tffed.privacy.Budget`: sets the noise multiplier where none was given, and
                ends the run before the round that would exceed it. It holds for later calls, too,
                until one gives another.

        Returns:
            The `keras.callbacks.History`: training loss and metrics, `val_…`, `clients`,
            `dropped`, `empty`, `examples`, `bytes_up`, `bytes_down` and `seconds` by round. Clients
            without examples (`empty`) are asked and answer: their bytes are counted.

        Raises:
            ValueError: An argument or the data is wrong; see the message.
            FloatingPointError: Every client of a round sent a NaN or an infinity.
            RuntimeError: It is called in a forked process, or inside a tf.function.
        """
        if self._parts is None:
            raise ValueError("Call compile(…) before fit(…): it sets the optimizers and the loss.")
        whereabouts.check("fit(…)")
        rounds, initial_round, validation_freq, checkpoint_freq = check_rounds(
            rounds, initial_round, validation_freq, checkpoint_freq
        )
        clients = self._check.population(clients)
        self._try(clients)
        sampler = choose_sampler(clients, sampler, clients_per_round, client_fraction)
        callbacks = check_callbacks(callbacks)
        if is_clients(validation_data):
            validation_data = as_clients(validation_data)
        validate = self._validator(validation_data, validation_clients)
        self._rates.begin()
        identity = None
        if checkpoint_dir or self._algorithm.mechanisms:
            identity = fingerprint(
                self._recipe,
                self._settings,
                clients,
                sampler,
                self._rates,
                self.model,
                validation_data,
            )
        with RunFiles(checkpoint_dir, identity, self.store) as files:
            beside = watched(clients, validation_data, callbacks)
            spending, stop = self._protect(
                clients, sampler, initial_round, rounds, files, privacy, beside
            )
            history = keras.callbacks.History()
            shown = RoundProgress(rounds, bar=None if verbose in ("auto", 1) else False)
            everything = [
                *map(without_undefined, callbacks),
                history,
                *([shown] if verbose else []),
            ]
            planned = Plan(
                clients=clients,
                sampler=sampler,
                rounds=range(initial_round, stop),
                validate=validate,
                validation_freq=validation_freq,
                checkpoint_freq=checkpoint_freq,
                callbacks=callbacks,
                all_callbacks=callback_list(everything, self.model, rounds),
                history=history,
                files=files,
                seed=self._seed,
                terms=spending.terms,
                ledger=self.ledger,
                budget=spending.budget,
                exposures=spending.exposures,
                context=json.dumps(identity, sort_keys=True).encode(),
            )
            self.model.stop_training = False
            try:
                with lent(self.server_optimizer, self.model):
                    fit_rounds(
                        planned,
                        self._engine,
                        self._functional,
                        lambda: self._start(clients),
                        self._rates,
                        self.model,
                        self._keep,
                    )
            finally:
                self._rates.end()
                shown.close()
                if self.state is not None:
                    self._functional.assign(self.state.weights)
        self.history = history
        return history

    def evaluate(self, x, y=None, sample_weight=None, *, ids=None):
        """Evaluates the global model, on pooled data or client by client.

        Args:
            x: Features; or a `ClientData` or a dictionary `{client id: (x, y)}` (a client with
                weights or statistics of its own is evaluated with those).
            y: Targets, if `x` holds features.
            sample_weight: As in `keras.Model.evaluate`.
            ids: The clients to evaluate; all by default.

        Returns:
            `{metric: float}`, NaN where it is undefined; or a `ClientEvaluation`, whose
            `percentiles()` are the fairness view.

        Raises:
            ValueError: `compile` was not called, `y` is missing, or arguments do not go together.
        """
        if self._parts is None:
            raise ValueError("Call compile(…) before evaluate(…): it sets the loss and metrics.")
        whereabouts.check("evaluate(…)")
        weights = self._functional.init()
        if is_clients(x) and y is None and sample_weight is None:
            x = self._check.population(x)
            self._try(x)
            return self._evaluate_clients(weights, x, list(x.ids) if ids is None else list(ids))
        if isinstance(x, ClientData) or y is None or ids is not None:
            given = {"y": y, "sample_weight": sample_weight, "ids": ids}
            given = ", ".join(f"{k}={'None' if v is None else '…'}" for k, v in given.items())
            raise ValueError(
                "Expected evaluate(x, y[, sample_weight]), or evaluate(clients[, ids=…]) with a "
                "ClientData or a dictionary {client id: (x, y)}. "
                f"Received: x of type {type(x).__name__}, {given}."
            )
        arrays = as_arrays((x, y, sample_weight), self._check)
        self._try_on(arrays)
        return self._evaluator.pooled(weights, arrays)

    def predict(self, x, **arguments):
        """`model.predict(x)` of the global model; columns of tables are matched by name."""
        leaves = tf.nest.flatten(x)
        if self._check is not None and any(map(column_names, leaves)):
            x = self._check.read((x, np.zeros(len(leaves[0]))), "what to predict for")[0]
        return self.model.predict(x, **arguments)

    def privacy_report(self, delta=None, *, relation=None, accountant=None):
        """What may be claimed of all rounds so far, and on what it rests.

        Args:
            delta: δ; by default that of the last `fit`'s budget.
            relation: `"add_or_remove"` (the default where cohorts are Poisson samples),
                `"zero_out"` (the default elsewhere: one unit's contribution is set to zero) or
                `"replace_one"` (it becomes another's, which changes a sum by twice as much).
            accountant: `"rdp"`, `"pld"`, or None for the tighter one that serves.

        Returns:
            A `tffed.privacy.PrivacyReport`; `print` shows it, `plot(path)` draws ε by round.

        Raises:
            ValueError: No δ, or no noise was ever added, or nothing true is known to say.
        """
        from tffed.privacy.report import report

        if delta is None and self._budget is not None:
            delta = self._budget.delta
        if delta is None:
            raise ValueError(
                "Expected δ, which is customarily below 1 / number of units. Received: "
                "delta=None, and no fit had a budget. Give e.g. privacy_report(delta=1e-5)."
            )
        return report(self.ledger, delta, relation=relation, accountant=accountant)

    def _use(self, built):
        self._built, self._algorithm = built, built.algorithm
        if self._payloads:
            self._engine = Packed(built.algorithm, check=self._check)
        else:
            self._engine = Embedded(built.algorithm, **self._options)

    def _protect(self, clients, sampler, initial_round, rounds, files, budget, beside):
        """`(Spending, round to stop before)`; puts in the noise that the budget asks for."""
        done = files.peek(rounds)
        first = 0 if self.state is None else int(self.state.round)
        budget = self._budget = self._budget if budget is None else budget
        if done is not None:
            initial_round, first = done["epoch"], done["round"]
            self._ledger = self.ledger.resumed(done["privacy"])
            for record in done["noted"]:
                self.ledger.record(Record.from_json(record))
        found = plan(
            self._parts,
            self._built,
            clients=clients,
            sampler=sampler,
            seed=self._seed,
            first=first,
            rounds=max(0, rounds - initial_round),
            ledger=self.ledger,
            budget=budget,
            fixed_noise=self._noise_seed is not None,
            resumed=done is not None,
            server_rate=float(np.asarray(self.server_optimizer.learning_rate)),
            watched=beside,
        )
        if found.built is not self._built:
            self._use(found.built)
        if found.terms.mechanism is not None:
            mark(self.model, self.ledger)
        stop = initial_round + found.rounds
        if stop < rounds:
            warnings.warn(f"{budget} ends the run after round {stop} of {rounds}.", stacklevel=3)
        return found, stop

    def _try(self, clients):
        """Tries the model on some of the first client's examples, before anything is traced."""
        first = next(cid for cid in clients.ids if clients.sizes([cid])[0])
        self._try_on(clients[first])

    def _try_on(self, arrays):
        self._functional.zeros(tree.map(lambda leaf: tf.constant(leaf[:3]), arrays))

    def _keep(self, state, store):
        self.state, self.store = state, store

    def _start(self, clients):
        """The state to go on from: the last one, with the Keras model's present weights."""
        weights = self._functional.init()
        before, self._population = self._population, population(clients)
        if self.state is None:
            state = self._algorithm.init(weights, len(clients))
            if self._noise_seed is not None and tf.is_tensor(state.noise):
                state = state._replace(noise=random.secret(self._noise_seed))
            return state
        state = self.state._replace(weights=weights)
        if _mark(state) in self._left - {None}:
            raise ValueError(
                "Expected a state of the present compile: those from before have the secret of "
                "cohorts that are counted already. Received: fed.state from before compile. Set "
                "the model's weights instead."
            )
        if before == self._population:
            return state
        if self._algorithm.mechanisms:
            warnings.warn(
                "The clients' ids are other ones than in the fit before. Rounds are counted by id: "
                "persons who have another id now are protected less than the report says.",
                stacklevel=5,
            )
        return renewed(self._engine, state, clients, self.store)

    def _validator(self, data, whom):
        if is_clients(data):
            data = self._check.population(data)
            ids, told = validation_sample(data, whom, self.seed), set()
            return lambda state: self._validate_clients(state, data, ids, told)
        if whom is not None:
            raise ValueError(
                "Expected validation_clients only where validation_data are clients. Received: "
                f"validation_clients={whom!r}, validation_data of type {type(data).__name__}."
            )
        if data is None:
            return None
        arrays = tree.map(tf.convert_to_tensor, as_arrays(data, self._check))
        return lambda state: self._evaluator.pooled(state.weights, arrays)

    def _validate_clients(self, state, clients, ids, told):
        found = self._evaluate_clients(state.weights, clients, ids)
        if not told and found.notes():
            told.update(found.notes())
            warnings.warn(
                f"The percentiles of validation leave out: {'; '.join(found.notes())}.",
                stacklevel=2,
            )
        spread = found.percentiles((10, 90)).items()
        return found.pooled | {f"{name}_p{p}": v for name, by in spread for p, v in by.items()}

    def _evaluate_clients(self, weights, clients, ids):
        if not ids:
            raise ValueError(
                "Expected at least one client to evaluate. Received: ids=[]. Leave ids out to "
                "evaluate all."
            )
        state = self._algorithm.init(weights, len(clients))
        store = self.store if self.store is not None else ClientStore()
        return self._evaluator.clients(
            weights,
            clients,
            ids,
            personal=self._algorithm.personal,
            states=lambda part: self._engine.client_states(state, store, part),
        )


def _mark(state):
    """What tells the secrets of two states apart; None where nothing is secret."""
    if not tf.is_tensor(state.noise) or random.known(state.noise):
        return None
    return random.bound(state.noise, "mark").numpy().tobytes()
