"""The program that kills runs: with a few kills, and with a run that something is wrong with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import kills

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_three_kills_and_a_pair():
    """In a process of its own: it forks, which TensorFlow does not take once it has begun."""
    command = [sys.executable, "-m", "experiments.benchmarks.kills", "--kills=3", "--pairs=1"]
    done = subprocess.run(
        [*command, "--kinds=gaussian", "--kinds=scaffold"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout[done.stdout.index("{\n") :])["kills"] == 3


def test_what_differs_is_a_fault(tmp_path):
    kind = kills._Kind("scaffold", tmp_path)
    (tmp_path / "start").mkdir()
    kind._expected = {"weights": "1", "store": "2"}
    assert kind._compare({"weights": "1", "store": "2"}, kind._fresh()) == []
    directory = kind._fresh()
    (directory / "round-000001.ckpt.7.unfinished").touch()
    faults = kind._compare({"weights": "1", "store": "3"}, directory)
    assert faults[:2] == ["store is 3", "round-000001.ckpt.7.unfinished left"]
