"""One process of the scaling benchmark: `python -m experiments.benchmarks.scaling_point REQUEST`.

The request is the JSON of the arguments of `measure`; the last line of output is its result's.
"""

import json
import sys
import time

import numpy as np

from experiments.benchmarks import machine
from tffed.quiet import notes_aside

_FEATURES, _CLASSES, _BATCH = 100, 10, 10
_SECONDS, _MOST_ROUNDS = 6, 15


def main(argv=None):
    """Measures what is asked for and prints it."""
    argv = sys.argv if argv is None else argv
    print(json.dumps(measure(**json.loads(argv[1]))))


def measure(clients_per_round, population, parameters, local_steps):
    """Trains an MLP 100-h-h-10 over clients that are made when they are read.

    Args:
        clients_per_round: Size of a cohort.
        population: Number of clients, of 20 random examples each.
        parameters: About how many the model has, at least 1,000.
        local_steps: Batches of 10 a client in a round.

    Returns:
        A dictionary of `parameters` (as many as there are), `seconds` (of each round but the
        first), `first_seconds`, and memory in MB: `before_mb` the first round, at its `peak_mb`.
    """
    with notes_aside():
        import keras

        import tffed
    width = hidden_width(parameters)
    model = keras.Sequential([
        keras.Input((_FEATURES,)),
        keras.layers.Dense(width, "relu"),
        keras.layers.Dense(width, "relu"),
        keras.layers.Dense(_CLASSES),
    ])
    recipe = tffed.fed_avg(local_steps=local_steps, batch_size=_BATCH)
    federated = tffed.Federated(model, recipe, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    federated.compile(keras.optimizers.SGD(0.01), loss=loss)
    clients = tffed.data.from_function(range(population), _client)

    def timed(number):
        start = time.perf_counter()
        federated.fit(
            clients,
            rounds=number + 1,
            initial_round=number,
            clients_per_round=clients_per_round,
            verbose=0,
        )
        return time.perf_counter() - start

    before, first, seconds = machine.peak_memory(), timed(0), []
    while not seconds or (sum(seconds) < _SECONDS and len(seconds) < _MOST_ROUNDS):
        seconds.append(timed(len(seconds) + 1))
    return {
        "parameters": model.count_params(),
        "seconds": seconds,
        "first_seconds": first,
        "before_mb": before,
        "peak_mb": machine.peak_memory(),
    }


def hidden_width(parameters):
    """The h for which an MLP 100-h-h-10 has about so many parameters: h**2 + 112 h + 10."""
    linear = _FEATURES + _CLASSES + 2
    return max(1, round((-linear + np.sqrt(linear**2 + 4 * (parameters - _CLASSES))) / 2))


def _client(number):
    rng = np.random.default_rng(number)
    return rng.random((2 * _BATCH, _FEATURES), np.float32), rng.integers(0, _CLASSES, 2 * _BATCH)


if __name__ == "__main__":
    main()
