"""Accuracy by round of FedAvg on Fashion-MNIST, beside centralised training on as many examples.

    python -m experiments.benchmarks.convergence --rounds=100 --output_dir=runs/convergence

McMahan et al.'s MLP 784-200-200-10 over 100 clients, C = 0.1, E = 1, B = 10, SGD with rate 0.1:
the flagfiles fashion_2nn_fedavg_iid and fashion_2nn_fedavg_shards. The same model, from the same
initial weights, is trained by `keras.Model.fit` on all data with the same batch size and rate; a
"round" there is the 6,000 examples that ten clients have together. Writes convergence.csv,
convergence.png and convergence.md, and each federated run's own results beside them; a run that was
stopped goes on.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from experiments import builders, flags, results, startup, train
from experiments.benchmarks import machine

_RUNS = {"IID": "fashion_2nn_fedavg_iid", "shards": "fashion_2nn_fedavg_shards"}
_CENTRAL = "centralised"
_ROUNDS, _TARGETS = (10, 20, 50, 100), (0.80, 0.85)
_COLOURS = {"IID": "#1f77b4", "shards": "#c0392b", _CENTRAL: "#555555"}


def main(argv=None):
    """Runs the three trainings and writes the comparison."""
    argv = sys.argv if argv is None else argv
    values = machine.parse(argv, "convergence", __doc__, _define)
    folder = Path(values.output_dir)
    curves = {}
    for name, flagfile in _RUNS.items():
        rows = _federated(argv[0], flagfile, folder / flagfile, values)
        curves[name] = np.array([row["val_accuracy"] for row in rows[: values.rounds]])
    curves[_CENTRAL] = _centralised(_flags(argv[0], _RUNS["IID"], folder, values))
    _write_csv(curves, folder / "convergence.csv")
    _draw(curves, folder / "convergence.png")
    table = markdown_table(curves)
    (folder / "convergence.md").write_text(table)
    print(f"\n{table}\nWritten to {folder}: convergence.csv, convergence.png, convergence.md")


def _define(common):
    absl_flags.DEFINE_integer("rounds", 100, "Number of rounds.", lower_bound=1, **common)
    absl_flags.DEFINE_integer("seed", 0, "Seed of everything.", lower_bound=0, **common)
    absl_flags.DEFINE_string("output_dir", "runs/convergence", "Where results go.", **common)
    absl_flags.DEFINE_string("data_path", None, "Folder or npz file of Fashion-MNIST.", **common)


def _flags(program, flagfile, folder, values):
    """The flags of one federated run."""
    arguments = [
        program, f"--flagfile={flags.FLAGFILES / flagfile}.flags", f"--rounds={values.rounds}",
        f"--seed={values.seed}", f"--output_dir={folder}", "--checkpoint_freq=10",
    ]
    if values.data_path is not None:
        arguments.append(f"--data_path={values.data_path}")
    return arguments


def _federated(program, flagfile, folder, values):
    """Trains one federation, unless it has been, and returns its rows by round."""
    print(f"\n{flagfile}", flush=True)
    train.main(_flags(program, flagfile, folder, values))
    return results.read_metrics(folder / results.METRICS)


def _centralised(arguments):
    """Test accuracy of the same model trained on all data, by as many examples as a round has."""
    values = flags.parse(arguments)
    startup.start()
    import keras

    keras.utils.set_random_seed(values.seed)
    task = builders.TASK.build(values)
    x, y = task.train
    taking_part = round(values.client_fraction * values.clients)
    examples = taking_part * len(x) // values.clients * values.local_epochs
    task.model.compile(
        keras.optimizers.SGD(values.client_learning_rate), task.loss, metrics=task.metrics
    )
    rng = np.random.default_rng(values.seed)
    passes = -(-values.rounds * examples // len(x))
    order = np.concatenate([rng.permutation(len(x)) for _ in range(passes)])
    accuracy = []
    print(f"\n{_CENTRAL}: {values.rounds} times {examples:,} examples", flush=True)
    for number in range(values.rounds):
        rows = order[number * examples : (number + 1) * examples]
        task.model.fit(x[rows], y[rows], values.batch_size, shuffle=False, verbose=0)
        found = task.model.evaluate(*task.test, batch_size=1000, verbose=0, return_dict=True)
        accuracy.append(found["accuracy"])
        print(f"round {number + 1}/{values.rounds}  val_accuracy {accuracy[-1]:.4f}", flush=True)
    return np.array(accuracy)


def markdown_table(curves):
    """The curves in figures.

    Args:
        curves: `{name: test accuracy by round}`, of equal length.

    Returns:
        A table in Markdown: accuracy at some rounds, and the first round at some accuracies.
    """
    length = len(next(iter(curves.values())))
    rounds = [number for number in _ROUNDS if number <= length] or [length]
    head = [
        "training",
        *(f"round {number}" for number in rounds),
        *(f"first round at {target:.0%}" for target in _TARGETS),
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, curve in curves.items():
        cells = [name, *(f"{curve[number - 1]:.4f}" for number in rounds)]
        for target in _TARGETS:
            reached = np.flatnonzero(curve >= target)
            cells.append(str(reached[0] + 1) if len(reached) else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _write_csv(curves, path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["round", *curves])
        for number, values in enumerate(zip(*curves.values(), strict=True), start=1):
            writer.writerow([number, *(f"{value:.6f}" for value in values)])


def _draw(curves, path):
    from tffed.extras import require

    figure = require("matplotlib.figure", "plot").Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        style = "--" if name == _CENTRAL else "-"
        label = name if name == _CENTRAL else f"FedAvg, {name}"
        axes.plot(range(1, len(curve) + 1), curve, style, color=_COLOURS[name], label=label)
    axes.set_title("Fashion-MNIST, MLP 784-200-200-10, 100 clients, C = 0.1, E = 1, B = 10")
    axes.set_xlabel("Round (6,000 examples)")
    axes.set_ylabel("Test accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
