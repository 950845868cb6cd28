"""The benchmark of example-level privacy: its designs train, and its table divides."""

import numpy as np

from experiments.benchmarks import privacy_cost
from tests.helpers import needs_tf_privacy


@needs_tf_privacy
def test_clipping_is_what_tensorflow_privacy_does(monkeypatch):
    monkeypatch.setitem(privacy_cost._STEPS, "2nn", (2, 2))
    ends = {name: run() for name, (run, _) in privacy_cost._designs("2nn").items()}
    for clipped, shipped in zip(ends["clipped"], ends["as shipped"], strict=True):
        np.testing.assert_allclose(clipped, shipped, atol=1e-6)
    moved = [
        max(np.abs(a - b).max() for a, b in zip(ends["clipped"], ends[name], strict=True))
        for name in ("plain", "clipped and noised")
    ]
    assert min(moved) > 1e-4


def test_table_divides_within_turns():
    seconds = {
        "plain": [0.001, 0.002, 0.004],
        "clipped": [0.0012, 0.0024, 0.0048],
        "clipped and noised": [0.003, 0.006, 0.012],
        "as shipped": [0.012, 0.024, 0.048],
    }
    drawn = {"normal": [0.001], "normal, XLA": [0.0005]}
    head, row, _, _, *draws = privacy_cost.text_table({"2nn": seconds, "normal": drawn}).split("\n")
    assert row.split() == ["2nn", "2.00", "1.20", "1.25", "3.00", "12.0", "0.10"]
    assert len(row) == len(head)
    assert draws[0].split() == ["normal", "1.00"] and draws[1].split()[-1] == "0.50"
