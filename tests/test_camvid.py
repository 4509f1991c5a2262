"""The study on CamVid: end to end on a few tiny images, and its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import scene_files

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import camvid, camvid_tables, family, report  # noqa: E402
from docs.draw import camvid as curves  # noqa: E402
from examples.training import recipe  # noqa: E402
from stripctx import models  # noqa: E402

SMALL = [
    "augmentation.crop=[16,24]", "network.backbone=tiny", "train.batch=2", "train.epochs=1",
    "optimizer.warmup=0", "train.log_every=1", "train.validate_every=1",
]  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    """The study's arguments, for one step per network; results are in the test's folder."""
    scene_files.write_camvid(tmp_path / "camvid", list(range(12)))
    folders = {"data": "camvid", "runs": "runs", "results": "results"}
    named = [text for key, name in folders.items() for text in (f"--{key}", str(tmp_path / name))]
    return [*SMALL, *named, "--weights", "", "--device", "cpu"]


def test_study_trains_every_run_once(study: list[str], tmp_path: Path) -> None:
    """Complete runs are not trained again, and stay in the results."""
    networks = ["fcn", "pspnet", "encnet"]
    path = tmp_path / "results" / "camvid.json"
    assert camvid.main([*study, "--seeds", "1", "--networks", "pspnet"]) == 0
    before = (tmp_path / "runs" / "pspnet-1" / "log.csv").read_bytes()
    assert camvid.main([*study, "--seeds", "0", "--networks", *networks]) == 0
    assert camvid.main([*study, "--seeds", "1", "--networks", "fcn", "pspnet"]) == 0
    assert (tmp_path / "runs" / "pspnet-1" / "log.csv").read_bytes() == before
    found = json.loads(path.read_text())
    runs = [(each["network"], each["seed"]) for each in found["entries"]]
    assert runs == [("fcn", 0), ("fcn", 1), ("pspnet", 0), ("pspnet", 1), ("encnet", 0)]
    assert found["machine"]["recipe"]["train"]["batch"] == 2
    assert str(tmp_path) not in path.read_text()
    for each in found["entries"]:
        assert each["loss"]["steps"] == each["validation"]["steps"] == [1]
        assert each["miou"] == pytest.approx(each["validation"]["miou"][-1], abs=1e-5)
        assert len(each["iou"]) == 11 and each["scenes"] == 2
    assert camvid.main([*study, "train.power=1", "--networks", "fcn", "--seeds", "0"]) == 2
    other = [*study, "optimizer.power=1.0", "--networks", "fcn", "--seeds", "0"]
    assert camvid.main([*other, "--runs", str(tmp_path / "other")]) == 0
    assert len(json.loads(path.read_text())["entries"]) == 1  # without those of another recipe


def test_study_names_what_is_missing(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camvid.main([*study, "--data", "nowhere"]) == 2
    assert capsys.readouterr().err == "camvid: nowhere/train/images: there is no such folder\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("network", camvid_tables.NETWORKS)
def test_recipes_differ_only_in_the_network(network: str) -> None:
    options = camvid.parse(["--data", "a", "--weights", "b"])
    settings, plain = (
        recipe.to_dict(recipe.load(camvid.RECIPE, camvid.changes(options, name, 0)))
        for name in (network, "fcn")
    )
    assert settings["network"].pop("name") == network
    assert settings["network"]["options"].items() >= plain["network"]["options"].items()
    for section in settings.keys() - {"network"}:
        assert settings[section] == plain[section]


def test_every_network_has_a_name_and_a_colour() -> None:
    assert set(camvid_tables.NETWORKS) == set(curves.COLOURS) <= set(models.available())
    assert set(camvid.OPTIONS) <= set(camvid_tables.NETWORKS)


# Tables.


def run(network: str, seed: int, miou: float) -> dict[str, Any]:
    return {
        "network": network, "seed": seed, "scenes": 17, "parameters": 1_240_000, "miou": miou,
        "pixel_accuracy": 2 * miou, "iou": {"sky": miou + 0.1, "road": miou - 0.1},
        "loss": {"steps": [1, 2], "cross_entropy": [2.0, 1.0]},
        "validation": {"steps": [2], "miou": [miou]}, "seconds": 60.4,
    }  # fmt: skip


def test_tables_average_only_seeds_that_all_networks_have() -> None:
    """For a seed that some networks lack, scores are shown but not averaged."""
    runs = [run("fcn", 0, 0.3), run("fcn", 1, 0.4), run("pspnet", 0, 0.35)]
    headers, rows = camvid_tables.scores(runs)
    assert headers == [
        "", "parameters", "mIoU, seed 0", "mIoU, seed 1", "above the FCN", "pixel accuracy",
    ]  # fmt: skip
    assert rows == [
        ["FCN", "1.2 M", "30.0%", "40.0%", "", "60.0%"],
        ["PSPNet", "1.2 M", "35.0%", "", "+5.0", "70.0%"],
    ]
    runs.append(run("pspnet", 1, 0.37))
    headers, rows = camvid_tables.scores(runs)
    assert headers[4:6] == ["mean", "above the FCN"]
    assert [row[2:7] for row in rows] == [
        ["30.0%", "40.0%", "35.0%", "", "70.0%"],
        ["35.0%", "37.0%", "36.0%", "+1.0", "72.0%"],
    ]
    assert camvid_tables.classes(runs) == (
        ["", "FCN", "PSPNet"],
        [["sky", "45.0%", "46.0%"], ["road", "25.0%", "26.0%"]],
    )


def test_report_describes_the_training(tmp_path: Path) -> None:
    facts = {"processor": "Abacus", "threads": 2, "torch": "2.13", "compiler": "g++"}
    common = camvid.shared(recipe.load(camvid.RECIPE, ["train.epochs=3"]))
    facts |= {"commit": "0123", "date": "2026-01-02", "recipe": common}
    family.write(tmp_path / "camvid.json", facts, [run("fcn", 0, 0.3), run("fcn", 1, 0.3)])
    block = "<!-- benchmarks:camvid{0} -->\nold\n<!-- /benchmarks:camvid{0} -->\n"
    text = report.update(block.format("") + block.format("-classes"), tmp_path)
    assert "3 epochs, 6 steps of 8 crops of 128 x 160" in text and "heads 5 times that" in text
    assert "| road | 20.0% |" in text and text.count("Abacus") == 1 and "old" not in text
