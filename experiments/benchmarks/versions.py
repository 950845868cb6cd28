"""Seconds a round of this checkout beside another one's, in turns on one machine.

    git worktree add /tmp/before main~10
    python -m experiments.benchmarks.versions --before=/tmp/before --workloads=2nn,char_lstm

Each workload has one process a checkout, both alive at once; they run rounds in turns (before,
after, after, before, …), so that what else the machine does meets both alike. A pair's ratio is
after / before; the table gives the median of the ratios and its 95 % interval (by signs: order
statistics of the binomial distribution, free of assumptions on the noise). Pairs are added until
the interval lies on one side of `--limit`, or `--seconds` have gone. Writes versions.txt and
versions.json (every sample, and the machine).
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import flags as absl_flags
from scipy import stats

from experiments.benchmarks import machine, measure, rounds, workloads

_HERE = Path(__file__).resolve()
_LEAST_PAIRS = 10


def main(argv=None):
    """Measures, prints the table and writes the files."""
    values = machine.parse(sys.argv if argv is None else argv, "versions", __doc__, _define)
    folder = Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    values.designs = ["fit"]
    records, lines = [], [_row("workload", "clients", "pairs", "before", "after", "ratio", "95 %",
                               "first round")]
    print(lines[0], flush=True)
    for request in rounds.choose(values):
        for clients in request["clients"]:
            asked = {"workload": request["workload"], "clients": clients,
                     "sizes": request["sizes"], "design": "fit"}
            records.append(asked | compare(asked, values.before, values.seconds, values.limit))
            lines.append(_line(records[-1]))
            print(lines[-1], flush=True)
    (folder / "versions.txt").write_text("\n".join(lines) + "\n")
    content = {"machine": machine.describe(), "records": records}
    (folder / "versions.json").write_text(json.dumps(content, indent=1) + "\n")


def _define(common):
    names = list(workloads.WORKLOADS)
    absl_flags.DEFINE_string("before", None, "Folder of the other checkout.", **common)
    absl_flags.DEFINE_list("workloads", names, f"Some of {', '.join(names)}.", **common)
    absl_flags.DEFINE_list("designs", ["fit"], "Only fit is compared.", **common)
    absl_flags.DEFINE_list("clients_per_round", None, "Cohort sizes; as in rounds.", **common)
    absl_flags.DEFINE_enum("sizes", None, ["equal", "ragged"], "As in rounds.", **common)
    absl_flags.DEFINE_integer("repetitions", 1, "Not used.", **common)
    absl_flags.DEFINE_float("seconds", 120.0, "About how long for one workload.", **common)
    absl_flags.DEFINE_float("limit", 1.03, "Ratio that is to be told apart.", **common)
    absl_flags.DEFINE_string("output_dir", "runs/versions", "Where results go.", **common)
    absl_flags.mark_flag_as_required("before", flag_values=common["flag_values"])


def compare(request, before, seconds, limit):
    """Samples of both checkouts in turns.

    Args:
        request: What `version_process` is asked for.
        before: The other checkout's folder.
        seconds: Sampling ends after so long, but not before 10 pairs.
        limit: Sampling ends once the interval of the median ratio lies on one side of it.

    Returns:
        A dictionary: seconds a round of every sample by checkout, first rounds, the median ratio
        and its interval.
    """
    folders = {"before": Path(before).resolve(), "after": _HERE.parents[2]}
    sides = {name: _Side(folder, request) for name, folder in folders.items()}
    try:
        count = measure.rounds_of(min(side.seconds(1) for side in sides.values()))
        for side in sides.values():
            side.seconds(count)
        samples = {name: [] for name in sides}
        low, high = 0.0, float("inf")
        end = time.monotonic() + seconds
        while len(samples["after"]) < _LEAST_PAIRS or (
            low <= limit < high and time.monotonic() < end
        ):
            order = ("before", "after") if len(samples["after"]) % 2 == 0 else ("after", "before")
            for name in order:
                samples[name].append(sides[name].seconds(count) / count)
            ratios = [a / b for a, b in zip(samples["after"], samples["before"], strict=True)]
            low, high = interval(ratios)
    finally:
        for side in sides.values():
            side.close()
    return {
        "rounds_per_sample": count,
        "seconds": samples,
        "first_seconds": {name: side.first for name, side in sides.items()},
        "ratio": statistics.median(ratios),
        "interval": [low, high],
    }


def interval(ratios, level=0.95):
    """A confidence interval of the median, by order statistics.

    The number of samples below the median is binomial (n, ½): the k-th smallest and the k-th
    largest enclose it with probability at least 1 - 2 P(fewer than k below).
    """
    ordered = sorted(ratios)
    k = int(stats.binom.ppf((1 - level) / 2, len(ordered), 0.5))
    return (ordered[k - 1], ordered[-k]) if k else (0.0, float("inf"))


class _Side:
    """The process of one checkout."""

    def __init__(self, folder, request):
        paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
        program = str(_HERE.with_name("version_process.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", program, json.dumps(request)], cwd=folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        used, self.first = self._read()
        if Path(used) != folder:
            raise RuntimeError(f"Expected tffed of {folder}. Received: {used}.")

    def seconds(self, rounds):
        print(rounds, file=self._process.stdin, flush=True)
        return self._read()[0]

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("Expected seconds. Received: the process ended; see above.")
        return json.loads(line)


def _line(record):
    before, after = (
        f"{statistics.median(record['seconds'][name]) * 1e3:.1f} ms" for name in ("before", "after")
    )
    first = record["first_seconds"]
    return _row(
        record["workload"], f"{record['clients']} {record['sizes']}",
        len(record["seconds"]["after"]), before, after, f"{record['ratio']:.3f}",
        "{:.3f} to {:.3f}".format(*record["interval"]),
        f"{first['before']:.1f} s, {first['after']:.1f} s",
    )


def _row(*cells):
    widths = (12, 14, 6, 11, 11, 7, 16, 18)
    return "  ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True))


if __name__ == "__main__":
    main()
