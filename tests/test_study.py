"""The CamVid study from end to end, on a handful of tiny images for a step or two."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import scene_files

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from examples.study import __main__ as camvid  # noqa: E402
from examples.study import report  # noqa: E402
from examples.training import recipe  # noqa: E402
from stripctx import models  # noqa: E402

SMALL = """
data: {name: camvid}
augmentation: {crop: [16, 24]}
network: {backbone: tiny}
train: {batch: 2, epochs: 2, workers: 0, log_every: 1, save_every: 0}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The study's arguments; its recipe and its results lie in the test's folder."""
    scene_files.write_camvid(tmp_path / "camvid", list(range(12)))
    (tmp_path / "short.yaml").write_text(SMALL)
    monkeypatch.setattr(camvid, "HERE", tmp_path)
    monkeypatch.setattr(camvid, "RESULTS", tmp_path / "results")
    data, runs = tmp_path / "camvid", tmp_path / "runs"
    return ["--data", str(data), "--budget", "short", "--runs", str(runs), "--device", "cpu"]


def networks_in(path: Path) -> list[str]:
    return [each["network"] for each in json.loads(path.read_text())["entries"]]


@pytest.mark.slow
def test_the_study_writes_numbers_and_curves(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camvid.main([*study, "--seeds", "0", "1"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("mIoU", "cyclist", "±"))
    path = tmp_path / "results" / "short.json"
    found = json.loads(path.read_text())
    assert [(each["network"], each["seed"]) for each in found["entries"]] == [
        (name, seed) for name in camvid.NETWORKS for seed in (0, 1)
    ]
    assert found["machine"]["recipe"]["train"]["batch"] == 2
    for entry in found["entries"]:
        assert entry["loss"]["steps"] == [1, 2]
        assert entry["validation"]["steps"] == [1, 2]
        assert entry["miou"] == pytest.approx(entry["validation"]["miou"][-1], abs=1e-5)
        assert len(entry["iou"]) == 11
    assert (tmp_path / "runs" / "short.svg").read_text().count("<svg") == 1
    assert str(tmp_path) not in path.read_text()


@pytest.mark.slow
def test_the_study_goes_on_where_it_was(study: list[str], tmp_path: Path) -> None:
    """Runs that are complete are not trained again, and results of other runs are kept."""
    path = tmp_path / "results" / "short.json"
    assert camvid.main([*study, "--networks", "encnet"]) == 0
    assert camvid.main([*study, "--networks", "fcn"]) == 0
    assert networks_in(path) == [
        "fcn",
        "encnet",
    ]
    logs = sorted((tmp_path / "runs").rglob("log.csv"))
    before = [each.read_text() for each in logs]
    assert len(before) == 2
    assert camvid.main(study) == 0
    assert [each.read_text() for each in logs] == before
    assert networks_in(path) == list(camvid.NETWORKS)


@pytest.mark.slow
def test_results_of_another_recipe_are_not_kept(study: list[str], tmp_path: Path) -> None:
    assert camvid.main([*study, "--networks", "encnet"]) == 0
    (tmp_path / "short.yaml").write_text(SMALL.replace("batch: 2", "batch: 1"))
    other = [*study, "--networks", "spnet", "--runs", str(tmp_path / "other")]
    assert camvid.main(other) == 0
    path = tmp_path / "results" / "short.json"
    assert networks_in(path) == ["spnet"]


def test_the_study_names_what_is_missing(
    study: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study[1] = "nowhere"
    assert camvid.main(study) == 2
    assert capsys.readouterr().err == "study: nowhere/train/images: there is no such folder\n"


@pytest.mark.parametrize("budget", ["short", "long"])
@pytest.mark.parametrize("network", camvid.NETWORKS)
def test_recipes_differ_in_the_network_alone(budget: str, network: str, tmp_path: Path) -> None:
    settings, plain = (
        recipe.to_dict(camvid.Run(name, 0).settings(camvid.Budget(budget), tmp_path))
        for name in (network, "fcn")
    )
    assert settings["network"].pop("name") == network
    assert settings["network"]["options"].items() >= plain["network"]["options"].items()
    for section in settings.keys() - {"network"}:
        assert settings[section] == plain[section]


def test_every_network_has_a_name_and_a_colour() -> None:
    assert set(camvid.NETWORKS) == set(report.LABELS) == set(report.COLOURS)
    assert set(camvid.NETWORKS) <= set(models.available())
