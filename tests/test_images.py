"""Images and label maps of all bit depths: scaled, or rejected with the file's name, never
clipped."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import scene_files  # noqa: E402

from examples import predict  # noqa: E402
from examples.data import catalogue, layouts  # noqa: E402
from examples.data.images import Reading, read_image, read_values  # noqa: E402
from examples.data.labels import DataError  # noqa: E402

SIXTEEN = np.array([[0, 257, 4095], [32768, 65535, 1000]], np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("upright", [False, True])
def test_sixteen_bits_are_scaled_by_their_depth(suffix: str, upright: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(SIXTEEN).save(path)
    expected = np.rint(SIXTEEN / 257)
    image = read_image(path, upright=upright)
    assert image.dtype == np.uint8 and image.shape == (2, 3, 3)
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], expected)


def test_white_level_of_twelve_bits_in_sixteen(tmp_path: Path) -> None:
    Image.fromarray(SIXTEEN).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", Reading(white=4095))[..., 0]
    assert found.tolist() == [[0, 16, 255], [255, 255, 62]]


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.frombytes("I;16B", (3, 2), SIXTEEN.astype(">u2").tobytes()).save(path)
    np.testing.assert_array_equal(read_image(path)[..., 0], np.rint(SIXTEEN / 257))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_deeper_images_need_a_white_level(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 40], [100, -10]], kind)).save(path)
    with pytest.raises(DataError, match=f"^{path}: .*-10 to 100: data.white must be"):
        read_image(path)
    assert read_image(path, Reading(white=100))[..., 0].tolist() == [[0, 102], [255, 0]]


def test_nan_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: contains NaN or infinite pixels"):
        read_image(tmp_path / "a.tif", Reading(white=1.0))


def test_colours_of_sixteen_bits(tmp_path: Path) -> None:
    """Decoding by bit depth, for hand-written files, because Pillow does not write them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = np.array([[[0, 257, 65535], [4095, 32768, 9]]], ">u2")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes()))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    np.testing.assert_array_equal(read_image(path), pixels >> 8)
    with pytest.raises(DataError, match=r"a\.png: has colours of 16 bits, and data\.white is for"):
        read_image(path, Reading(white=4095))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bits_are_unchanged(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(picture.convert("RGB")))


def test_float_labels_must_be_integers(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 3, 255]], np.float32)).save(path)
    assert read_values(path).tolist() == [[0, 3, 255]]
    Image.fromarray(np.array([[0, 0.5]], np.float32)).save(path)
    with pytest.raises(DataError, match="one channel, got an image of F"):
        read_values(path)


# Size.


def test_large_images_have_a_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit, lowered here, does not apply; our error names the setting."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 7)).save(path)
    assert read_image(path).shape == (7, 9, 3)
    with pytest.raises(DataError, match=r"a\.png: 7 x 9 are 63 pixels, more than data.max_pixels"):
        read_image(path, Reading(max_pixels=62))
    assert read_values_of(tmp_path).shape == (7, 9)
    assert Image.MAX_IMAGE_PIXELS == 10


def read_values_of(folder: Path) -> np.ndarray:
    Image.new("L", (9, 7)).save(folder / "b.png")
    return read_values(folder / "b.png", Reading(max_pixels=63))


def test_settings_reach_the_reader(tmp_path: Path) -> None:
    scene_files.write_camvid(tmp_path, [0, 11])
    for number in (1, 2):  # in this layout they only have a JPEG's name
        deep = tmp_path / "train" / "images" / f"{number}.jpg"
        Image.fromarray(np.full(scene_files.SIZE, 2000, np.uint16)).save(deep, format="PNG")
    data = catalogue.Data(name="camvid", root=str(tmp_path), white=4000)
    assert (catalogue.open_split(data, "train")[1].image == 128).all()
    data.max_pixels = 100
    with pytest.raises(DataError, match="12 x 16 are 192 pixels"):
        catalogue.open_split(data, "train")[0]


# Other files in image folders.


def test_hidden_files_are_skipped(tmp_path: Path) -> None:
    """In every layout that lists a folder, and in folders given to predict.py."""
    scene_files.write_camvid(tmp_path / "camvid", [0])
    scene_files.write_cityscapes(tmp_path / "city", [7])
    camvid = tmp_path / "camvid" / "train" / "images"
    ulm = tmp_path / "city" / "leftImg8bit" / "train" / "ulm"
    before = [len(layouts.camvid(tmp_path / "camvid", "train"))]
    before += [len(layouts.cityscapes(tmp_path / "city", "train")), len(predict.listed(camvid))]
    for path in (camvid / "._1.jpg", camvid / ".2.png", ulm / "._ulm_0_leftImg8bit.png"):
        path.write_bytes(b"\0\5\26\7")
    (camvid / "folder.png").mkdir()
    after = [len(layouts.camvid(tmp_path / "camvid", "train"))]
    after += [len(layouts.cityscapes(tmp_path / "city", "train")), len(predict.listed(camvid))]
    assert before == after == [2, 2, 2]
