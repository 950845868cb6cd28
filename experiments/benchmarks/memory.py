"""Peak memory of a run with 10 and with 1,000 clients per round.

    python -m experiments.benchmarks.memory

The same population of 1,000 clients, the same data and model (MLP 784-200-200-10, 199,210
parameters, 0.8 MB a client's update), FedAvg for three rounds. Each run has a process of its own,
whose peak resident memory the operating system reports. The data are random and small, so that
reading them does not hide what a round takes; the memory before the first round is shown too.
"""

import json
import sys

import numpy as np

from experiments import startup
from experiments.benchmarks import machine

_POPULATION, _EXAMPLES, _ROUNDS = 1000, 20, 3
_COHORTS = (10, 1000)


def main(argv=None):
    """Measures each cohort in a process of its own and prints the peaks and their ratio."""
    argv = sys.argv if argv is None else argv
    if len(argv) == 2:
        print(json.dumps(measure(int(argv[1]))))
        return
    peaks = []
    print("| clients per round | before the first round, MB | peak, MB |\n|---|---|---|")
    for cohort in _COHORTS:
        before, peak = machine.in_process("experiments.benchmarks.memory", cohort)
        peaks.append(peak)
        print(f"| {cohort:,} | {before:.0f} | {peak:.0f} |", flush=True)
    few, many = _COHORTS
    print(f"\nPeak at {many:,} clients per round is {peaks[1] / peaks[0]:.3f} of that at {few}.")


def measure(cohort):
    """Trains with a cohort of this size; `(before, peak)` of this process's memory in MB."""
    startup.start()
    import keras
    from keras import layers

    import tffed

    rng = np.random.default_rng(0)
    x = rng.random((_POPULATION * _EXAMPLES, 784), np.float32)
    y = rng.integers(0, 10, len(x))
    scheme = tffed.data.IID()
    clients = tffed.data.partition(x, y, clients=_POPULATION, scheme=scheme, seed=0)
    hidden = [layers.Dense(200, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10)])
    federated = tffed.Federated(model, tffed.fed_avg(local_epochs=1, batch_size=10), seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    federated.compile(keras.optimizers.SGD(0.1), loss=loss)
    before = machine.peak_memory()
    federated.fit(clients, rounds=_ROUNDS, clients_per_round=cohort, verbose=0)
    return before, machine.peak_memory()


if __name__ == "__main__":
    main()
