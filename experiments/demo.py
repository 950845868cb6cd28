"""A small federated training to look at: `make demo`, or `python -m experiments.demo`.

Twenty clients hold handwritten digits, each mostly of a few kinds. A convolutional network is
trained over them without their digits coming together. It is `experiments.train` with the flags of
`experiments/flagfiles/demo.flags`; further flags may follow.
"""

import sys

from experiments import flags, results, train

FLAGFILE = flags.FLAGFILES / "demo.flags"


def main(argv=None):
    """Trains, prints and draws, into `demo/` unless `--output_dir` says otherwise."""
    argv = sys.argv if argv is None else argv
    arguments = [argv[0], f"--flagfile={FLAGFILE}", *argv[1:]]
    own = flags.parse([argv[0], f"--flagfile={FLAGFILE}"]).output_dir
    if flags.parse(arguments).output_dir == own:
        _clear(own)
    train.main(arguments)


def _clear(directory):
    """Removes the results of an earlier demo, so that a demo always shows a training."""
    removed = results.remove_files(directory)
    if removed:
        print(f"Removed the earlier demo's {', '.join(removed)} from {directory}/")


if __name__ == "__main__":
    main()
