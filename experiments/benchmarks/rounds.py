"""Seconds per round of tffed beside a centralised loop of as many steps, by workload.

    python -m experiments.benchmarks.rounds --output_dir=runs/rounds
    python -m experiments.benchmarks.rounds --workloads=2nn --clients_per_round=10,1000

The floor that a round is compared with is one compiled loop of as many SGD steps on batches of the
same sizes, of the same model, on one resident data set and all cores: what the training itself
costs. Each workload has a process of its own, in which the designs take turns, so that what else
the machine does meets all of them alike; several cohort sizes take turns too. TensorFlow's threads
are left as users find them. Before anything is timed, the results are compared with federated
averaging written by hand, and no times are given if they differ. Writes rounds.txt, rounds.json
(every sample, and the machine) and rounds.png.
"""

import json
import sys
from pathlib import Path

from absl import flags as absl_flags

from experiments.benchmarks import machine, report, workloads

_DESIGNS = ("fit", "functional", "floor_graph", "floor_xla")
# What is run unless something is asked for: workload, cohort sizes, clients' sizes, designs.
_DEFAULT = (
    ("softmax", [10, 100], "equal", _DESIGNS),
    ("2nn", [10, 100], "equal", _DESIGNS),
    ("2nn", [50], "ragged", _DESIGNS),
    ("2nn", [10, 1000], "equal", ("fit",)),
    ("cnn", [10], "equal", _DESIGNS),
    ("bn_cnn", [10], "equal", _DESIGNS),
    ("char_lstm", [10], "equal", _DESIGNS),
    ("transformer", [10], "equal", _DESIGNS),
    ("movielens", [10], "equal", _DESIGNS),
    ("movielens", [100], "equal", _DESIGNS),
)


def main(argv=None):
    """Measures, prints the table and writes the files."""
    values = machine.parse(sys.argv if argv is None else argv, "rounds", __doc__, _define)
    folder = Path(values.output_dir)
    requests = choose(values)
    groups = []
    for request in requests:
        print(f"{request['workload']}, {request['clients']} {request['sizes']}", flush=True)
        try:
            groups.append(machine.in_process("experiments.benchmarks.measure", request))
        except RuntimeError as error:
            sys.exit(f"error: {error}")
    records, growth = report.summarise(groups)
    text = report.table(records, growth)
    ran = machine.describe()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.txt").write_text(text + "\n")
    content = {"machine": ran, "records": records, "growth": growth}
    (folder / "rounds.json").write_text(json.dumps(content, indent=1) + "\n")
    title = f"{ran['processor']}, {ran['processors']} processors, TensorFlow "
    report.draw(records, growth, folder / "rounds.png", title + ran["versions"]["tensorflow"])
    print(f"\n{text}\nWritten to {folder}: rounds.txt, rounds.json, rounds.png")


def _define(common):
    names = list(workloads.WORKLOADS)
    absl_flags.DEFINE_list("workloads", names, f"Some of {', '.join(names)}.", **common)
    absl_flags.DEFINE_list("designs", list(_DESIGNS), f"Some of {', '.join(_DESIGNS)}.", **common)
    absl_flags.DEFINE_list(
        "clients_per_round", None,
        "Cohort sizes, which take turns over one population of equal clients; by default 10, and "
        "more where a round is short.", **common,
    )
    absl_flags.DEFINE_enum(
        "sizes", None, ["equal", "ragged"],
        "Examples of a client: all as many, or 5 to 2,000; by default equal, and ragged once.",
        **common,
    )
    absl_flags.DEFINE_integer(
        "repetitions", 5, "Samples of each; 3 are enough once they have taken a minute.",
        lower_bound=1, **common,
    )
    absl_flags.DEFINE_string("output_dir", "runs/rounds", "Where results go.", **common)
    for name, known in (("workloads", names), ("designs", _DESIGNS)):
        absl_flags.register_validator(
            name, lambda given, known=known: given and set(given) <= set(known),
            f"expected some of {', '.join(known)}", flag_values=common["flag_values"],
        )
    absl_flags.register_validator(
        "clients_per_round",
        lambda given: given is None or all(n.isdecimal() and int(n) > 0 for n in given),
        "expected positive integers", flag_values=common["flag_values"],
    )


def choose(values):
    """What each process is to measure: the defaults, or what the flags ask for.

    Args:
        values: Parsed flags.

    Returns:
        A list of the arguments of `measure.measure`.
    """
    if values.clients_per_round is None and values.sizes is None:
        chosen = [group for group in _DEFAULT if group[0] in values.workloads]
    else:
        clients = [int(n) for n in values.clients_per_round or ["10"]]
        sizes = values.sizes or "equal"
        # The population of ragged or natural clients is the cohort: one process for each.
        chosen = []
        for name in values.workloads:
            apart = sizes == "ragged" or name == "movielens"
            together = [[n] for n in clients] if apart else [clients]
            chosen += [(name, part, sizes, _DESIGNS) for part in together]
    requests = []
    for name, clients, sizes, designs in chosen:
        designs = [d for d in designs if d in values.designs]
        if designs:
            requests.append({
                "workload": name, "clients": clients, "sizes": sizes, "designs": designs,
                "repetitions": values.repetitions,
            })
    return requests


if __name__ == "__main__":
    main()
