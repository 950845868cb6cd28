"""What the workers of the comparison share: the federation, the line protocol, memory.

A worker runs in its peer's own environment, so this file needs NumPy only. It is
started as `python WORKER.py FEDERATION.npz`, answers each line on its standard input with one line
of JSON on its standard output, and ends with its input:

    (when it is ready)  {"ready": {"package": "version", …}}
    round               {"seconds": …}       the next round has been run
    evaluate            {"accuracy": …, "moved": …}   on the test examples; arrays that have changed
    memory              {"megabytes": …}     peak resident memory, of its child processes too

What the peer prints goes to standard error.
"""

import json
import os
import resource
import sys
import time
from importlib import metadata

import numpy as np


class Federation:
    """The data, the model and the cohorts, the same for all peers.

    Args:
        path: An npz file, as `write` makes it.

    Attributes:
        model: `"2nn"` or `"cnn"`.
        x: `[clients, examples, …]` float32, in the shape that the model takes.
        y: `[clients, examples]` int32.
        x_test: `[N, …]` float32.
        y_test: `[N]` int32.
        cohorts: `[rounds, clients per round]`, the clients of each round.
        batch_size: Examples of a local step; an epoch is one pass.
        learning_rate: Of the clients' SGD.
        seed: Of the cohorts and of whatever the peer draws.
        weights: Initial weights, kernels and biases by layer, in the layout of Keras.
    """

    def __init__(self, path):
        with np.load(path) as file:
            found = dict(file)
        self.weights = [found.pop(f"weight_{i}") for i in range(_count(found))]
        for name in ("x", "y", "x_test", "y_test", "cohorts"):
            setattr(self, name, found[name])
        self.model = str(found["model"])
        self.batch_size, self.seed = int(found["batch_size"]), int(found["seed"])
        self.learning_rate = float(found["learning_rate"])


def _count(names):
    return sum(name.startswith("weight_") for name in names)


def write(path, weights, **values):
    """Writes a federation; `values` are the attributes of `Federation`."""
    np.savez(path, **{f"weight_{i}": weight for i, weight in enumerate(weights)}, **values)


def keras_model(keras, federation):
    """The federation's model, built by any Keras from 2.14 on, with the initial weights."""
    layers = keras.layers
    if federation.model == "2nn":
        stack = [layers.Dense(200, activation="relu") for _ in range(2)]
    else:
        stack = []
        for filters in (32, 64):
            stack.append(layers.Conv2D(filters, 5, padding="same", activation="relu"))
            stack.append(layers.MaxPooling2D())
        stack += [layers.Flatten(), layers.Dense(512, activation="relu")]
    inputs = keras.Input(federation.x.shape[2:])
    outputs = inputs
    for layer in [*stack, layers.Dense(10)]:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    model.set_weights(federation.weights)
    return model


class KerasEvaluation:
    """`accuracy` of the weights of a peer that has a Keras model in `self.model`."""

    def accuracy(self, federation):
        self.model.set_weights(self.weights())
        batches = np.array_split(federation.x_test, max(1, len(federation.x_test) // 1000))
        logits = np.concatenate([self.model(batch, training=False) for batch in batches])
        return float(np.mean(logits.argmax(-1) == federation.y_test))


def serve(make, packages):
    """Answers the lines on standard input until they end.

    Args:
        make: `(Federation) -> peer`. `peer.round(cohort)` runs a round to its end, and may return
            its seconds where the time of the call is not the round's; `peer.weights()` is the
            global model as a list of arrays like `Federation.weights`; `peer.accuracy(federation)`
            is the global model's share of test examples told right. A peer whose processes end
            with the round notes their `peak_memory`.
        packages: Names of the packages whose versions are told.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    federation = Federation(sys.argv[1])
    peer = make(federation)
    answers.write(json.dumps({"ready": {name: metadata.version(name) for name in packages}}) + "\n")
    cohorts, peaks = iter(federation.cohorts.tolist()), [memory()]
    for line in sys.stdin:
        command = line.strip()
        if command == "round":
            answer = {"seconds": _timed(peer.round, next(cohorts))}
            peaks.append(memory())
        elif command == "evaluate":
            pairs = zip(peer.weights(), federation.weights, strict=True)
            moved = sum(not np.array_equal(now, first) for now, first in pairs)
            answer = {"accuracy": peer.accuracy(federation), "moved": moved}
        elif command == "memory":
            answer = {"megabytes": max([*peaks, getattr(peer, "peak_memory", 0.0)])}
        else:
            raise ValueError(f"Expected round, evaluate or memory. Received: {command!r}")
        answers.write(json.dumps(answer) + "\n")


def _timed(run, cohort):
    start = time.perf_counter()
    seconds = run(cohort)
    return time.perf_counter() - start if seconds is None else seconds


def memory():
    """Peak resident memory of this process and, on Linux, of those it has started, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return own + sum(_peak(process) for process in _descendants(os.getpid()))


def _descendants(process):
    """Numbers of the processes below one, from Linux's /proc."""
    found = []
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children") as file:
                for child in file.read().split():
                    found += [child, *_descendants(child)]
    except OSError:  # it has ended meanwhile, or this is not Linux
        pass
    return found


def _peak(process):
    try:
        with open(f"/proc/{process}/status") as file:
            sizes = [line.split()[1] for line in file if line.startswith("VmHWM")]
    except OSError:
        return 0.0
    return sum(map(int, sizes)) * 1024 / 1e6
