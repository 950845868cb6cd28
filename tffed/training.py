"""The functional loop: rounds of an algorithm on an engine.

```python
model = tffed.from_keras(keras_model, loss, metrics=["accuracy"])
algorithm = tffed.fed_avg(batch_size=20)(
    model,
    client_optimizer=tffed.optimizers.from_keras(keras.optimizers.SGD(0.1), model.variables),
    server_optimizer=tffed.optimizers.from_keras(keras.optimizers.SGD(1.0), model.variables),
    aggregator=tffed.chain(tffed.mean()),
)
state = algorithm.init(model.init(), len(clients))
for state, metrics in tffed.run_rounds(
    tffed.Embedded(algorithm), state, clients, tffed.data.Uniform(10), rounds=50, seed=7
):
    print(metrics)
```
"""

import time
from collections.abc import Iterator

import tensorflow as tf

from tffed import random, tree
from tffed.evaluation import numbers
from tffed.store import ClientStore

_AT_A_TIME = 256  # clients whose states are read together


def run_rounds(engine, state, clients, sampler, *, rounds, seed, store=None) -> Iterator:
    """Runs rounds, yielding `(state, metrics)` after each.

    The cohort of a round and every random draw in it follow from `seed`, the number of the round
    (`state.round`) and the clients' ids alone, so going on from a saved state gives the same bits.

    Args:
        engine: Where the algorithm runs, e.g. `Embedded(algorithm)`.
        state: The `ServerState` to begin with.
        clients: A `ClientData`.
        sampler: Chooses each round's cohort, e.g. `tffed.data.Uniform(10)`.
        rounds: How many rounds to run.
        seed: Integer seed of the run.
        store: The `ClientStore` of the clients' own states; None: a new one, in memory.

    Yields:
        The new state and a dictionary of floats: the training loss and metrics over the cohort's
        local steps, what the aggregator reports, and `clients` that counted, `dropped` and
        `empty` ones, `examples`, `bytes_up`, `bytes_down` (of the whole cohort together: who is
        dropped or empty was asked, and answered) and `seconds`.

    Raises:
        FloatingPointError: Every client of a round sent a NaN or an infinity.
    """
    store = ClientStore() if store is None else store
    cohorts = Cohorts(clients, sampler, seed)
    for left in reversed(range(rounds)):
        state, metrics = run_round(
            engine, state, clients, cohorts, seed=seed, store=store, last=left == 0
        )
        yield state, metrics


class Cohorts:
    """Who takes part in which round: each cohort is drawn once, also where it is looked at before.

    Args:
        clients: A `ClientData`.
        sampler: What draws them.
        seed: The integer seed that they follow from.
    """

    def __init__(self, clients, sampler, seed):
        self._clients, self._sampler, self._seed = clients, sampler, seed
        self._drawn = {}

    def of(self, number):
        """The ids of the cohort of round `number`."""
        if number not in self._drawn:
            kept = {n: ids for n, ids in self._drawn.items() if n == number - 1}
            ids = self._sampler.sample(self._clients, seed=self._seed, round=number)
            if len(set(ids)) < len(ids):  # who counts twice moves a sum twice as far
                raise ValueError(
                    "Expected a cohort of distinct clients. Received: "
                    f"{next(cid for cid in ids if ids.count(cid) > 1)!r} more than once in round "
                    f"{number + 1}, from {self._sampler!r}. Let its `sample` return each id once."
                )
            self._drawn = kept | {number: ids}
        return self._drawn[number]


def renewed(engine, state, clients, store):
    """The state with which to go on over another population.

    An algorithm's own server state may speak of the clients of before (see `Algorithm.renew`).
    """
    if engine.algorithm.renew is None:
        return state
    known = [cid for cid in store if cid in clients]
    total = None
    for part in (known[k : k + _AT_A_TIME] for k in range(0, len(known), _AT_A_TIME)):
        held = engine.client_states(state, store, part).algorithm
        sums = tree.map(lambda leaf: tf.reduce_sum(leaf, 0), held)
        total = sums if total is None else tree.add(total, sums)
    weights, count = state.weights, len(clients)
    return state._replace(extra=engine.algorithm.renew(weights, total, count))


def run_round(engine, state, clients, cohorts, *, seed, store, last, shown=None, context=b""):
    """Runs the next round: the body of `run_rounds`, whose arguments it has.

    Args:
        cohorts: The `Cohorts`.
        last: Whether none is to follow; if one is, some of its cohort is read meanwhile.
        shown: The number that errors give the round; None: that of the state, counted from 1.
        context: What else the noise of the round is bound to (see `RoundNoise`).

    Returns:
        What `run_rounds` yields.
    """
    start = time.perf_counter()
    number = int(state.round)
    ids = cohorts.of(number)
    then = () if last else cohorts.of(number + 1)
    state, metrics = engine.run_round(
        state, clients, ids, seed=random.seed(seed), store=store, then=then, context=context
    )
    metrics = numbers(metrics)
    # With noise for clients who is dropped counts as zero, and no error may tell of it.
    shown_drops = not any(m.unit == "client" for m in engine.algorithm.mechanisms)
    if shown_drops and metrics["dropped"] and metrics["dropped"] + metrics["empty"] == len(ids):
        raise FloatingPointError(
            f"Every client's update in round {shown or number + 1} holds a NaN or an infinity. "
            f"Received: {metrics['dropped']:.0f} clients, all left out. Lower the client learning "
            "rate, clip gradients (clipnorm=…), or look for extreme values in the data."
        )
    metrics |= {
        "bytes_up": engine.bytes_up,
        "bytes_down": engine.bytes_down,
        "seconds": time.perf_counter() - start,
    }
    return state, metrics
