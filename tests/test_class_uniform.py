"""HANet's class-uniform sampling: centroids of classes, sampling of an epoch, crops."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import process_group
import pytest
import scene_files
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from training_runs import small, stop_after, train, train_in_processes  # noqa: E402

from examples.data import catalogue, centroids  # noqa: E402
from examples.data.augment import Augmentation, Augmented, Key, augment  # noqa: E402
from examples.data.catalogue import Data  # noqa: E402
from examples.data.labels import IGNORE, DataError  # noqa: E402
from examples.data.pairs import PairedFiles, Scene  # noqa: E402
from examples.training import batches, checkpoint, log  # noqa: E402
from examples.training.class_centroids import CENTROIDS, find_centroids  # noqa: E402
from examples.training.processes import Processes  # noqa: E402
from examples.training.recipe import RecipeError  # noqa: E402
from examples.training.trainer import StoppedError, Trainer  # noqa: E402

# Centroids.


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(1, 13), st.integers(0, 99))
def test_centroids_are_means_over_tiles(size: tuple[int, int], tile: int, seed: int) -> None:
    labels = np.random.default_rng(seed).choice([0, 1, 3, IGNORE], size).astype(np.uint8)
    pixels: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for row in range(size[0]):
        for column in range(size[1]):
            where = (row // tile, column // tile, int(labels[row, column]))
            pixels.setdefault(where, []).append((row, column))
    expected = [
        [5, where[2], sum(y for y, _ in seen) // len(seen), sum(x for _, x in seen) // len(seen)]
        for where, seen in sorted(pixels.items())
        if where[2] != IGNORE
    ]
    found = centroids.of_scene(5, labels, 4, tile)
    assert found.tolist() == expected and found.dtype == np.int32


def read_counter(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the scenes whose labels are read."""
    read: list[int] = []
    plain = PairedFiles.labels

    def counted(self: PairedFiles, index: int) -> np.ndarray:
        read.append(index)
        return plain(self, index)

    monkeypatch.setattr(PairedFiles, "labels", counted)
    return read


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    scene_files.write_camvid(tmp_path / "camvid", list(range(12)))
    return tmp_path / "camvid"


def found_in(camvid: Path, tile: int = 5) -> np.ndarray:
    scenes = catalogue.open_split(Data(name="camvid", root=str(camvid)), "train")
    return find_centroids(scenes, tile, camvid.parent, Processes())


def test_labels_are_read_once(camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_counter(monkeypatch)
    before = sorted(camvid.rglob("*"))
    found = found_in(camvid)
    assert sorted(read) == [0, 1] and sorted(camvid.rglob("*")) == before
    assert set(found[:, 0]) == {0, 1} and set(found[:, 1]) == set(range(11))
    np.testing.assert_array_equal(found_in(camvid), found)
    assert len(read) == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", "half", "other"])
def test_a_broken_centroid_file_is_rebuilt(content: bytes | str, camvid: Path) -> None:
    found = found_in(camvid)
    path = camvid.parent / CENTROIDS
    whole = path.read_bytes()
    if content == "other":
        np.savez(path, rows=np.zeros(3))
    else:
        path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    np.testing.assert_array_equal(found_in(camvid), found)
    assert path.read_bytes() == whole


def test_changed_labels_or_tiles_recompute_the_centroids(
    camvid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = found_in(camvid)
    read = read_counter(monkeypatch)
    assert len(found_in(camvid, tile=100)) < len(first) and len(read) == 2
    Image.new("L", scene_files.SIZE[::-1], 3).save(camvid / "train" / "labels" / "2.png")
    found = found_in(camvid, tile=100)
    assert found[found[:, 0] == 1].tolist() == [[1, 3, 5, 7]] and len(read) == 4


def test_broken_label_is_named(camvid: Path) -> None:
    path = camvid / "train" / "labels" / "2.png"
    Image.new("L", scene_files.SIZE[::-1], 77).save(path)
    with pytest.raises(DataError, match=f"^{path}: labels must be among"):
        found_in(camvid)
    path.write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=f"^{path}: cannot be read"):
        found_in(camvid)
    assert not (camvid.parent / CENTROIDS).exists()


def test_a_broken_label_read_by_another_process(camvid: Path) -> None:
    """The error is raised in all processes, and none waits for the others."""

    class Two(Processes):
        def share(self, value: object) -> object:
            return value

        def gather(self, value: object) -> list[object]:
            return [value, DataError("b/labels/7.png: cannot be read")]

    scenes = catalogue.open_split(Data(name="camvid", root=str(camvid)), "train")
    with pytest.raises(DataError, match=r"^b/labels/7\.png: cannot be read"):
        find_centroids(scenes, 5, camvid.parent, Two(0, 2))
    assert not (camvid.parent / CENTROIDS).exists()


# Sampling of an epoch.

COUNTS = {0: 100, 2: 7, 3: 1}  # centroids of each class; class 1 does not occur


def some_centroids() -> np.ndarray:
    rows = [
        (number % 20, kind, 3 * number, 5 * number + kind)
        for kind, count in COUNTS.items()
        for number in range(count)
    ]
    return np.array(rows, np.int32)


def test_an_epoch_draws_classes_evenly() -> None:
    order = batches.ClassUniform(100, some_centroids(), 0.5, seed=4)
    known = {tuple(row[[0, 2, 3]]): row[1] for row in some_centroids()}
    extra = Counter[int]()
    for epoch in range(12):
        keys = order.epoch(epoch)
        assert len(keys) == len(order) == 100 and {key.epoch for key in keys} == {epoch}
        plain = [key for key in keys if key.centre is None]
        assert len(plain) == len({key.index for key in plain}) == 50
        kinds = [
            known[key.index, key.centre[0], key.centre[1]] for key in keys if key.centre is not None
        ]
        counts = Counter(kinds)
        assert sorted(counts.values()) == [16, 17, 17] and set(counts) == set(COUNTS)
        extra.update(kind for kind in counts if counts[kind] == 17)
        times = Counter((key.index, key.centre) for key in keys if key.centre is not None)
        seen = [times[index, (row, column)] for (index, row, column), k in known.items() if k == 2]
        assert {2, 3} >= set(seen) and sum(seen) == counts[2]  # none 3 times before all 2 times
        assert len({(key.index, key.turn) for key in keys}) == 100  # each is augmented differently
        halves = [sum(key.centre is None for key in half) for half in (keys[:50], keys[50:])]
        assert min(halves) > 10  # in mixed order
    assert set(extra) == set(COUNTS)  # the class with an additional draw varies


def test_an_epoch_depends_only_on_seed_and_number() -> None:
    first, again, other = (
        batches.ClassUniform(30, some_centroids(), 0.5, seed) for seed in (1, 1, 2)
    )
    later = first.epoch(3)
    assert first.epoch(2) != later == again.epoch(3) != other.epoch(3)


def test_without_class_draws_an_epoch_is_every_scene() -> None:
    empty = batches.ClassUniform(9, centroids.NONE, 0.5, seed=1).epoch(0)
    assert sorted(key.index for key in empty) == list(range(9))
    plain = batches.EveryScene(9, seed=1).epoch(0)
    assert sorted(key.index for key in plain) == list(range(9))
    everything = batches.ClassUniform(9, some_centroids(), 1.0, seed=1).epoch(0)
    assert all(key.centre is not None for key in everything) and len(everything) == 9


def test_processes_divide_every_batch() -> None:
    order = batches.ClassUniform(22, some_centroids(), 0.5, seed=1)

    def steps(rank: int, size: int, start: int = 0) -> list[list[Key]]:
        here = Processes(rank, size)
        return list(batches.Batches(order, 4, start=start, steps=13, processes=here))

    alone = steps(0, 1)
    assert steps(0, 1, start=7) == alone[7:]
    for whole, first, second in zip(alone, steps(0, 2), steps(1, 2), strict=True):
        assert Counter(whole) == Counter(first + second) and len(first) == len(second) == 2


# Crops.


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(8, 60), min_size=2, max_size=2),
    st.tuples(st.integers(9, 70), st.integers(9, 70)),
    st.sampled_from([[1.0, 1.0], [0.5, 2.0]]),
    st.sampled_from(["around", "after"]),
    st.integers(0, 10_000),
)
def test_a_crop_contains_its_centre(
    crop: list[int], size: tuple[int, int], scale: list[float], padded: str, seed: int
) -> None:
    """The 5 x 5 square around it, so that some pixels are left at half the size."""
    rng = np.random.default_rng(seed)
    row, column = (int(rng.integers(2, side - 2)) for side in size)
    labels = np.zeros(size, np.uint8)
    labels[row - 2 : row + 3, column - 2 : column + 3] = 7
    scene = Scene(np.zeros((*size, 3), np.uint8), labels, "square")
    options = Augmentation(crop=crop, scale=scale, padded=padded)
    result = augment(scene, options, rng, (row, column))
    assert (result.labels == 7).any()


def test_centres_are_anywhere_in_their_crops() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[100, 90] = 1
    scene = Scene(np.zeros((200, 200, 3), np.uint8), labels, "point")
    found = []
    for seed in range(300):
        options = Augmentation(crop=[20, 30], flip_chance=0.5)
        result = augment(scene, options, np.random.default_rng(seed), (100, 90))
        found.append(torch.nonzero(result.labels == 1)[0].tolist())
    rows, columns = (sorted(each) for each in zip(*found, strict=True))
    assert (rows[0], rows[-1]) == (0, 19) and columns[0] <= 1 and columns[-1] >= 28
    assert 8 < np.mean(rows) < 11 and 12.5 < np.mean(columns) < 16.5


def test_plain_keys_augment_as_turn_0() -> None:
    """The turn of a plain key is 0; trailing zeros do not change a seed."""
    for seed in (0, 7, 2**31):
        left, right = np.random.default_rng((seed, 3, 5)), np.random.default_rng((seed, 3, 5, 0))
        assert left.random() == right.random()


def test_repeated_draws_of_a_scene_are_augmented_differently() -> None:
    class Noise:
        def __getitem__(self, index: int) -> Scene:
            image = np.random.default_rng(index).integers(0, 256, (40, 40, 3), np.uint8)
            return Scene(image, image[..., 0], "noise")

    scenes = Augmented(Noise(), Augmentation(crop=[20, 20]), seed=1)
    first, again, other = (scenes[Key(0, 1, turn, (20, 20))].image for turn in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# Training.

HALF = ("data.class_uniform=0.5", "data.tile=16")


def curve(folder: Path) -> list[list[str]]:
    return [[row[name] for name in log.CURVE] for row in log.read(folder / "log.csv")]


@pytest.mark.slow
def test_a_stopped_run_resumes_at_its_step(tmp_path: Path) -> None:
    recipe = small(tmp_path, *HALF, "train.workers=1")
    train(recipe, tmp_path / "whole")
    plain = train(small(tmp_path), tmp_path / "plain")
    assert plain.steps == 12 and curve(tmp_path / "plain") != curve(tmp_path / "whole")
    stopped = Trainer(recipe, tmp_path / "stopped")
    stop_after(stopped, 5)
    with pytest.raises(StoppedError, match="after step 5 of 12"):
        stopped.run()
    (tmp_path / "stopped" / CENTROIDS).unlink()  # a killed run may not have written it
    train(recipe, tmp_path / "stopped")
    assert curve(tmp_path / "whole") == curve(tmp_path / "stopped")
    left, right = (
        checkpoint.read(tmp_path / name / checkpoint.LAST) for name in ("whole", "stopped")
    )
    torch.testing.assert_close(left["network"], right["network"], rtol=0, atol=0)
    with pytest.raises(RecipeError, match=r"data\.class_uniform: is 0\.25, but .* with 0\.5"):
        Trainer(small(tmp_path, "data.class_uniform=0.25", "data.tile=16"), tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Each locates half of the centroids; one run is stopped and resumed, as in test_train.py."""
    changes = (*HALF, "train.norms=frozen", "network.options={dropout: 0.0}", "train.epochs=2")
    train(small(tmp_path, *changes), tmp_path / "one" / "half")
    process_group.run(train_in_processes, tmp_path, tmp_path, {"half": changes})
    folders = [tmp_path / name / "half" for name in ("one", "many")]
    one, many = (np.load(folder / CENTROIDS)["centroids"] for folder in folders)
    np.testing.assert_array_equal(one, many)
    assert not (tmp_path / "elsewhere" / "half" / CENTROIDS).exists()
    for name in ("loss", "miou"):
        left, right = (log.curve(folder / "log.csv", name)[1] for folder in folders)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


# Cityscapes' coarse labels.


def write_coarse(root: Path) -> None:
    scene_files.write_cityscapes(root, [7, 11, 26])
    scene_files.write_pair(
        root / "leftImg8bit" / "train_extra" / "bonn" / "bonn_0_leftImg8bit.png",
        root / "gtCoarse" / "train_extra" / "bonn" / "bonn_0_gtCoarse_labelIds.png",
        scene_files.values_among([0, 7, 27, 28]),
    )


def test_coarse_scenes_are_drawn_for_their_classes_only(tmp_path: Path) -> None:
    write_coarse(tmp_path)
    changes = (
        "data.name=cityscapes", f"data.root={tmp_path}", "data.coarse=[truck]",
        "data.class_uniform=1.0", "train.batch=2", "train.validate_every=0",
    )  # fmt: skip
    trainer = Trainer(small(tmp_path, *changes), tmp_path / "run")
    assert (trainer.scenes, len(trainer.examples)) == (2, 3)
    trainer.folder.mkdir()
    order = trainer._order()
    keys = [key for epoch in range(40) for key in order.epoch(epoch)]
    assert len(order) == 2 and {key.index for key in keys} == {0, 1, 2}
    trucks = centroids.of_scene(2, trainer.examples.scenes.labels(2), 19, 1024)
    (truck,) = trucks[trucks[:, 1] == 14, 2:].tolist()
    assert {key.centre for key in keys if key.index == 2} == {tuple(truck)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.class_uniform=1.5"], "data.class_uniform: must be 0 to 1, got 1.5"),
        (["data.tile=0"], "data.tile: must be positive, got 0"),
        (["data.coarse=[bus]"], "data.coarse: is for cityscapes with data.class_uniform, got sce"),
    ],
)
def test_invalid_settings(changes: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        small(tmp_path, *changes)


def test_unknown_coarse_class(tmp_path: Path) -> None:
    write_coarse(tmp_path)
    data = Data(name="cityscapes", root=str(tmp_path), class_uniform=0.5, coarse=["tank"])
    with pytest.raises(DataError, match=r"data\.coarse: must be among road, .* got tank"):
        catalogue.open_training(data)
