"""A checkpoint is of one run: another script is refused with what differs, and nothing else."""

import functools
import math
import re
import shutil

import keras
import numpy as np
import pytest

import tffed
from tffed.checkpoint import Checkpoints
from tffed.describe import describe
from tffed.differences import differences

L, SGD = keras.layers, keras.optimizers.SGD
X = np.arange(24, dtype=np.float32).reshape(12, 2) / 24
Y = np.array([0, 1] * 6)


def clients(x=X, y=Y, ids=("a", "b", "c")):
    return {cid: (x[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4]) for k, cid in enumerate(ids)}


def scaled_loss(factor):
    def scaled(y, p):
        return factor * keras.ops.mean(keras.ops.square(p - keras.ops.cast(y, p.dtype)), -1)

    return scaled


class Power(keras.losses.Loss):
    """A loss of the user's whose configuration does not have its exponent."""

    def __init__(self, exponent):
        super().__init__()
        self.exponent = exponent

    def call(self, y, p):
        return keras.ops.mean(keras.ops.abs(p - keras.ops.cast(y, p.dtype)) ** self.exponent, -1)


def network(activation="relu", l2=0.1, rate=0.2, factor=1.0, frozen=0.5):
    x = keras.Input((2,))
    fixed = L.Dense(2, kernel_initializer=keras.initializers.Constant(frozen))
    fixed.trainable = False
    y = L.Dense(3, activation, kernel_regularizer=keras.regularizers.L2(l2))(fixed(x))
    return keras.Model(x, L.Dense(2)(L.Dropout(rate)(y) * factor))


def run(directory, model=None, recipe=None, rates=(0.1, 1.0), momentum=0.0, ids=None, **other):
    fit = {"rounds": 1} | {k: other.pop(k) for k in list(other) if k in ("sampler", "rounds")}
    fit["validation_data"] = other.pop("validation_data", (X, Y))
    data = other.pop("data", None) or clients(ids=ids or ("a", "b", "c"))
    fed = tffed.Federated(network(**(model or {})), recipe or tffed.fed_avg(batch_size=2))
    compiled = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)} | other
    fed.compile(SGD(rates[0], momentum=momentum), SGD(rates[1]), jit_compile=False, **compiled)
    fed.fit(data, checkpoint_dir=directory, verbose=0, **fit)
    return fed


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    run(directory)
    return directory


S = keras.losses.SparseCategoricalCrossentropy
OTHERS = {
    "loss": ({"loss": scaled_loss(1.0)}, "loss"),
    "loss options": (
        {"loss": S(from_logits=False)},
        "loss (SparseCategoricalCrossentropy).from_logits",
    ),
    "reduction": (
        {"loss": S(from_logits=True, reduction="mean")},
        "loss (SparseCategoricalCrossentropy).reduction",
    ),
    "loss weights": ({"loss_weights": [2.0]}, "loss_weights"),
    "class weight": ({"class_weight": {0: 2.0}}, "class_weight"),
    "metrics": ({"metrics": ["accuracy"]}, "metrics"),
    "weighted metrics": ({"weighted_metrics": ["accuracy"]}, "weighted_metrics"),
    "clients' rate": ({"rates": (0.2, 1.0)}, "client_optimizer (SGD).learning_rate"),
    "server's rate": ({"rates": (0.1, 0.5)}, "server_optimizer (SGD).learning_rate"),
    "momentum": ({"momentum": 0.9}, "client_optimizer (SGD).momentum"),
    "activation": ({"model": {"activation": "tanh"}}, "model.layers[3] (Dense).activation"),
    "regularizer": (
        {"model": {"l2": 0.2}},
        "model.layers[3] (Dense).kernel_regularizer.config.l2",
    ),
    "dropout": ({"model": {"rate": 0.3}}, "model.layers[4] (Dropout).rate"),
    "a factor in the graph": ({"model": {"factor": 2.0}}, "model.graph[0]"),
    "frozen weights": ({"model": {"frozen": 0.25}}, "frozen_weights"),
    "ids": ({"ids": ("a", "b", "z")}, "client_ids"),
    "data": ({"data": clients(X + 1)}, "data"),
    "targets": ({"data": clients(y=1 - Y)}, "data"),
    "validation data": ({"validation_data": (X + 1, Y)}, "validation_data"),
    "sampler": ({"sampler": tffed.data.Weighted(3, [1, 2, 3])}, "sampler"),
    "algorithm": ({"recipe": tffed.fed_avg(batch_size=3)}, "algorithm.batch_size"),
}


@pytest.mark.parametrize(("arguments", "place"), OTHERS.values(), ids=OTHERS)
def test_another_run_is_refused_with_what_differs_alone(directory, arguments, place):
    with pytest.raises(tffed.CheckpointError, match="which holds one of another") as caught:
        run(directory, **arguments)
    told = re.search(r"Received: (.*)\. Go on", str(caught.value))[1].split("; ")
    known = ("in the checkpoint", " here")
    # The place that is named first; the constant's initializer differs with the frozen weights.
    assert any(one.startswith(place) for one in told) and all(k in told[0] for k in known)
    assert {re.split(r"[. :]", one)[0] for one in told} <= {re.split(r"[. ]", place)[0], "model"}


def test_the_same_run_built_again_is_the_same(directory):
    names = [run(directory).model.layers[-1].name for _ in range(2)]  # numbered by Keras
    assert names[0] != names[1]


def test_an_older_checkpoint_is_refused_by_name(directory, tmp_path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    checkpoints = Checkpoints(tmp_path)
    leaves, manifest = checkpoints.load()
    for name in ("loss", "model"):
        del manifest["fingerprint"][name]
    checkpoints.save(1, leaves, manifest)
    with pytest.raises(tffed.CheckpointError, match="says nothing of loss, model.*version"):
        run(tmp_path)


def test_a_rate_that_the_user_sets_between_fits_is_not_overwritten(directory):
    fed = run(directory)
    fed.client_optimizer.learning_rate = 0.01
    with pytest.raises(tffed.CheckpointError, match="learning_rate: 0.1 in the checkpoint, 0.01"):
        fed.fit(clients(), rounds=2, validation_data=(X, Y), checkpoint_dir=directory, verbose=0)
    assert float(fed.client_optimizer.learning_rate) == pytest.approx(0.01)


def test_a_rate_that_a_callback_has_reached_is_restored(tmp_path):
    def fit(rounds):
        model = keras.Sequential([keras.Input((2,)), L.Dense(2)])
        fed = tffed.Federated(model, tffed.fed_avg())
        halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
        fed.compile(SGD(0.1), loss=S(from_logits=True), jit_compile=False)
        fed.fit(clients(), rounds=rounds, callbacks=[halve], checkpoint_dir=tmp_path, verbose=0)
        return float(fed.server_optimizer.learning_rate)

    assert fit(2) == 0.25 and fit(3) == 0.125


SOURCE = """
FACTOR = {factor}
def inner(t):
    return t * FACTOR
def loss(y, p):
    {comment}
    return inner(p) - {constant} + (lambda t: t)(y)
"""


def described(factor=2.0, comment="pass", constant=3.0):
    names = {"__name__": "users"}
    exec(SOURCE.format(factor=factor, comment=comment, constant=constant), names)
    return describe(names["loss"])


def test_functions_go_by_what_they_do():
    same = described()
    assert same == described(comment="'''What it is.'''") and same.startswith("loss (code ")
    assert len({same, described(factor=2.5), described(constant=4.0)}) == 3
    assert describe(scaled_loss(1.0)) == describe(scaled_loss(1.0)) != describe(scaled_loss(2.0))
    assert describe(Power(2.0)) == describe(Power(2.0)) != describe(Power(3.0))
    assert describe(keras.losses.mean_squared_error) == "mean_squared_error"


def test_differences_name_places_and_end():
    found, here = {"a": {"b": [1, 2]}, "c": float("nan")}, {"a": {"b": [1, 3]}, "c": float("nan")}
    assert differences(found, here) == ["a.b[1]: 2 in the checkpoint, 3 here"]
    many = differences(dict.fromkeys("abcdefghijk", 1), dict.fromkeys("abcdefghijk", 2))
    assert len(many) == 9 and many[-1] == "and 3 more"


class Silent:
    """What a user's object may hold that no configuration tells."""

    factors = [1.0]

    def __init__(self, value):
        self._value = value


class Schedule(Silent, keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return self._value


class Penalty(Silent, keras.regularizers.Regularizer):
    def __call__(self, weight):
        return keras.ops.sum(weight) * self._value[0]


class Limit(Silent, keras.constraints.Constraint):
    def __call__(self, weight):
        return weight * self._value["by"]


class Distance(keras.losses.Loss):
    def __init__(self, value):
        super().__init__()
        self._value = value

    def get_config(self):
        return {}

    def call(self, y, p):
        return keras.ops.mean(self._value[0] * (p - y), -1)


class Share(keras.metrics.Mean):
    def __init__(self, value):
        super().__init__()
        self.limits = value

    def get_config(self):
        return {}


class Scaled(L.Layer):
    def __init__(self, value):
        super().__init__()
        self._value = value
        self.inner = [L.Dense(2), Silent(value)]
        self.generator = keras.random.SeedGenerator()

    def build(self, shape):
        self.kernel = self.add_weight(shape=(2,), initializer="glorot_normal")
        self.kernels = [self.kernel]

    def call(self, x):
        return x


def holders(value):
    x = keras.Input((2,))
    layer = Scaled(value)
    layer(x)
    yield SGD(Schedule(value))
    yield L.Dense(2, kernel_regularizer=Penalty(value))
    yield L.Dense(2, kernel_constraint=Limit(value))
    yield from (Distance(value), Share(value), layer, lambda p: p * value)
    yield functools.partial(scaled_loss, value)
    yield {"class": type("Setting", (), {"__module__": "users", "value": value})}


def test_what_no_configuration_tells_counts_too():
    values = ([1.0], [2.0], (1.0, 2.0), {"by": 1.0}, {"by": 2.0}, {"by": {"a": [1]}},
              np.arange(3.0), np.arange(1.0, 4.0), Silent(3), Silent(4), math.sin, math.cos)
    for first, again, *others in zip(*map(holders, (values[0], [1.0], *values[1:])), strict=True):
        same = describe(first)
        assert same == describe(again) and "0x" not in str(same)
        found = {str(describe(one)) for one in others}
        assert len(found) == len(values) - 1 and str(same) not in found, first


READING = """
LIST, TABLE, ARRAY = {list}, {{"a": [{table}]}}, np.array([{array}])
class Settings:
    rate = {rate}
class Held:
    def __init__(self): self._one = {held}
HELD = Held()
def loss(y, p):
    return (lambda t: t * LIST[0])(p) * TABLE["a"][0] * ARRAY * Settings.rate * HELD._one
"""


def test_what_a_function_reads_of_its_module_counts():
    def read(**values):
        names = {"__name__": "users", "np": np}
        given = {"list": [1], "table": 1, "array": 1, "rate": 1, "held": 1} | values
        exec(READING.format(**given), names)
        return describe(names["loss"])

    assert read() == read()
    held = [describe(SGD(Schedule(1), momentum=m)) for m in (0.1, 0.2)]  # it has no get_config
    assert [one["momentum"] for one in held] == [0.1, 0.2]
    others = [read(**{name: 2}) for name in ("table", "array", "rate", "held")]
    assert len({read(), read(list=[2]), *others}) == 6


def test_a_renamed_model_is_the_same(tmp_path):
    def fit(name, rounds, width=2):
        x = keras.Input((2,), name="x")
        model = keras.Model(x, L.Dense(width, name="d")(x), name=name)
        fed = tffed.Federated(model, tffed.fed_avg())
        fed.compile(SGD(0.1), loss=S(from_logits=True), jit_compile=False)
        return fed.fit(clients(), rounds=rounds, checkpoint_dir=tmp_path, verbose=0)

    fit("one", 1)
    assert fit("other", 2).epoch == [0, 1]
    with pytest.raises(tffed.CheckpointError, match="units: 2 in the checkpoint, 3 here"):
        fit("one", 3, width=3)


def test_weights_that_are_not_decayed_are_part_of_a_run(tmp_path):
    def fit(undecayed):
        optimizer = SGD(0.1, weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=[undecayed])
        fed = tffed.Federated(network(), tffed.fed_avg(batch_size=4))
        fed.compile(optimizer, loss="mse", jit_compile=False)
        fed.fit({"a": (X[:4], X[:4])}, checkpoint_dir=tmp_path, verbose=0)

    fit("kernel")
    fit("kernel")
    with pytest.raises(tffed.CheckpointError, match=r"not_decayed\[0\]: 0 in .*, 1 here"):
        fit("bias")
