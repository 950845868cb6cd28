"""Accuracy against epsilon on Fashion-MNIST: clients protected, examples protected, nobody.

    python -m experiments.benchmarks.privacy_curve --output_dir=runs/privacy_curve

Trains the flagfiles fashion_dp_clients (central noise on 6,000 clients of 10 examples) and
fashion_dp_examples (DP-SGD on 10 clients of 6,000) with each epsilon, and once clipped but without
noise. Writes privacy_curve.json and privacy_curve.png, and each run's own results beside
them; a run that was stopped goes on.
"""

import json
import sys
from pathlib import Path

from absl import flags as absl_flags

from experiments import flags, results, train
from experiments.benchmarks import machine

_RUNS = {"clients": "fashion_dp_clients", "examples": "fashion_dp_examples"}
_COLOURS = {"clients": "#1f77b4", "examples": "#c0392b"}
_LABELS = {
    "clients": "clients hidden: 6,000 of 10 examples, server trusted",
    "examples": "examples hidden: 10 clients of 6,000, server not trusted",
}


def main(argv=None):
    """Runs all trainings and draws the curve."""
    argv = sys.argv if argv is None else argv
    values = machine.parse(argv, "privacy_curve", __doc__, _define)
    folder = Path(values.output_dir)
    found = {unit: {} for unit in _RUNS}
    for unit, flagfile in _RUNS.items():
        for epsilon in (None, *map(float, values.epsilons)):
            name = "none" if epsilon is None else f"{epsilon:g}"
            run = folder / f"{unit}_{name}"
            found[unit][name] = _train(argv[0], flagfile, epsilon, run, values)
    (folder / "privacy_curve.json").write_text(json.dumps(found, indent=2) + "\n")
    _draw(found, folder / "privacy_curve.png")
    print(f"\n{table(found)}\nWritten to {folder}: privacy_curve.json, privacy_curve.png")


def _define(common):
    absl_flags.DEFINE_list("epsilons", ["2", "4", "8"], "Privacy budgets.", **common)
    absl_flags.DEFINE_integer("rounds", None, "Rounds of each run; its flagfile's by default.",
                              lower_bound=1, **common)
    absl_flags.DEFINE_string("output_dir", "runs/privacy_curve", "Where results go.", **common)
    absl_flags.DEFINE_string("data_path", None, "Folder or npz file of Fashion-MNIST.", **common)


def _train(program, flagfile, epsilon, folder, values):
    """One training, unless it has been: `{"accuracy": last one on test data, "epsilon": spent}`."""
    lines = (flags.FLAGFILES / f"{flagfile}.flags").read_text().splitlines()
    arguments = [line for line in lines if line.startswith("--")]
    if epsilon is None:
        arguments = [a for a in arguments if not a.startswith(("--epsilon", "--delta"))]
        arguments.append("--noise_multiplier=0")
    else:
        arguments.append(f"--epsilon={epsilon}")
    if values.rounds is not None:
        arguments.append(f"--rounds={values.rounds}")
    if values.data_path is not None:
        arguments.append(f"--data_path={values.data_path}")
    print(f"\n{folder.name}", flush=True)
    train.main([program, *arguments, f"--output_dir={folder}", "--checkpoint_freq=10"])
    accuracy = results.read_metrics(folder / results.METRICS)[-1]["val_accuracy"]
    if epsilon is None:
        return {"accuracy": accuracy}
    report = json.loads((folder / results.PRIVACY).read_text())
    kept = ("epsilon", "delta", "unit", "relation", "accountant", "rounds", "mechanisms")
    return {"accuracy": accuracy, **{name: report[name] for name in kept}}


def table(found):
    """The accuracies as a Markdown table.

    Args:
        found: `{unit: {epsilon: {"accuracy": …}}}`.
    """
    columns = list(next(iter(found.values())))
    heads = ["without noise" if name == "none" else f"ε = {name}" for name in columns]
    lines = ["| hidden | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for unit, runs in found.items():
        cells = [f"{runs[name]['accuracy']:.3f}" for name in columns]
        lines.append(f"| {unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _draw(found, path):
    from tffed.extras import require

    figure = require("matplotlib.figure", "plot").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for unit, runs in found.items():
        points = [(run["epsilon"], run["accuracy"]) for run in runs.values() if "epsilon" in run]
        axes.plot(*zip(*points, strict=True), "o-", color=_COLOURS[unit], label=_LABELS[unit])
        axes.axhline(runs["none"]["accuracy"], color=_COLOURS[unit], ls="--", lw=1)
    axes.set_title("Fashion-MNIST, a CNN of 20,746 parameters; dashed: without noise")
    axes.set_xlabel("ε at δ = 1e-5")
    axes.set_ylabel("Test accuracy")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
