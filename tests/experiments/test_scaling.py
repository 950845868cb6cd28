"""The benchmark of growth: its points, slopes and picture."""

import json

import numpy as np
import pytest

from experiments.benchmarks import machine, scaling, scaling_point


def canned(request):
    """A point whose time grows with the square root and whose memory does not grow."""
    at = max(request.values())
    return {
        "parameters": request["parameters"], "seconds": [1e9, at**0.5, 0.0], "first_seconds": 2.0,
        "before_mb": 500.0, "peak_mb": 600.0,
    }


def test_slopes_are_those_of_power_laws():
    points = [
        {"sweep": "population", "at": at, "seconds": [3e-4 * at**1.5], "peak_mb": 7e2 * at**0.25}
        for at in (10, 100, 10_000)
    ]
    line = scaling.slopes(points)["population"]
    assert line["seconds"]["slope"] == pytest.approx(1.5)
    assert line["seconds"]["last"] == pytest.approx(1.5)
    assert line["peak_mb"]["slope"] == pytest.approx(0.25)
    assert scaling.slopes(points[:1]) == {}


def test_lines_find_the_fixed_cost_and_that_of_each():
    points = [
        {"sweep": "population", "at": at, "seconds": [0.03 + 5e-4 * at], "peak_mb": 700.0}
        for at in (10, 100, 1000)
    ]
    line = scaling.slopes(points)["population"]
    assert line["seconds"]["fixed"] == pytest.approx(0.03)
    assert line["seconds"]["each"] == pytest.approx(5e-4)
    assert line["peak_mb"]["fixed"] == pytest.approx(700)
    assert line["peak_mb"]["each"] == pytest.approx(0, abs=1e-9)


def test_program_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        machine, "in_process", lambda module, request: asked.append(request) or canned(request)
    )
    scaling.main(["scaling", "--sweeps=population,parameters", f"--output_dir={tmp_path}"])
    assert [r["population"] for r in asked[:5]] == [10**k for k in (2, 3, 4, 5, 6)]
    assert all(r["clients_per_round"] == 2 for r in asked[5:])
    out = capsys.readouterr().out
    assert "parameters: time slope 0.50, at the end 0.50" in out
    assert "memory slope 0.00, at the end 0.00, 600 MB" in out
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert len(written["points"]) == 10 and written["machine"]["processors"]
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_points_beyond_the_largest_are_left_out(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        machine, "in_process", lambda module, request: asked.append(request) or canned(request)
    )
    scaling.main(["scaling", "--sweeps=local_steps", "--largest=10", f"--output_dir={tmp_path}"])
    assert [r["local_steps"] for r in asked] == [1, 10]


@pytest.mark.parametrize("parameters", [10**4, 10**6, 10**8])
def test_model_has_about_as_many_parameters(parameters):
    h = scaling_point.hidden_width(parameters)
    assert abs((100 * h + h + h * h + h + 10 * h + 10) / parameters - 1) < 0.02


def test_point_is_measured(monkeypatch):
    monkeypatch.setattr(scaling_point, "_SECONDS", 0)
    found = scaling_point.measure(
        clients_per_round=2, population=5, parameters=2_000, local_steps=1
    )
    assert len(found["seconds"]) == 1 and 0 < found["seconds"][0] < found["first_seconds"]
    assert 100 < found["before_mb"] <= found["peak_mb"]
    assert found["parameters"] == pytest.approx(2_000, rel=0.05)
    assert np.isfinite(found["first_seconds"])
