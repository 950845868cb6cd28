"""The programs as a user runs them: in a process of their own, killed, and run again."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from experiments import flags, results
from experiments.benchmarks import convergence, memory

TRAIN = [
    "experiments.train",
    f"--flagfile={flags.FLAGFILES / 'diabetes_fedsgd.flags'}",
    "--rounds=100",
]


def command(*arguments):
    return [sys.executable, "-m", *map(str, arguments)]


def finish(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


def killed_in_round(number, *arguments):
    """Starts a program and kills it when it has reported a round."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith(f"round {number:3}/"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_run_goes_on_and_ends_like_one_that_was_not(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = finish(*TRAIN, f"--output_dir={whole}")
    assert done.returncode == 0, done.stderr
    assert all(str(whole / name) in done.stdout for name in ("metrics.csv", "model.keras"))
    # With a checkpoint every fourth round, metrics.csv is ahead of the checkpoint when it dies.
    killed_in_round(10, *TRAIN, "--checkpoint_freq=4", f"--output_dir={broken}")
    assert not (broken / "model.keras").exists()
    again = finish(*TRAIN, f"--output_dir={broken}")
    assert again.returncode == 0, again.stderr
    assert int(re.search(r"Going on after round (\d+),", again.stdout)[1]) in range(8, 100, 4)
    rows = [results.read_metrics(folder / "metrics.csv") for folder in (whole, broken)]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]
    evaluations = [json.loads((f / "evaluation.json").read_text()) for f in (whole, broken)]
    assert evaluations[0] == evaluations[1]


def test_wrong_flag_is_one_line_without_a_traceback(tmp_path):
    done = finish(*TRAIN, "--mu=1", f"--output_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "--algorithm=fed_prox" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_demo_trains_shows_and_writes(tmp_path):
    done = finish("experiments.demo", "--rounds=2", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "round 2/2" in done.stdout and "val_accuracy" in done.stdout
    assert "of 20 clients, percentiles" in done.stdout
    for name in ("metrics.csv", "plot.png", "model.keras"):
        assert (tmp_path / name).is_file() and str(tmp_path / name) in done.stdout


def test_audit_draws_what_a_server_sees(tmp_path):
    done = finish("experiments.audit", "--attacks=inversion", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "inversion.png") in done.stdout
    found = json.loads((tmp_path / "audit.json").read_text())["inversion"]
    errors = {name: numbers["root_mean_squared_error"] for name, numbers in found.items()}
    assert errors["No protection"] < 0.01 and errors["Clipped"] < 0.01
    assert errors["Clipped and noised"] > 0.3


def test_convergence_table():
    curves = {"IID": [0.5, 0.81, 0.86] + [0.9] * 17, "shards": [0.1] * 19 + [0.8]}
    curves = {name: convergence.np.array(curve) for name, curve in curves.items()}
    assert convergence.markdown_table(curves).splitlines() == [
        "| training | round 10 | round 20 | first round at 80% | first round at 85% |",
        "|---|---|---|---|---|",
        "| IID | 0.9000 | 0.9000 | 2 | 3 |",
        "| shards | 0.1000 | 0.8000 | 20 | – |",
    ]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cohort(capsys):
    memory.main(["memory"])
    ratio = float(capsys.readouterr().out.split("is ")[-1].split(" of")[0])
    assert 0.9 < ratio < 1.1
