"""One checkout's side of `versions`: runs rounds when it is told to, and says how long they took.

Started by path with the checkout on `PYTHONPATH`, so that all it imports is that checkout's. The
request is the JSON of `{"workload": …, "clients": n, "sizes": …, "design": …}`. It prints the
folder that tffed came from and the first round's seconds, then for every number of rounds that it
reads a line with their seconds.
"""

import json
import sys
import time
from pathlib import Path


def main(request):
    """Builds the design and serves samples until standard input ends."""
    import tffed
    from experiments.benchmarks import designs, workloads

    found = workloads.WORKLOADS[request["workload"]]()
    task = designs.Task(
        model=found.model,
        loss=found.loss,
        clients=workloads.federation(found, request["clients"], request["sizes"]),
        clients_per_round=request["clients"],
        learning_rate=found.learning_rate,
        work={"local_epochs": 1, "batch_size": found.batch_size},
    )
    running = designs.DESIGNS[request["design"]](task)
    _say(str(Path(tffed.__file__).parents[1]), _timed(running, 1))
    for line in sys.stdin:
        _say(_timed(running, int(line)))


def _timed(design, rounds):
    start = time.perf_counter()
    design.run(rounds)
    return time.perf_counter() - start


def _say(*values):
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
