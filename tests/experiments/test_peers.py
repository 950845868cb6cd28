"""The comparison with other frameworks, as far as it runs without them."""

import json
import sys

import numpy as np
import pytest

import tffed
from experiments.benchmarks import peer_environments, peer_report, peers
from experiments.benchmarks.peer_environments import WORKERS, NotMeasured
from experiments.benchmarks.peer_process import Worker
from experiments.benchmarks.peer_workers import peer_protocol


@pytest.fixture
def federation(tmp_path):
    """Path of a federation whose local epoch is one step: the order of examples has no effect."""
    rng = np.random.default_rng(0)
    shapes = [(5, 200), (200, 200), (200, 10)]
    weights = [a for s in shapes for a in (rng.normal(0, 0.1, s), np.zeros(s[-1]))]
    cohorts = [tffed.data.Uniform(2).sample(4, seed=3, round=number) for number in range(3)]
    path = tmp_path / "federation.npz"
    peer_protocol.write(
        path,
        [a.astype(np.float32) for a in weights],
        model="2nn",
        x=rng.normal(size=(4, 8, 5)).astype(np.float32),
        y=rng.integers(0, 10, (4, 8)).astype(np.int32),
        x_test=rng.normal(size=(1500, 5)).astype(np.float32),
        y_test=rng.integers(0, 10, 1500).astype(np.int32),
        cohorts=cohorts,
        batch_size=8,
        learning_rate=0.5,
        seed=3,
    )
    return path


def forward(weights, x):
    """Inputs of the three layers, and the logits."""
    inputs = [x]
    for kernel, bias in zip(weights[:4:2], weights[1:4:2], strict=True):
        inputs.append(np.maximum(inputs[-1] @ kernel + bias, 0))
    return inputs, inputs[-1] @ weights[4] + weights[5]


def gradient_step(weights, x, y, rate):
    """The weights after a step of SGD on the mean cross-entropy."""
    inputs, logits = forward(weights, x)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    delta = (probabilities / probabilities.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
    found = []
    for layer in (2, 1, 0):
        kernel, bias = weights[2 * layer : 2 * layer + 2]
        found = [kernel - rate * inputs[layer].T @ delta, bias - rate * delta.sum(0), *found]
        delta = (delta @ kernel.T) * (inputs[layer] > 0)
    return found


def test_tffed_worker_computes_federated_averaging_of_the_given_cohorts(federation, tmp_path):
    given = peer_protocol.Federation(federation)
    weights = [w.astype(np.float64) for w in given.weights]
    worker = Worker(sys.executable, WORKERS / "tffed_worker.py", federation, tmp_path / "log")
    try:
        assert set(worker.versions) == {"tensorflow", "keras"}
        assert worker.ask("evaluate")["moved"] == 0
        for cohort in given.cohorts:
            assert worker.ask("round")["seconds"] > 0
            steps = [gradient_step(weights, given.x[i], given.y[i], 0.5) for i in cohort]
            weights = [np.mean(arrays, axis=0) for arrays in zip(*steps, strict=True)]
        answer = worker.ask("evaluate")
        assert worker.ask("memory")["megabytes"] > 100
    finally:
        worker.close()
    right = np.mean(forward(weights, given.x_test)[1].argmax(1) == given.y_test)
    first = np.mean(forward(given.weights, given.x_test)[1].argmax(1) == given.y_test)
    # Rounding may turn an example of 1,500 or two; the initial weights are further off.
    assert abs(answer["accuracy"] - right) < 2 / 1500 < abs(first - right)
    assert answer["moved"] == 6


def test_federation_is_dealt_once_and_begins_with_glorot_weights(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((300, 28, 28, 1), np.float32)
    y = rng.integers(0, 10, 300)
    source = tffed.data.sources.Source((x, y), (x[:7], y[:7]), 10, "a test")
    for model, shape in (("2nn", (784,)), ("cnn", (28, 28, 1))):
        peers.write_federation(tmp_path / "f.npz", model, source, rounds=4, seed=1)
        found = peer_protocol.Federation(tmp_path / "f.npz")
        assert found.x.shape == (100, 3, *shape) and found.x_test.shape == (7, *shape)
        pairs = zip(found.x.reshape(300, -1), found.y.ravel(), strict=True)
        dealt = {(image.tobytes(), int(label)) for image, label in pairs}
        assert dealt == {(i.tobytes(), int(label)) for i, label in zip(x, y, strict=True)}
        assert found.cohorts.shape == (4, 10) and len(set(found.cohorts[0].tolist())) == 10
        assert sum(w.size for w in found.weights) == {"2nn": 199_210, "cnn": 1_663_370}[model]
        limit = np.sqrt(6 / {"2nn": 984, "cnn": 25 * 33}[model])
        assert 0.95 * limit < found.weights[0].max() <= limit


FAKE = """
import json, sys
name, turns = sys.argv[0], {turns!r}
print(json.dumps({{"ready": {{"fake": "1"}}}}), flush=True)
for line in sys.stdin:
    open(turns, "a").write("{name} " + line)
    seconds = {{"seconds": {seconds}}}
    answers = {{"evaluate": {{"accuracy": 0.8, "moved": {moved}}}, "memory": {{"megabytes": 9.0}}}}
    print(json.dumps(answers.get(line.strip(), seconds)), flush=True)
"""


def test_peers_take_turns_and_what_cannot_be_measured_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "WORKERS", tmp_path)
    turns = tmp_path / "turns"
    for name, seconds, moved in (("tffed", 0.5, 6), ("pfl", 2.0, 6), ("tff", 1.0, 2)):
        code = FAKE.format(name=name, turns=str(turns), seconds=seconds, moved=moved)
        (tmp_path / f"{name}_worker.py").write_text(code)
    (tmp_path / "fedjax_worker.py").write_text("raise OSError('no such thing\\n second line')")
    interpreters = dict.fromkeys(("tffed", "pfl", "TFF", "FedJAX"), sys.executable)
    interpreters["Flower"] = NotMeasured("Could not install it.")
    found = peers.measure("2nn", tmp_path / "none.npz", interpreters, tmp_path, 3, 1)
    ours, pfl, tff, fedjax, flower = peer_report.summarise(found)
    assert (ours["median"], ours["ratio"], pfl["ratio"]) == (0.5, 1.0, 0.25)
    assert ours["rounds"] == [0.5] * 3 and ours["accuracy"] == 0.8 and ours["megabytes"] == 9
    assert "2 that have changed" in tff["reason"]
    assert "status 1: OSError: no such thing." in fedjax["reason"]
    assert flower["reason"] == "Could not install it."
    asked = [line.split() for line in turns.read_text().splitlines()]
    rounds = [name for name, command in asked if command == "round"]
    assert rounds == ["tffed", "pfl", "tff"] * 3
    # Memory is asked for before testing takes some.
    assert asked[-2:] == [["tff", "memory"], ["tff", "evaluate"]]
    peer_report.write(tmp_path, {"seed": 0}, {"2nn": [ours, pfl, flower]})
    content = json.loads((tmp_path / "peers.json").read_text())
    assert content["results"]["2nn"][1]["median"] == 2.0
    assert (tmp_path / "peers.png").stat().st_size > 1000


def test_worker_without_an_answer_is_given_up(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(NotMeasured, match="no answer in 0.5 seconds"):
        Worker(sys.executable, script, "none.npz", tmp_path / "log", patience=0.5)


def test_table_has_medians_quartiles_and_ratios_of_the_later_rounds():
    common = {"warmup": 2, "versions": {}, "accuracy": 0.7961, "megabytes": 1234.5}
    results = peer_report.summarise([
        {"peer": "tffed", "rounds": [3.0, 9.0, 0.1, 0.2, 0.3, 0.4, 0.5], **common},
        {"peer": "FedJAX", "rounds": [5.0, 9.0, 0.6, 0.6, 0.6, 0.6, 0.6], **common},
        {"peer": "pfl", "reason": "no network"},
    ])
    assert peer_report.table("2nn", results).splitlines() == [
        "2NN, seconds a round",
        "        first round  median       quartiles  tffed / peer  accuracy  peak memory",
        "tffed          3.00   0.300  0.200 to 0.400          1.00     0.796     1,234 MB",
        "FedJAX         5.00   0.600  0.600 to 0.600          0.50     0.796     1,234 MB",
        "pfl     not measured: no network",
    ]


def test_ratio_needs_tffed():
    result = {"peer": "pfl", "warmup": 1, "rounds": [1.0, 2.0], "accuracy": 0.5, "megabytes": 1.0}
    assert peer_report.summarise([result])[0]["ratio"] is None


def test_missing_interpreter_and_failed_install_are_told(tmp_path, monkeypatch):
    with pytest.raises(NotMeasured, match=r"Received: --python=/none/python, which is none"):
        peer_environments.environment("pfl", tmp_path, python="/none/python")
    monkeypatch.setattr(peer_environments, "PYTHON", "{}.{}".format(*sys.version_info))
    monkeypatch.setattr(peer_environments, "WORKERS", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "pfl.txt").write_text("pfl==0.0.1.dev99\n")
    for _ in range(2):  # what was left half made is made again, not taken for an environment
        with pytest.raises(NotMeasured, match=r"Could not install pfl.txt: ERROR: .*pfl==0\.0\.1"):
            peer_environments.environment("pfl", tmp_path / "cache")
    (tmp_path / "pfl.txt").write_text("")
    python = peer_environments.environment("pfl", tmp_path / "cache")
    monkeypatch.setattr(peer_environments, "find_python", None)
    assert peer_environments.environment("pfl", tmp_path / "cache") == python


def test_wrong_flag_is_one_line(capsys):
    with pytest.raises(SystemExit, match="error: .*peers"):
        peers.main(["peers", "--peers=nvflare"])
