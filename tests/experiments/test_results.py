"""What runs leave behind: files, resumption, refusals, drawings."""

import csv
import importlib.metadata
import json

import keras
import matplotlib.figure
import numpy as np
import pytest

from experiments import builders, flags, plots, results, train

FLAGS = [
    "--task=diabetes_mlp", "--clients=3", "--client_learning_rate=0.05", "--batch_size=16",
    "--verbose=0",
]


def run(folder, *arguments):
    """Runs an experiment in this process and returns its rows without the seconds."""
    values = flags.parse(["train", *FLAGS, f"--output_dir={folder}", *arguments])
    train.run(values, results.OutputDirectory(values), "a test")
    rows = results.read_metrics(folder / "metrics.csv")
    return [{name: v for name, v in row.items() if name != "seconds"} for row in rows]


def output(folder, *arguments):
    return results.OutputDirectory(
        flags.parse(["train", *FLAGS, f"--output_dir={folder}", *arguments])
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four rounds: its folder and its rows."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, run(folder, "--rounds=4")


def test_metrics_have_a_row_a_round(finished):
    _, rows = finished
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert {"loss", "mae", "val_loss", "val_mae", "clients", "bytes_up"} <= set(rows[0])
    assert rows[3]["val_loss"] < rows[0]["val_loss"]


def test_config_holds_every_flag_and_the_versions(finished):
    config = json.loads((finished[0] / "config.json").read_text())
    assert set(config["flags"]) == set(flags.define())
    assert config["flags"]["client_learning_rate"] == 0.05
    assert config["versions"]["keras"] == keras.__version__
    assert config["versions"]["numpy"] == np.__version__
    of_this = {"python", "tensorflow", "keras", "numpy", "tffed"}
    others = {"scikit-learn", "zstandard", "tensorflow-privacy", "dp-accounting"}
    assert set(config["versions"]) == of_this | others
    assert config["versions"]["scikit-learn"] == importlib.metadata.version("scikit-learn")
    assert "diabetes" in config["data"]


def test_model_file_holds_the_model_that_was_evaluated(finished):
    folder, rows = finished
    evaluation = json.loads((folder / "evaluation.json").read_text())
    model = keras.models.load_model(folder / "model.keras", compile=False)
    values = flags.parse(["train", *FLAGS])
    x, y = builders.TASK.build(values).test
    error = float(np.mean((model.predict(x, verbose=0)[:, 0] - y) ** 2))
    assert error == pytest.approx(evaluation["test"]["loss"], rel=1e-5)
    assert error == pytest.approx(rows[-1]["val_loss"], rel=1e-5)
    assert evaluation["rounds"] == 4
    assert set(evaluation["clients"]["percentiles"]["mae"]) == {"10", "25", "50", "75", "90"}


def test_plot_is_an_image(finished):
    assert (finished[0] / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_goes_on_has_the_rows_of_one_that_was_not_stopped(finished, tmp_path):
    assert run(tmp_path, "--rounds=2") == finished[1][:2]
    assert output(tmp_path).rounds_finished() == 2
    assert run(tmp_path, "--rounds=4") == finished[1]


def test_without_checkpoints_a_run_starts_over(finished, tmp_path):
    run(tmp_path, "--rounds=2", "--nocheckpoint")
    assert not (tmp_path / "checkpoints").exists()
    assert run(tmp_path, "--rounds=4", "--nocheckpoint") == finished[1]


def test_rounds_without_validation_have_empty_fields(finished, tmp_path):
    rows = run(tmp_path, "--rounds=4", "--validation_freq=3")
    assert [("val_loss" in row) for row in rows] == [False, False, True, False]
    assert rows[2]["val_loss"] == finished[1][2]["val_loss"]
    with (tmp_path / "metrics.csv").open() as file:
        assert len({len(row) for row in csv.reader(file)}) == 1


def test_finished_run_is_left_alone(finished, capsys):
    folder, _ = finished
    before = (folder / "metrics.csv").stat().st_mtime_ns
    train.main(["train", *FLAGS, f"--output_dir={folder}", "--rounds=4"])
    assert f"Finished: {folder} holds 4 rounds" in capsys.readouterr().out
    assert (folder / "metrics.csv").stat().st_mtime_ns == before


def test_directory_of_another_experiment_is_refused_even_afresh(finished):
    folder, _ = finished
    for more in ([], ["--fresh"]):
        with pytest.raises(ValueError, match="has seed=0 where this has seed=5"):
            output(folder, "--seed=5", *more)
    assert (folder / "model.keras").is_file()


def test_checkpoints_of_an_unknown_run_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="config.json beside the checkpoints"):
        output(tmp_path)


def test_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="which is a file"):
        output(tmp_path / "file")


def test_removing_leaves_other_files_alone(tmp_path):
    run(tmp_path, "--rounds=1")
    (tmp_path / "notes.txt").write_text("mine")
    removed = output(tmp_path).remove()
    assert set(removed) == {
        "config.json", "metrics.csv", "plot.png", "model.keras", "evaluation.json", "checkpoints",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_impossible_cohort_is_one_error_and_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit, match="error: .*clients_per_round=4"):
        run(folder, "--clients_per_round=4")
    assert not folder.exists()


def test_impossible_partition_is_one_error_and_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit, match="error: .*clients=9000, 354 examples"):
        run(folder, "--clients=9000")
    assert not folder.exists()


def axes():
    return matplotlib.figure.Figure().add_subplot()


def test_curves_leave_out_rounds_without_a_value():
    rows = [{"round": 1, "loss": 3.0}, {"round": 2, "loss": 2.0, "val_loss": 2.5}]
    drawn = axes()
    plots.draw_curves(drawn, rows, "loss")
    train_line, test_line = drawn.get_lines()
    assert train_line.get_xydata().tolist() == [[1, 3], [2, 2]]
    assert test_line.get_xydata().tolist() == [[2, 2.5]]


def test_run_without_any_validation_is_drawn(tmp_path):
    clients = builders.build(flags.parse(["train", *FLAGS])).clients
    plots.plot_run([{"round": 1, "loss": 1.0, "mae": 1.0}], clients, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
