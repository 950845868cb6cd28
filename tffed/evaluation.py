"""Evaluation of a global model: on pooled data, and client by client."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tffed import tree

PERCENTILES = (10, 25, 50, 75, 90)


class ClientEvaluation(NamedTuple):
    """How a model does on each client: the view that fairness is judged by.

    Attributes:
        ids: The clients evaluated.
        sizes: int64, their numbers of examples.
        metrics: `{name: float32 array}`, one value a client.
        pooled: `{name: float}` over all examples together.
    """

    ids: list
    sizes: np.ndarray
    metrics: dict
    pooled: dict

    def percentiles(self, percentiles=PERCENTILES) -> dict:
        """`{name: {percentile: float}}` over clients, each client counting once."""
        return {
            name: {p: float(np.percentile(values, p)) for p in percentiles}
            for name, values in self.metrics.items()
        }


class Evaluator:
    """Evaluates weights of one model, compiled once for each kind of data.

    Args:
        model: A `FunctionalModel`.
        batch_size: Examples in a batch; changes the result only by rounding.
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
        metrics = {name: np.concatenate([f[name].numpy() for f in found]) for name in found[0]}
        pooled = self._metrics(total)
        return ClientEvaluation(list(ids), np.concatenate(sizes), metrics, pooled)

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


def _any_length(leaf):
    return tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype)


def numbers(metrics):
    """Metrics as floats, the loss first; as an array where Keras gives one value a class."""
    values = {name: metrics[name].numpy() for name in ("loss", *metrics)}
    return {name: float(v) if v.ndim == 0 else v for name, v in values.items()}
