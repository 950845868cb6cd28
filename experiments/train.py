"""Trains a model federatedly, as flags say, and writes down the results.

    python -m experiments.train --flagfile=experiments/flagfiles/diabetes_fedsgd.flags
    python -m experiments.train --flagfile=… --rounds=100 --output_dir=runs/longer
    python -m experiments.train --help

The same command again goes on from the last checkpoint, or says that the run is finished; more
`--rounds` make it longer. Flags that nothing reads are refused.
"""

import sys

from experiments import flags, results, startup

_EVALUATED_CLIENTS = 1000


def main(argv=None):
    """Runs the experiment of a command line.

    Args:
        argv: The program's name and its arguments; `sys.argv` by default.

    Raises:
        SystemExit: Something in the flags or the data is wrong; the message says what. Or the run
            was interrupted.
    """
    values = flags.parse(sys.argv if argv is None else argv)
    try:
        output = results.OutputDirectory(values)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if values.fresh and (removed := output.remove()):
        print(f"Starting over: removed {', '.join(removed)} from {output.path}")
    if (done := output.rounds_finished()) >= values.rounds:
        print(
            f"Finished: {output.path} holds {done} rounds of this experiment. More --rounds "
            "make it longer, --fresh starts it over."
        )
        _print_files(output.files())
        return
    devices = startup.start()
    try:
        run(values, output, devices)
    except KeyboardInterrupt:
        goes_on = "goes on from the last checkpoint" if values.checkpoint else "starts over"
        sys.exit(f"\nInterrupted. The same command {goes_on}.")


def run(values, output, devices):
    """Builds the experiment, trains it and writes its results.

    Args:
        values: Flags from `experiments.flags.parse`.
        output: The `experiments.results.OutputDirectory`.
        devices: What it runs on, in words.

    Raises:
        SystemExit: The flags or the data are wrong, or the checkpoint cannot be gone on from.
    """
    from experiments import builders

    try:
        experiment = builders.build(values)
    except (ValueError, ImportError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    _print_experiment(values, experiment, devices)
    rows = _fit(values, output, experiment)
    evaluation = _evaluate(experiment)
    _print_evaluation(evaluation)
    report = _privacy(values, experiment.federated)
    if report is not None:
        print(f"\n{report}")
    model, clients = experiment.federated.model, experiment.clients
    _print_files(output.finish(model, rows, clients, evaluation, report))


def _fit(values, output, experiment):
    """Trains, and returns the rows of `metrics.csv`, a dictionary of numbers a round."""
    from experiments.recorder import Recorder
    from tffed import CheckpointError

    recorder = Recorder(lambda: output.begin(experiment.origin), output.write_metrics)
    try:
        experiment.federated.fit(
            experiment.clients,
            rounds=values.rounds,
            **experiment.cohort,
            validation_data=experiment.test,
            validation_freq=values.validation_freq,
            callbacks=[recorder],
            checkpoint_dir=_checkpoints(values, output),
            checkpoint_freq=values.checkpoint_freq,
            verbose=values.verbose,
            privacy=experiment.budget,
        )
    except ValueError as error:
        if recorder.begun and not isinstance(error, CheckpointError):
            raise  # nothing that the flags said
        sys.exit(f"error: {error}")
    return recorder.rows


def _checkpoints(values, output):
    """The directory of checkpoints, or None; says so where the run goes on from one."""
    if not values.checkpoint:
        return None
    from tffed.checkpoint import Checkpoints

    done = Checkpoints(output.checkpoints).latest()
    if done:
        print(f"Going on after round {done}, from the checkpoint in {output.checkpoints}")
    return output.checkpoints


def _evaluate(experiment):
    """Final metrics: on the test data, and over clients as percentiles."""
    clients = experiment.clients
    found = experiment.federated.evaluate(clients, ids=clients.ids[:_EVALUATED_CLIENTS])
    return {
        "test": experiment.federated.evaluate(*experiment.test),
        "clients": {
            "evaluated": len(found.ids),
            "pooled": found.pooled,
            "percentiles": found.percentiles(),
        },
    }


def _privacy(values, federated):
    """The privacy report of a run with noise, else None."""
    if values.noise == "none":
        return None
    smallest = 1 / (10 * federated.ledger.entries[-1].terms.population)
    return federated.privacy_report(smallest if values.delta is None else values.delta)


def _print_experiment(values, experiment, devices):
    sizes = experiment.clients.sizes()
    print(f"Task {values.task}, algorithm {values.algorithm}, {values.rounds} rounds, on {devices}")
    print(f"Data: {experiment.origin}")
    print(
        f"{len(experiment.clients)} clients with {sizes.min()} to {sizes.max()} examples, "
        f"{sizes.sum():,} together; {experiment.federated.model.count_params():,} parameters",
        flush=True,
    )


def _print_evaluation(evaluation):
    found = "  ".join(f"{name} {value:.4g}" for name, value in evaluation["test"].items())
    print(f"\nThe global model on the test data: {found}")
    print(f"On the data of each of {evaluation['clients']['evaluated']} clients, percentiles:")
    for name, values in evaluation["clients"]["percentiles"].items():
        spread = "  ".join(f"{p}% {value:.4g}" for p, value in values.items())
        print(f"  {name:10} {spread}")


def _print_files(files):
    print("\nResults:")
    for file in files:
        print(f"  {file}")


if __name__ == "__main__":
    main()
