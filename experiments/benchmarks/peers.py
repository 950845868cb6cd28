"""The same federation in tffed and in its peers, timed side by side.

    python -m experiments.benchmarks.peers --output_dir=runs/peers

Fashion-MNIST, 100 IID clients of 600 examples, 10 a round, one local epoch in batches of 20, SGD
with rate 0.05, plain federated averaging of McMahan et al.'s two models: 2NN (784-200-200-10) and
CNN (1.66 million parameters). All peers begin with the same weights and see the same clients in the
same rounds. Each runs in a process and, but for tffed, in an environment of its own, which is made
when it is missing (some 2 GB a peer) from the pinned versions in peer_workers/.

One works at a time, and they take turns round by round; Flower, whose simulation is one call, runs
all its rounds in its first turn. The first rounds, which trace and compile, are not in the median.
Test accuracy after ten rounds tells whether all have computed the same. Writes peers.json and
peers.png.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

import tffed
from experiments.benchmarks import machine, peer_report
from experiments.benchmarks.peer_environments import (
    WORKERS,
    NotMeasured,
    default_cache,
    environment,
)
from experiments.benchmarks.peer_process import Worker
from experiments.benchmarks.peer_workers import peer_protocol

# A name of the table and of the worker; those but tffed have an environment of their own.
PEERS = {"tffed": "tffed", "pfl": "pfl", "TFF": "tff", "FedJAX": "fedjax", "Flower": "flower"}
_SHAPES = {
    "2nn": [(784, 200), (200, 200), (200, 10)],
    "cnn": [(5, 5, 1, 32), (5, 5, 32, 64), (3136, 512), (512, 10)],
}
_INPUTS = {"2nn": (784,), "cnn": (28, 28, 1)}
_CLIENTS, _COHORT = 100, 10
_TRAINING = {"batch_size": 20, "learning_rate": 0.05}
_ACCURACY_AFTER = 10


def main(argv=None):
    """Measures the peers on each model and writes what was found."""
    values = machine.parse(sys.argv if argv is None else argv, "peers", __doc__, _define)
    folder = Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    interpreters = {name: _interpreter(name, values) for name in values.peers}
    source = tffed.data.fashion_mnist(values.data_path)
    found = {}
    for model in values.models:
        rounds = values.warmup + values[f"rounds_{model}"].value
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{model}.npz"
            write_federation(path, model, source, rounds, values.seed)
            results = measure(model, path, interpreters, folder, rounds, values.warmup)
        found[model] = peer_report.summarise(results)
        print(f"\n{peer_report.table(model, found[model])}", flush=True)
    settings = {
        "clients": _CLIENTS, "clients_per_round": _COHORT, "local_epochs": 1, **_TRAINING,
        "seed": values.seed, "data": source.origin, "machine": machine.describe(),
    }
    peer_report.write(folder, settings, found)
    print(f"Written to {folder}: peers.json, peers.png and the peers' logs")


def _define(common):
    absl_flags.DEFINE_multi_enum("peers", list(PEERS), list(PEERS), "A peer.", **common)
    absl_flags.DEFINE_multi_enum("models", list(_SHAPES), list(_SHAPES), "A model.", **common)
    positive = {"lower_bound": 1, **common}
    absl_flags.DEFINE_integer("rounds_2nn", 18, "Rounds of the median, 2NN.", **positive)
    absl_flags.DEFINE_integer("rounds_cnn", 8, "Rounds of the median, CNN.", **positive)
    absl_flags.DEFINE_integer("warmup", 2, "Rounds before those.", **positive)
    absl_flags.DEFINE_integer("seed", 0, "Seed of everything.", lower_bound=0, **common)
    absl_flags.DEFINE_string("output_dir", "runs/peers", "Where results go.", **common)
    absl_flags.DEFINE_string("data_path", None, "Folder or npz file of Fashion-MNIST.", **common)
    absl_flags.DEFINE_string(
        "cache_dir", str(default_cache()), "Where the peers' environments are kept.", **common
    )
    absl_flags.DEFINE_string("python", None, "The peers' interpreter, a Python 3.11.", **common)


def _interpreter(name, values):
    """The Python that a peer's worker runs in, or the reason why there is none."""
    if name == peer_report.REFERENCE:
        return sys.executable
    try:
        return environment(PEERS[name], values.cache_dir, values.python)
    except NotMeasured as reason:
        print(f"{name} is not measured. {reason}", flush=True)
        return reason


def write_federation(path, model, source, rounds, seed):
    """Writes what all peers begin with.

    Args:
        path: The npz file to write.
        model: `"2nn"` or `"cnn"`.
        source: A `tffed.data.Source` of 28 by 28 images.
        rounds: Number of rounds to draw cohorts for.
        seed: Seed of the partition, the cohorts and the weights.
    """
    (x, y), (x_test, y_test) = source.train, source.test
    iid = tffed.data.partition(
        np.arange(len(x)), y, clients=_CLIENTS, scheme=tffed.data.IID(), seed=seed
    )
    rows = np.stack([iid[name][0] for name in iid.ids])
    cohorts = tffed.data.Uniform(_COHORT)
    peer_protocol.write(
        path,
        initial_weights(model, seed),
        model=model,
        x=x[rows].reshape(*rows.shape, *_INPUTS[model]),
        y=y[rows].astype(np.int32),
        x_test=x_test.reshape(-1, *_INPUTS[model]),
        y_test=y_test.astype(np.int32),
        cohorts=[cohorts.sample(_CLIENTS, seed=seed, round=number) for number in range(rounds)],
        seed=seed,
        **_TRAINING,
    )


def initial_weights(model, seed):
    """Kernels by layer, uniform as Glorot and Bengio 2010 have it, each followed by zero biases."""
    rng, weights = np.random.default_rng(seed), []
    for shape in _SHAPES[model]:
        limit = np.sqrt(6 / (np.prod(shape[:-2]) * sum(shape[-2:])))
        weights.append(rng.uniform(-limit, limit, shape).astype(np.float32))
        weights.append(np.zeros(shape[-1], np.float32))
    return weights


def measure(model, path, interpreters, folder, rounds, warmup):
    """Runs the rounds of all peers in turn.

    Args:
        model: `"2nn"` or `"cnn"`.
        path: The federation.
        interpreters: `{peer: Python of its environment, or a NotMeasured}`.
        folder: Where the logs go.
        rounds: Rounds in all.
        warmup: Rounds of these that come before the median.

    Returns:
        A result a peer; see `peer_report`.
    """
    race = _Race(model, path, interpreters, folder, rounds, warmup)
    try:
        race.each(race.start)
        for number in range(1, rounds + 1):
            race.each(race.turn)
            print(f"{model}: {number} of {rounds} rounds", flush=True)
    finally:
        for worker in race.workers.values():
            worker.close()
    return list(race.results.values())


class _Race:
    """The peers' workers and results on one model; arguments as `measure` has them."""

    def __init__(self, model, path, interpreters, folder, rounds, warmup):
        self.model, self.path, self.folder = model, path, folder
        self.interpreters, self.rounds = interpreters, rounds
        self.results = {n: {"peer": n, "warmup": warmup, "rounds": []} for n in interpreters}
        self.workers = {}

    def each(self, step):
        """Takes a step with each peer that is still measured, one after another."""
        for name in self.interpreters:
            if "reason" in self.results[name]:
                continue
            try:
                step(name)
            except NotMeasured as reason:
                print(f"{name} is not measured. {reason}", flush=True)
                self.results[name] = {"peer": name, "reason": str(reason)}
                if name in self.workers:
                    self.workers.pop(name).close()

    def start(self, name):
        if isinstance(self.interpreters[name], NotMeasured):
            raise self.interpreters[name]
        script = WORKERS / f"{PEERS[name]}_worker.py"
        log = self.folder / f"{PEERS[name]}_{self.model}.log"
        self.workers[name] = Worker(self.interpreters[name], script, self.path, log)
        self.results[name]["versions"] = self.workers[name].versions

    def turn(self, name):
        """Runs a round, and measures memory and accuracy after the tenth."""
        result, worker = self.results[name], self.workers[name]
        result["rounds"].append(worker.ask("round")["seconds"])
        if len(result["rounds"]) == min(self.rounds, _ACCURACY_AFTER):
            result["tested_after"] = len(result["rounds"])
            # Memory comes first: testing takes some too.
            result["megabytes"] = worker.ask("memory")["megabytes"]
            arrays = 2 * len(_SHAPES[self.model])
            result["accuracy"] = _accuracy(worker.ask("evaluate"), arrays)


def _accuracy(answer, arrays):
    """The accuracy that a worker tells, if training has changed the whole model."""
    if answer["moved"] < arrays:
        raise NotMeasured(
            f"Expected training to change the {arrays} arrays of the model. Received: "
            f"{answer['moved']} that have changed."
        )
    return answer["accuracy"]


if __name__ == "__main__":
    main()
