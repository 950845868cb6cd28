"""Random models, drawn as plain data: layers, losses, weights, optimizers, sizes of clients.

`python -m tests.contract.random_models --examples 1000` compares a thousand with Keras, and prints
how many were refused and why, and what differed.
"""

import argparse
import collections
import json
import re
import subprocess
import sys

import hypothesis

from tests.contract.drawn import PATHS, specifications, trial
from tests.contract.witness import compare


def outcome(spec) -> str:
    """`"equal"`, or `"refused: why"`; an `AssertionError` tells of numbers that differ."""
    try:
        compare(lambda: trial(spec), **PATHS[spec["path"]])
    except ValueError as error:
        return f"refused: {_reason(error)}"
    except FloatingPointError:
        return "refused: not finite"
    return "equal"


def _reason(error):
    """A refusal without what is particular to the model at hand."""
    return re.sub(r"\d+", "#", str(error).split("Received:")[0])[:120].strip()


def tally(examples, seed) -> dict:
    """How often each outcome came up in so many random models, and the models that differ."""
    counts, wrong = collections.Counter(), []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(specifications())
    def run(spec):
        try:
            counts[outcome(spec)] += 1
        except Exception as error:  # noqa: BLE001  (any is a finding)
            counts["different" if isinstance(error, AssertionError) else "crashed"] += 1
            wrong.append({"spec": spec, "error": f"{type(error).__name__}: {error}"[:400]})

    run()
    return {"counts": counts, "wrong": wrong}


def main():
    """Runs the examples, some in each process, whose memory grows with every compiled model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=50, help="examples of one process")
    chosen = parser.parse_args()
    if chosen.examples <= chosen.each:
        print(json.dumps(tally(chosen.examples, chosen.seed)))
        return
    counts = collections.Counter()
    for k, start in enumerate(range(0, chosen.examples, chosen.each)):
        number = str(min(chosen.each, chosen.examples - start))
        command = [sys.executable, "-m", "tests.contract.random_models"]
        arguments = ["--examples", number, "--seed", str(chosen.seed + k), "--each", number]
        done = subprocess.run(command + arguments, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        counts.update(found["counts"])
        for one in found["wrong"]:
            print(json.dumps(one), flush=True)
        print(f"{start + int(number)} of {chosen.examples}: {dict(counts)}", flush=True)


if __name__ == "__main__":
    main()
