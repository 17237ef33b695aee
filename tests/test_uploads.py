"""Many files in bounded requests: order, sizes, and that one unreadable file costs nobody else."""

from pathlib import Path

import pytest

from app.errors import BadRequest, ContentTooLarge, QueueFull, Unprocessable
from app.uploads import MAX_FILES, Upload, image_files

LIMITS = {"max_items": 1024, "max_body_bytes": 1 << 25}


def written(folder: Path, contents: list[bytes]) -> list[Path]:
    paths = [folder / f"{i:03}.png" for i in range(len(contents))]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    return paths


def refuse_bad(batch: list[bytes]) -> list[bytes]:
    """A server that refuses a whole request where one of its files is bad."""
    if b"bad" in batch:
        raise BadRequest("image 1 cannot be read", code="malformed_image")
    return batch


def test_folder_stands_for_its_pictures_at_any_depth_in_order_and_a_file_for_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.JPG", "in/c.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    named = [path.relative_to(tmp_path).as_posix() for path in image_files([tmp_path])]
    assert named == ["a.JPG", "b.png", "in/c.jpeg"]
    assert image_files([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]


def test_requests_are_bounded_in_files_and_answers_come_in_order(tmp_path: Path) -> None:
    files = written(tmp_path, [b"%d" % i for i in range(2 * MAX_FILES + 3)])
    upload = Upload(files, LIMITS)
    batches = list(upload.send(lambda batch: batch))
    assert [len(batch) for batch in batches] == [MAX_FILES, MAX_FILES, 3]
    assert [int(data) for batch in batches for data in batch] == list(range(2 * MAX_FILES + 3))
    assert upload.names == [str(path) for path in files]


def test_requests_keep_to_the_limits_of_the_server(tmp_path: Path) -> None:
    files = written(tmp_path, [b"x" * 400] * 5)
    assert [len(b) for b in Upload(files, {**LIMITS, "max_items": 2}).send(list)] == [2, 2, 1]
    assert [len(b) for b in Upload(files, {**LIMITS, "max_body_bytes": 1300}).send(list)] == [3, 2]


def test_files_that_are_much_work_go_in_smaller_requests(tmp_path: Path) -> None:
    files = written(tmp_path, [b"x"] * 5)
    assert [len(b) for b in Upload(files, LIMITS, rows=512).send(list)] == [2, 2, 1]
    assert [len(b) for b in Upload(files, LIMITS, rows=10**6).send(list)] == [1] * 5


def test_file_that_the_server_refuses_is_skipped_and_its_neighbors_are_answered(tmp_path: Path) -> None:
    contents = [b"bad" if i in (3, 7, 8) else b"%d" % i for i in range(11)]
    files = written(tmp_path, contents)
    upload = Upload(files, LIMITS)
    answers = [data for batch in upload.send(refuse_bad) for data in batch]
    assert answers == [data for data in contents if data != b"bad"]
    assert upload.names == [str(path) for path, data in zip(files, contents, strict=True) if data != b"bad"]
    assert upload.skipped == {str(files[i]): "image 1 cannot be read" for i in (3, 7, 8)}


def test_nothing_but_bad_files_is_no_answer(tmp_path: Path) -> None:
    upload = Upload(written(tmp_path, [b"bad"] * 3), LIMITS)
    assert list(upload.send(refuse_bad)) == []
    assert (upload.names, len(upload.skipped)) == ([], 3)


def test_missing_and_overlong_files_are_skipped_without_asking(tmp_path: Path) -> None:
    files = [*written(tmp_path, [b"good", b"x" * 2000]), tmp_path / "gone.png"]
    upload = Upload(files, {**LIMITS, "max_body_bytes": 1024})
    assert list(upload.send(list)) == [[b"good"]]
    assert "1024 bytes (VAE_MAX_BODY_BYTES)" in upload.skipped[str(files[1])]
    assert upload.skipped[str(files[2])] == "No such file or directory"


@pytest.mark.parametrize(
    "refusal",
    [
        Unprocessable("samples must be at most 1024", code="out_of_range"),
        QueueFull("the line is full"),
        BadRequest("the form is broken", code="malformed_multipart"),
    ],
)
def test_refusal_that_is_no_file_s_fault_ends_it(tmp_path: Path, refusal: Exception) -> None:
    def refuse(batch: list[bytes]) -> None:
        raise refusal

    with pytest.raises(type(refusal)):
        list(Upload(written(tmp_path, [b"1", b"2"]), LIMITS).send(refuse))


def test_request_that_is_too_long_after_all_is_halved(tmp_path: Path) -> None:
    def short(batch: list[bytes]) -> int:
        if len(batch) > 2:
            raise ContentTooLarge("the body is too long")
        return len(batch)

    assert list(Upload(written(tmp_path, [b"1"] * 5), LIMITS).send(short)) == [2, 1, 2]
