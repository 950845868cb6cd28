"""Evaluation of a global model: on pooled data, and client by client."""

import warnings
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tffed import tree
from tffed.data.schemes import is_count

PERCENTILES = (10, 25, 50, 75, 90)
VALIDATION_CLIENTS = 100
_STREAM = 9  # keeps the draw of clients to validate on apart from all other random numbers


class ClientEvaluation(NamedTuple):
    """How a model does on each client: the view that fairness is judged by.

    A metric that a client's examples leave undefined (the AUC of one class, anything of no
    examples) is NaN there, left out of `mean` and `percentiles`, and counted in `undefined`.

    Attributes:
        ids: The clients evaluated.
        sizes: int64, their numbers of examples.
        metrics: `{name: float32 array}`, one value a client; a row where a metric has several.
        pooled: `{name: float}` over all examples together, each counting once.
    """

    ids: list
    sizes: np.ndarray
    metrics: dict
    pooled: dict

    @property
    def undefined(self) -> dict:
        """`{name: number of clients}` where it is undefined; by entry where there are several."""
        counts = {name: np.isnan(values).sum(0) for name, values in self.metrics.items()}
        return {name: c.tolist() for name, c in counts.items() if np.any(c)}

    def mean(self) -> dict:
        """`{name: float}`, the mean over the clients where it is defined, each counting once."""
        found = {name: _ignoring(np.nanmean, v) for name, v in self.metrics.items()}
        return {name: _plain(value) for name, value in found.items()}

    def percentiles(self, percentiles=PERCENTILES) -> dict:
        """`{name: {percentile: float}}` over the clients where it is defined, each counting once.

        By entry, as an array, where a metric has several.
        """
        return {
            name: {p: _plain(_ignoring(np.nanpercentile, values, p)) for p in percentiles}
            for name, values in self.metrics.items()
        }

    def notes(self) -> list:
        """Sentences on what the numbers over clients leave out."""
        number, empty = len(self.ids), int(np.sum(np.asarray(self.sizes) == 0))
        found = [f"{empty} of {number} clients without examples"] if empty else []
        for name, count in self.undefined.items():
            if np.any(np.asarray(count) > empty):
                found.append(f"{name} undefined for {count} of {number} clients")
        return found

    def __repr__(self):
        spread, mean = self.percentiles(), self.mean()
        lines = [f"{len(self.ids)} clients, {int(np.sum(self.sizes))} examples"]
        for name in self.metrics:
            values = {"pooled": self.pooled.get(name, np.nan), "mean of clients": mean[name]}
            values |= {f"p{p}": v for p, v in spread[name].items()}
            lines.append(f"{name}: {', '.join(f'{k} {_shown(v)}' for k, v in values.items())}")
        return "\n".join([*lines, *self.notes()])


def _ignoring(function, values, *arguments):
    """A function of NumPy that ignores NaN, over clients; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all are NaN
        return function(np.asarray(values), *arguments, axis=0)


def _plain(value):
    return float(value) if np.ndim(value) == 0 else value


def _shown(value):
    return np.array2string(np.asarray(value), precision=4)


class Evaluator:
    """Evaluates weights of one model, compiled once for each kind of data.

    Args:
        model: A `FunctionalModel`.
        batch_size: Examples in a batch; changes the result only by rounding, but for what gives a
            whole batch one value: some losses, penalties added in a call, functions of a user.
    """

    def __init__(self, model, batch_size=256):
        self._model = model
        self._batch_size = batch_size
        self._compiled = {}

    def pooled(self, weights, arrays) -> dict:
        """`{metric: float}` over all examples of `(x, y[, sample_weight])` arrays."""
        arrays = tree.map(tf.convert_to_tensor, arrays)
        rows = tf.range(tf.shape(tf.nest.flatten(arrays)[0])[0])
        return self._metrics(self._run("pooled", self._pooled, weights, arrays, rows))

    def clients(self, weights, clients, ids, *, personal, states) -> ClientEvaluation:
        """Evaluates client by client.

        Args:
            weights: The global `ModelWeights`.
            clients: A `ClientData`.
            ids: Whom to evaluate.
            personal: `(weights, client_state) -> weights` of the algorithm.
            states: `(ids) -> ` the clients' states, stacked.
        """
        found, sizes, total = [], [], None
        for start in range(0, len(ids), 64):
            part = ids[start : start + 64]
            arrays, rows, counts = clients.examples(part)
            arrays = tree.map(tf.convert_to_tensor, arrays)
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

            def body(weights, arrays, rows, offsets, states):
                return self._by_client(weights, arrays, rows, offsets, states, personal)

            data = (arrays, tf.constant(rows), tf.constant(offsets), states(part))
            sums, reports = self._run("clients", body, weights, *data)
            total = sums if total is None else tree.add(total, sums)
            found.append(reports)
            sizes.append(counts)
        sizes = np.concatenate(sizes)
        metrics = {name: np.concatenate([f[name].numpy() for f in found]) for name in found[0]}
        for values in metrics.values():
            values[sizes == 0] = np.nan
        return ClientEvaluation(list(ids), sizes, metrics, self._metrics(total))

    def _metrics(self, sums):
        return numbers(self._run("report", self._model.report, sums))

    def _run(self, kind, body, fixed, *data):
        """`body(fixed, *data)`, compiled for data of any leading dimension."""
        specs = (tree.spec(fixed), *tree.map(_any_length, data))
        key = (kind, str(specs))
        if key not in self._compiled:
            function = tf.function(body, autograph=False)
            self._compiled[key] = function.get_concrete_function(*specs)
        return self._compiled[key](fixed, *data)

    def _pooled(self, weights, arrays, rows):
        count, size = tf.size(rows), self._batch_size

        def body(start, sums):
            here = rows[start : tf.minimum(start + size, count)]
            batch = tree.map(lambda a: tf.gather(a, here), arrays)
            return start + size, tree.add(sums, self._model.evaluate(weights, batch))

        return tf.while_loop(
            lambda start, _: start < count,
            body,
            (tf.constant(0), self._model.zeros(arrays)),
            parallel_iterations=1,
        )[1]

    def _by_client(self, weights, arrays, rows, offsets, states, personal):
        def one(k):
            state = tree.map(lambda leaf: leaf[k], states)
            mine = rows[offsets[k] : offsets[k + 1]]
            return self._pooled(personal(weights, state), arrays, mine)

        numbers = tf.range(tf.size(offsets) - 1)
        like = tree.spec(self._model.zeros(arrays))
        sums = tf.map_fn(one, numbers, parallel_iterations=1, fn_output_signature=like)
        first = tree.map(lambda s: s[0], sums)
        reports = tf.map_fn(
            self._model.report, sums, fn_output_signature=tree.spec(self._model.report(first))
        )
        return tree.map(lambda s: tf.reduce_sum(s, 0), sums), reports


def validation_sample(clients, asked, seed) -> list:
    """Whom to validate on, the same in every round and after a resume.

    Args:
        clients: The `ClientData`.
        asked: How many, or their ids; None: all, of more than `VALIDATION_CLIENTS` that many.
        seed: Integer seed of the run, from which a sample follows.

    Raises:
        ValueError: No clients are asked for, or more than there are.
    """
    population = len(clients)
    if asked is None:
        asked = min(population, VALIDATION_CLIENTS)
        if asked < population:
            warnings.warn(
                f"Validation reads a fixed sample of {asked} of the {population} clients in each "
                "round. Choose with fit(…, validation_clients=…), a number or ids; "
                "evaluate(clients) reads all.",
                stacklevel=3,
            )
    if isinstance(asked, list | tuple | range | np.ndarray) and len(asked):
        ids = list(asked)
        clients.subset(ids)  # names one that is unknown
        return ids
    if not is_count(asked) or asked > population:
        raise ValueError(
            f"`validation_clients` must be a number from 1 to the {population} clients there are, "
            f"or a list of their ids. Received: validation_clients={asked!r}"
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,)))
    places = np.sort(rng.choice(population, int(asked), replace=False))
    return [clients.ids[int(place)] for place in places]


def _any_length(leaf):
    return tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype)


def numbers(metrics):
    """Metrics as floats, the loss first; as an array where Keras gives one value a class."""
    values = {name: metrics[name].numpy() for name in ("loss", *metrics)}
    return {name: float(v) if v.ndim == 0 else v for name, v in values.items()}
