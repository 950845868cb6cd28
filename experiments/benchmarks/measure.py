"""One process of the rounds benchmark: `python -m experiments.benchmarks.measure REQUEST`.

The request is the JSON of `{"workload": …, "clients": [n, …], "sizes": …, "designs": […],
"repetitions": …}`; the last line of output is a JSON list with what was measured of each n.
"""

import gc
import json
import sys
import time

from experiments.benchmarks import machine, workloads
from tffed.quiet import notes_aside

# A sample is so many rounds that it takes about so long.
_SECONDS, _MOST_ROUNDS = 0.4, 20
# Slow workloads stop at fewer repetitions, but not below these, once so many seconds have gone.
_ENOUGH_SECONDS, _LEAST_REPETITIONS = 60, 3


def main(argv=None):
    """Measures what is asked for and prints it."""
    argv = sys.argv if argv is None else argv
    print(json.dumps(measure(**json.loads(argv[1]))))


def measure(workload, clients, sizes, designs, repetitions):
    """Times designs of the same rounds in turns, after checking that their results are right.

    The first of them is measured cold: its first round and the peak of memory after that are those
    of a program that does nothing else.

    Args:
        workload: Name of one of `workloads.WORKLOADS`.
        clients: Sizes of cohorts, drawn from one population large enough for all of them.
        sizes: `"equal"` or `"ragged"`.
        designs: Names of designs.
        repetitions: Number of samples of each; 3 are enough once they have taken a minute.

    Returns:
        A list of dictionaries, one a cohort size.

    Raises:
        WrongResultError: A design's result is wrong.
    """
    with notes_aside():
        import tensorflow as tf

        import experiments.benchmarks.designs as known
        from experiments.benchmarks import reference

    tf.get_logger().setLevel("ERROR")  # it takes the designs' traces for one function's
    found = workloads.WORKLOADS[workload]()
    designs = [d for d in designs if not (d == "floor_xla" and found.convolutions)]
    population = workloads.federation(found, max(clients), sizes)
    tasks = [_task(known.Task, found, population, count) for count in clients]
    records = []
    for task in tasks:
        record = {"workload": workload, "sizes": "natural" if found.sizes is not None else sizes}
        running = {name: known.DESIGNS[name](task) for name in designs}
        record |= _first_rounds(running, cold=not records) | _size(known, found, task)
        tffeds = [name for name in designs if not name.startswith("floor")]
        reference.same_bits(tffeds, [running[name].weights() for name in tffeds])
        records.append((record, running))
    errors = reference.check(tasks[0], designs)
    _time(records, repetitions)
    peak = machine.peak_memory()
    return [record | {"errors": errors, "peak_mb": peak} for record, _ in records]


def _task(make, workload, population, clients):
    return make(
        model=workload.model,
        loss=workload.loss,
        clients=population,
        clients_per_round=clients,
        learning_rate=workload.learning_rate,
        work={"local_epochs": 1, "batch_size": workload.batch_size},
    )


def _size(known, workload, task):
    """What a round consists of."""
    _, sizes = known.batch_table(task)
    return {
        "clients": task.clients_per_round,
        "steps": len(sizes),
        "examples": int(sizes.sum()),
        "batch_size": workload.batch_size,
        "parameters": task.model().count_params(),
        "origin": workload.origin,
    }


def _first_rounds(running, cold):
    """Runs each design's first round: its seconds, and memory's peak after the very first one."""
    seconds, peak = {}, None
    for name, design in running.items():
        seconds[name] = _timed(design, 1)
        if cold and peak is None:
            peak = machine.peak_memory()
    return {"first_seconds": seconds, "first_peak_mb": peak}


def _time(records, repetitions):
    """Adds seconds per round to the records: in each repetition a sample of everything."""
    turns = [(record, name, design) for record, run in records for name, design in run.items()]
    for record, running in records:
        fastest = min(_timed(design, 1) for design in running.values())
        record |= {"rounds_per_sample": rounds_of(fastest), "seconds": {n: [] for n in running}}
    start = time.perf_counter()
    for repetition in range(repetitions):
        gone = time.perf_counter() - start
        if repetition >= _LEAST_REPETITIONS and gone > _ENOUGH_SECONDS:
            break
        shift = repetition % len(turns)
        for record, name, design in turns[shift:] + turns[:shift]:
            gc.collect()
            rounds = record["rounds_per_sample"]
            record["seconds"][name].append(_timed(design, rounds) / rounds)


def rounds_of(seconds):
    """How many rounds of so many seconds make a sample."""
    return int(min(_MOST_ROUNDS, max(1, -(-_SECONDS // seconds))))


def _timed(design, rounds):
    start = time.perf_counter()
    design.run(rounds)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
