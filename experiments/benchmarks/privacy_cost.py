"""What example-level privacy costs: a training step with clipping and noise, beside one without.

    python -m experiments.benchmarks.privacy_cost --output_dir=runs/privacy_cost

One step on 32 examples inside a compiled training loop, for McMahan et al.'s MLP 784-200-200-10
("2nn", in a graph and with XLA) and CNN (5x5x32, 5x5x64, 512), a character LSTM, and an MLP that
uses a layer twice, for which there are no ghost norms. Each is measured without privacy, with
clipping only, with clipping and noise, and with tensorflow-privacy as shipped, whose optimizer
takes the jacobian of the losses. Then 200,000 normal numbers are drawn, by this package and by
TensorFlow. Each model has a process of its own, with one thread a kernel, as a lane has; its
designs take turns. Ratios are medians of those within a turn. Data are random. Writes
privacy_cost.json and privacy_cost.txt.
"""

import functools
import json
import sys
import time
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from experiments import startup
from experiments.benchmarks import machine
from experiments.benchmarks.report import ratio

_BATCH, _DRAWN = 32, 200_000
_TARGETS = {"2nn": 1.25, "2nn, XLA": 1.25, "cnn": 1.25}
_NOISE_TARGET = 1.2
# name: (steps in the loop, steps of tensorflow-privacy as shipped)
_STEPS = {
    "2nn": (20, 4),
    "2nn, XLA": (20, 4),
    "cnn": (4, 1),
    "char_lstm": (2, 1),
    "shared": (20, 4),
    "normal": (20, 20),
}


def main(argv=None):
    """Measures each model in a process of its own, and writes the table."""
    argv = sys.argv if argv is None else argv
    if len(argv) == 2 and argv[1].startswith("["):
        print(json.dumps(measure(*json.loads(argv[1]))))
        return
    values = machine.parse(argv, "privacy_cost", __doc__, _define)
    folder = Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for name in values.workloads:
        request = [name, values.repetitions]
        records[name] = machine.in_process("experiments.benchmarks.privacy_cost", request)
        print(f"measured {name}", flush=True)
    table = text_table(records)
    found = {"machine": machine.describe(), "batch": _BATCH, "seconds": records}
    (folder / "privacy_cost.json").write_text(json.dumps(found, indent=1))
    (folder / "privacy_cost.txt").write_text(table)
    print(f"\n{table}\nWritten to {folder}: privacy_cost.json, privacy_cost.txt")


def _define(common):
    absl_flags.DEFINE_integer("repetitions", 15, "Turns of each design.", lower_bound=1, **common)
    absl_flags.DEFINE_string("output_dir", "runs/privacy_cost", "Where results go.", **common)
    absl_flags.DEFINE_multi_enum(
        "workloads", list(_STEPS), list(_STEPS), "What to measure.", **common
    )


def measure(name, repetitions):
    """Times the designs of one workload in turns; `{design: seconds of a step by turn}`."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    startup.start()
    designs = _draws() if name == "normal" else _designs(name)
    seconds = {design: [] for design in designs}
    for turn in range(repetitions + 1):  # the first one compiles
        for design, (run, steps) in designs.items():
            begun = time.perf_counter()
            tf.nest.flatten(run())[0].numpy()
            if turn:
                seconds[design].append((time.perf_counter() - begun) / steps)
    return seconds


def _model(name):
    """`(Keras model, examples)` of a workload."""
    import keras
    from keras import layers as L

    rng, hidden = np.random.default_rng(0), functools.partial(L.Dense, activation="relu")
    count = _BATCH * _STEPS[name][0]
    if name == "char_lstm":
        layers = [keras.Input((80,), dtype="int32"), L.Embedding(90, 8), L.LSTM(256), L.Dense(90)]
        return keras.Sequential(layers), rng.integers(0, 90, (count, 80)).astype(np.int32)
    if name == "cnn":
        kernel = functools.partial(L.Conv2D, padding="same", activation="relu")
        layers = [keras.Input((28, 28, 1)), kernel(32, 5), L.MaxPooling2D(), kernel(64, 5)]
        layers += [L.MaxPooling2D(), L.Flatten(), hidden(512), L.Dense(10)]
        return keras.Sequential(layers), rng.random((count, 28, 28, 1), np.float32)
    twice = hidden(200)
    middle = [twice, twice] if name == "shared" else [hidden(200)]
    layers = [keras.Input((784,)), hidden(200), *middle, L.Dense(10)]
    x = layers[0]
    for layer in layers[1:]:
        x = layer(x)
    return keras.Model(layers[0], x), rng.random((count, 784), np.float32)


def _designs(name):
    """`{design: (function, steps)}`."""
    import keras

    import tffed
    from tffed.privacy.example_level import dp_sgd, private_gradients

    model, x = _model(name)
    y = np.random.default_rng(1).integers(0, 10, len(x)).astype(np.int32)
    pure = tffed.from_keras(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    grads = {
        "plain": pure.grad,
        "clipped": private_gradients(pure, model, dp_sgd(1.0, 0.0)).grad,
        "clipped and noised": private_gradients(pure, model, dp_sgd(1.0, 1.0)).grad,
        "as shipped": _as_shipped(model),
    }
    xla, (steps, few) = name.endswith("XLA"), _STEPS[name]
    found = {}
    for design, grad in grads.items():
        count = few if design == "as shipped" else steps
        found[design] = (_loop(pure, grad, x, y, count, xla), count)
    return found


def _loop(pure, grad, x, y, steps, xla):
    """A function that trains for some steps by such gradients."""
    import keras
    import tensorflow as tf

    import tffed
    from tffed import random

    optimizer = tffed.optimizers.from_keras(keras.optimizers.SGD(0.01), pure.variables)

    @tf.function(autograph=False, jit_compile=xla)
    def train(weights, x, y, secret):
        def step(i, weights, state):
            count, seed = tf.shape(y)[0], random.seed(0)
            if xla:
                places = i * _BATCH + tf.range(_BATCH)
                mask = tf.cast(places < count, tf.float32)
            else:  # any number of examples, as the last batch needs
                places, mask = tf.range(i * _BATCH, tf.minimum((i + 1) * _BATCH, count)), None
            batch = tf.gather(x, places), tf.gather(y, places)
            new, _, _ = grad(weights, batch, seed, mask, True, random.fold_in(secret, i))
            state, trainable = optimizer.step(state, weights.trainable, new)
            return i + 1, weights._replace(trainable=trainable), state

        start = (tf.constant(0), weights, optimizer.init(weights.trainable))
        end = tf.while_loop(lambda i, *_: i < steps, step, start, parallel_iterations=1)
        return end[1].trainable

    weights, x, y, secret = pure.init(), tf.constant(x), tf.constant(y), random.secret()
    return lambda: train(weights, x, y, secret)


def _as_shipped(model):
    """The gradient of tensorflow-privacy's optimizer by its own means, without noise."""
    import keras
    import tensorflow as tf

    from tffed.privacy import tf_privacy

    module = tf_privacy.load("optimizers.dp_optimizer_keras")
    query = tf_privacy.load("dp_query.gaussian_query").GaussianSumQuery(1.0, 0.0)
    named = type("SGD", (keras.optimizers.SGD,), {"_name": property(lambda self: self.name)})
    optimizer = module.make_keras_generic_optimizer_class(named)(query)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)

    def grad(weights, batch, *_):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(weights.trainable)
            mapping = [*zip(model.trainable_variables, weights.trainable, strict=True)]
            with keras.StatelessScope(mapping):
                losses = loss(batch[1], model(batch[0], training=True))
        pairs = optimizer._compute_gradients(losses, list(weights.trainable), tape=tape)
        return tuple(tf.convert_to_tensor(g) for g, _ in pairs), (), ()

    return grad


def _draws():
    """Designs that draw numbers, as often as a loop has steps."""
    import tensorflow as tf

    from tffed import random

    draws = {
        "normal": lambda seed: random.normal([_DRAWN], seed),
        "TensorFlow": lambda seed: tf.random.stateless_normal([_DRAWN], seed, alg="philox"),
    }
    steps, secret, found = _STEPS["normal"][0], random.secret(), {}
    for xla in (False, True):
        for name, draw in draws.items():

            @tf.function(autograph=False, jit_compile=xla)
            def run(secret, draw=draw):
                def step(i, total):
                    return i + 1, total + draw(random.fold_in(secret, i))

                start = (tf.constant(0), tf.zeros([_DRAWN]))
                return tf.while_loop(lambda i, _: i < steps, step, start, parallel_iterations=1)[1]

            found[f"{name}, XLA" if xla else name] = (functools.partial(run, secret), steps)
    return found


def text_table(records):
    """The figures as text.

    Args:
        records: `{workload: {design: seconds of a step by turn}}`.
    """
    lines = [
        f"{'model':10} {'plain ms':>9} {'clipped':>8} {'target':>7} {'with noise':>11} "
        f"{'as shipped':>11} {'clipped / as shipped':>21}"
    ]
    for name, seconds in records.items():
        if name == "normal":
            continue
        ratios = {k: ratio(v, seconds["plain"])["paired"] for k, v in seconds.items()}
        target = f"{_TARGETS[name]:.2f}" if name in _TARGETS else ""
        over = ratio(seconds["clipped"], seconds["as shipped"])["paired"]
        lines.append(
            f"{name:10} {np.median(seconds['plain']) * 1e3:9.2f} {ratios['clipped']:8.2f} "
            f"{target:>7} {ratios['clipped and noised']:11.2f} {ratios['as shipped']:11.1f} "
            f"{over:21.2f}"
        )
    if "normal" in records:
        lines += ["", f"{_DRAWN:,} normal numbers, ms (target {_NOISE_TARGET})"]
        for name, samples in records["normal"].items():
            lines.append(f"{name:18} {np.median(samples) * 1e3:6.2f}")
    return "\n".join([*lines, "", *_NOTES])


_NOTES = (
    "Columns after the first are times of the step without privacy: clipping by example without",
    "noise, with noise, and tensorflow-privacy's own (jacobian) without noise.",
    "",
)


if __name__ == "__main__":
    main()
