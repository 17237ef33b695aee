"""Folders stand for the pictures in them, in an order that never changes."""

from pathlib import Path

import pytest

from app.folders import image_files


def test_folder_stands_for_its_pictures_at_any_depth_in_order_and_a_file_for_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.JPG", "in/c.jpeg", "notes.txt", "z.png", "in.png"):
        (tmp_path / name).write_bytes(b"")
    named = [Path(name).relative_to(tmp_path).as_posix() for name in image_files([tmp_path])]
    assert named == ["a.JPG", "b.png", "in/c.jpeg", "in.png", "z.png"]
    assert list(image_files([tmp_path / "notes.txt"])) == [str(tmp_path / "notes.txt")]


def test_order_is_that_of_the_paths(tmp_path: Path) -> None:
    for name in ("a/2.png", "a/10.png", "a-b/1.png", "a.png", "B.png", "a/b/c.png", "é.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list(image_files([tmp_path])) == [str(path) for path in sorted(tmp_path.rglob("*.png"))]


def test_this_folder_and_the_one_above_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert list(image_files([Path(".")])) == ["a.png"]
    monkeypatch.chdir(tmp_path / "in")
    assert list(image_files([Path("..")])) == ["../a.png"]


def test_links_to_files_count_and_a_circle_of_folders_ends(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "again").symlink_to(tmp_path)
    assert list(image_files([tmp_path])) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
