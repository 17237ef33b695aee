"""Data sets: idx files and their checksums, folders of images."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model import data
from model.data import DataError, load_folder, load_idx, parse_idx
from tests.idx_files import ARRAYS, MD5, SOURCE, idx, lay_out, packed

GREY = (1, 8, 8)


@pytest.mark.parametrize("array", [*ARRAYS.values(), np.uint8([7]), np.zeros((2, 3, 4, 5), np.uint8)])
def test_an_idx_file_gives_back_the_array_that_was_written(array: np.ndarray) -> None:
    np.testing.assert_array_equal(parse_idx(idx(array)), array)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an idx file of unsigned bytes"),  # of floats
        (b"\x89PNG\r\n\x1a\n", "not an idx file"),
        (b"\0\0\x08\x03\0\0\0\x01", "does not hold the sides"),
        (idx(np.zeros((2, 2), np.uint8))[:-1], "does not hold the sides [2, 2]"),
        (idx(np.zeros((2, 2), np.uint8)) + b"\0", "does not hold the sides [2, 2]"),
        (b"\0\0\x08\x04" + struct.pack(">4I", 2**16, 2**16, 2**16, 2**16), "does not hold"),  # 2^64 bytes, 0 in int64
    ],
)
def test_what_is_no_idx_file_or_not_a_whole_one_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_idx(raw)
    assert words in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_four_files_become_images_and_labels(tmp_path: Path, zipped: bool) -> None:
    dataset = load_idx(SOURCE, lay_out(tmp_path, zipped))
    assert dataset.train.shape == (30, 1, 8, 8)
    assert dataset.test.shape == (7, 1, 8, 8)
    np.testing.assert_array_equal(dataset.train[:, 0], ARRAYS["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(dataset.test_labels, ARRAYS["t10k-labels-idx1-ubyte"])
    assert dataset.summary() == "Noise: 30 training and 7 held-out images"


def test_it_does_not_matter_how_the_files_were_packed(tmp_path: Path) -> None:
    path = lay_out(tmp_path) / "noise" / "train-images-idx3-ubyte.gz"
    other = packed("train-images-idx3-ubyte", 1)
    assert other != path.read_bytes()
    path.write_bytes(other)
    assert len(load_idx(SOURCE, tmp_path).train) == 30


def test_other_contents_are_refused_with_both_checksums(tmp_path: Path) -> None:
    path = lay_out(tmp_path, zipped=False) / "noise" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DataError, match=rf"t10k-labels-idx1-ubyte: MD5 .* expected {MD5[3]}; delete it and try again"):
        load_idx(SOURCE, tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 300])
def test_a_truncated_gzip_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = lay_out(tmp_path) / "noise" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: .*(whole gzip file|MD5)"):
        load_idx(SOURCE, tmp_path)


def test_images_of_another_shape_than_the_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.SOURCES, "mnist", SOURCE)
    lay_out(tmp_path)
    assert data.load("mnist", GREY, tmp_path).name == "Noise"
    with pytest.raises(DataError, match=r"mnist has images of shape \(1, 8, 8\); the model reads \(1, 28, 28\)"):
        data.load("mnist", (1, 28, 28), tmp_path)


def test_the_data_folder_is_the_argument_or_the_variable_or_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data.SOURCES, "mnist", SOURCE)
    monkeypatch.setenv("VAE_DATA_DIR", str(lay_out(tmp_path)))
    assert len(data.load("mnist", GREY).train) == 30
    monkeypatch.delenv("VAE_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.default_data_dir() == tmp_path / "home" / ".cache" / "vae-service"


def save_image(path: Path, value: int, mode: str = "L", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """120 images whose grey is their number, in two levels of subfolders."""
    for number in range(120):
        save_image(tmp_path / "images" / f"class {number % 3}" / f"part{number % 2}" / f"{number:03}.png", number)
    return tmp_path / "images"


def numbers(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_a_folder_is_searched_with_its_subfolders_in_the_order_of_its_paths(folder: Path) -> None:
    dataset = load_folder(folder, GREY)
    ranks = {number: (number % 3, number % 2, number) for number in range(120)}
    for part in (dataset.train, dataset.test):
        assert part.dtype == np.uint8
        assert part.shape[1:] == GREY
        assert numbers(part) == sorted(numbers(part), key=ranks.__getitem__)
    assert sorted(numbers(dataset.train) + numbers(dataset.test)) == list(range(120))
    assert 5 <= len(dataset.test) <= 20
    assert dataset.name == "images"
    assert dataset.train_labels is None


def test_images_are_prepared_to_the_models_shape_as_the_service_prepares_them(tmp_path: Path) -> None:
    for number in range(100):
        save_image(tmp_path / f"{number}.JPG", number, "RGB", (30, 20))
    dataset = load_folder(tmp_path, (3, 8, 12))
    assert dataset.train.shape[1:] == (3, 8, 12)
    assert dataset.sizes == {"30x20": 100}


def test_unreadable_files_are_skipped_named_and_counted(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    whole = (folder / "class 0" / "part0" / "000.png").read_bytes()
    (folder / "class 1" / "cut.png").write_bytes(whole[:-20])
    (folder / "notes.txt").write_text("not an image, and not looked at")
    (folder / "folder.png").mkdir()
    dataset = load_folder(folder, GREY)
    assert len(dataset.train) + len(dataset.test) == 120
    assert [line.split(":")[0] for line in sorted(dataset.skipped)] == ["broken.png", "class 1/cut.png"]
    assert "2 files skipped; sizes 8x8 (120)" in dataset.summary()
    assert sorted(numbers(dataset.train) + numbers(dataset.test)) == list(range(120))


def test_adding_files_moves_no_other_file_to_the_other_part(folder: Path) -> None:
    before = set(numbers(load_folder(folder, GREY).test))
    for number in range(120, 200):
        save_image(folder / "class 0" / f"{number}.png", number)
    after = load_folder(folder, GREY)
    assert before == {number for number in numbers(after.test) if number < 120}
    assert len(after.train) + len(after.test) == 200


def test_the_split_does_not_depend_on_where_the_folder_is(folder: Path, tmp_path: Path) -> None:
    before = numbers(load_folder(folder, GREY).test)
    assert numbers(load_folder(folder.rename(tmp_path / "moved"), GREY).test) == before


def test_fewer_than_100_readable_images_are_refused_with_their_number(tmp_path: Path) -> None:
    for number in range(99):
        save_image(tmp_path / f"{number}.png", number)
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match=r": 99 readable PNG and JPEG images; 100 are the least"):
        load_folder(tmp_path, GREY)


def test_what_is_neither_a_folder_nor_a_name_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a folder nor one of mnist, fashion-mnist"):
        data.load(str(tmp_path / "none"), GREY, tmp_path)


def test_the_summary_names_the_five_most_frequent_sizes() -> None:
    empty = np.zeros((0, *GREY), np.uint8)
    sizes = {f"{side}x{side}": side for side in range(1, 9)}
    line = data.Dataset("photos", empty, empty, sizes=sizes).summary()
    assert line.endswith("sizes 8x8 (8), 7x7 (7), 6x6 (6), 5x5 (5), 4x4 (4) and 3 more")


def test_a_folder_is_decoded_once_and_again_when_a_file_has_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.png").write_bytes(b"nothing")
    decoded: list[int] = []
    decode = data._decode_folder

    def counting(files: dict[str, Path], shape: Any) -> Any:
        decoded.append(len(files))
        return decode(files, shape)

    monkeypatch.setattr(data, "_decode_folder", counting)
    first, second = (load_folder(folder, GREY, tmp_path / "cache") for _ in range(2))
    assert decoded == [121]
    np.testing.assert_array_equal(first.train, second.train)
    np.testing.assert_array_equal(first.test, second.test)
    assert first.skipped == second.skipped
    assert first.sizes == second.sizes
    load_folder(folder, (1, 4, 4), tmp_path / "cache")  # another shape is kept beside it
    load_folder(folder, GREY, tmp_path / "cache")
    assert decoded == [121, 121]
    changed = folder / "class 0" / "part0" / "000.png"
    save_image(changed, 255)
    os.utime(changed, ns=(0, 0))
    third = load_folder(folder, GREY, tmp_path / "cache")
    assert decoded == [121, 121, 121]
    assert 255 in numbers(third.train) + numbers(third.test)


@pytest.mark.parametrize("spoil", [lambda whole: b"", lambda whole: whole[:500], lambda whole: b"PK" + whole[::-1]])
def test_a_damaged_cache_is_read_anew(folder: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    first = load_folder(folder, GREY, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(spoil(kept.read_bytes()))
    np.testing.assert_array_equal(load_folder(folder, GREY, tmp_path / "cache").train, first.train)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder has to be")
    assert len(load_folder(folder, GREY, tmp_path / "cache").train) > 90


@pytest.mark.skipif("VAE_DATA_DIR" not in os.environ, reason="VAE_DATA_DIR names no data folder")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_data_sets_are_what_they_should_be(name: str) -> None:
    dataset = data.load(name, (1, 28, 28))
    assert dataset.train.shape == (60_000, 1, 28, 28)
    assert dataset.test.shape == (10_000, 1, 28, 28)
    assert np.bincount(dataset.test_labels).min() > 800  # type: ignore[arg-type]
    assert 0.1 < dataset.train.mean() / 255 < 0.3


def test_every_source_has_four_checksums_and_addresses_that_end_in_a_slash() -> None:
    for source in data.SOURCES.values():
        assert {len(md5) for md5 in source.md5} == {32}
        assert len(set(source.md5)) == 4
        assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in source.mirrors)
