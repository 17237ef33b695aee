"""Many files in bounded requests: order, sizes, and that one unreadable file costs nobody else."""

import asyncio
import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from service_pictures import png

from app import uploads
from app.bodies import images_body
from app.calls import Call
from app.client import AsyncClient
from app.errors import BadRequest, ServiceError
from app.uploads import AHEAD, MAX_FILES, MAX_IMAGES, REQUESTS, Answer, Upload
from app.version import VERSION

LIMITS = {"max_items": 1024, "max_body_bytes": 1 << 25, "max_pixels": 10_000}
MODEL = {"image": {"channels": 1, "height": 2, "width": 2}, "limits": LIMITS, "version": VERSION}
ELSEWHERE = {**MODEL, "version": "0.0.0"}  # another version, which decodes the files itself

Ask = Callable[[list[Any]], Any]


def limited(model: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {**model, "limits": {**LIMITS, **limits}}


def written(folder: Path, contents: list[bytes]) -> list[str]:
    paths = [folder / f"{i:03}.png" for i in range(len(contents))]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    return [str(path) for path in paths]


def pictures(folder: Path, count: int) -> list[str]:
    """Files of 2 x 2 pixels, the first of which is the number of the file."""
    return written(folder, [png(np.full((2, 2), i, np.uint8)) for i in range(count)])


def client_of(ask: Ask) -> AsyncClient:
    """A client whose server answers with what ``ask`` makes of an array's images, or of a form's files."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers["content-type"].startswith("multipart"):
            boundary = request.headers["content-type"].partition("boundary=")[2].encode()
            parts = request.content.split(b"--" + boundary)[1:-1]
            images: list[Any] = [part.partition(b"\r\n\r\n")[2][:-2] for part in parts]
        elif request.headers["content-type"].endswith("npy"):
            images = list(np.load(BytesIO(request.content))[:, 0, 0, 0])
        else:
            images = [request.content]
        try:
            return httpx.Response(200, json=ask(images))
        except ServiceError as error:
            return httpx.Response(error.status, json={"detail": error.detail, "code": error.code})

    return AsyncClient("http://service.test", transport=httpx.MockTransport(answer))


def described(images: Any) -> Call[Any]:
    return Call("POST", "/", lambda response: json.loads(response.content), body=images_body(images))


def sent(model: dict[str, Any], files: list[str], ask: Ask, rows: int = 1, **options: Any) -> list[Answer[Any]]:
    return list(Upload(model, rows).send(client_of(ask), files, described, **options))


def sizes(answers: list[Answer[Any]]) -> list[int]:
    return [result for answer in answers for result in answer.results]


def refuse_bad(batch: list[bytes]) -> int:
    """A server that refuses a whole request where one of its files is bad."""
    if b"bad" in batch:
        raise BadRequest("image 1 cannot be read", code="malformed_image")
    return len(batch)


def test_images_are_prepared_here_and_answers_come_in_order(tmp_path: Path) -> None:
    files = pictures(tmp_path, 200)
    answers = sent(limited(MODEL, max_items=30), files, lambda images: [int(image) for image in images])
    assert [len(answer.names) for answer in answers] == [30] * 6 + [20]
    assert [value for answer in answers for value in answer.results[0]] == list(range(200))
    assert [name for answer in answers for name in answer.names] == files


def test_another_version_of_the_server_prepares_the_files_itself(tmp_path: Path) -> None:
    files = pictures(tmp_path, 3)
    (answer,) = sent(ELSEWHERE, files, lambda images: [image.startswith(b"\x89PNG") for image in images])
    assert answer.results == [[True] * 3]


@pytest.mark.parametrize(("model", "most"), [(MODEL, MAX_IMAGES), (ELSEWHERE, MAX_FILES)])
def test_requests_are_bounded_in_images(model: dict[str, Any], most: int, tmp_path: Path) -> None:
    first = pictures(tmp_path, 1)
    for i in range(1, 2 * most + 3):
        os.link(first[0], tmp_path / f"{i:04}.png")
    assert sizes(sent(model, sorted(map(str, tmp_path.iterdir())), len)) == [most, most, 3]


def test_requests_keep_to_the_limits_of_the_server(tmp_path: Path) -> None:
    files = pictures(tmp_path, 5)
    assert sizes(sent(limited(MODEL, max_items=2), files, len)) == [2, 2, 1]
    assert sizes(sent(limited(MODEL, max_body_bytes=1024), files, len)) == [5]
    assert sizes(sent(limited(ELSEWHERE, max_body_bytes=1300), files, len)) == [3, 2]
    wide = {**MODEL, "image": {"channels": 3, "height": 64, "width": 64}}
    assert Upload(wide)._most == MAX_IMAGES
    assert Upload(limited(wide, max_body_bytes=65_536))._most == 5


def test_images_that_are_much_work_go_in_smaller_requests(tmp_path: Path) -> None:
    files = pictures(tmp_path, 5)
    assert sizes(sent(MODEL, files, len, rows=512)) == [2, 2, 1]
    assert sizes(sent(MODEL, files, len, rows=10**6)) == [1] * 5


def test_files_that_are_done_are_not_read_again(tmp_path: Path) -> None:
    files = pictures(tmp_path, 6)
    (answer,) = sent(MODEL, files, lambda images: [int(image) for image in images], done={files[0], files[4]}, total=6)
    assert answer.results == [[1, 2, 3, 5]]


def test_no_more_files_are_read_than_the_next_requests_need(tmp_path: Path) -> None:
    taken: list[str] = []

    def files() -> Any:
        for name in pictures(tmp_path, 100):
            taken.append(name)
            yield name

    answers = Upload(limited(MODEL, max_items=2)).send(client_of(len), files(), described)
    next(answers)
    assert len(taken) <= 2 * (REQUESTS + AHEAD)
    answers.close()


@pytest.mark.parametrize("model", [MODEL, ELSEWHERE])
def test_file_that_cannot_be_read_is_skipped_and_its_neighbors_are_answered(
    model: dict[str, Any], tmp_path: Path
) -> None:
    good = png(np.zeros((2, 2), np.uint8))
    files = written(tmp_path, [b"bad" if i in (3, 7, 8) else good for i in range(11)])
    (answer,) = sent(model, files, refuse_bad)
    assert sum(answer.results) == 8
    assert answer.names == [name for i, name in enumerate(files) if i not in (3, 7, 8)]
    reason = "the file is neither PNG nor JPEG" if model is MODEL else "image 1 cannot be read"
    assert answer.skipped == {files[i]: reason for i in (3, 7, 8)}


@pytest.mark.parametrize("model", [MODEL, ELSEWHERE])
def test_nothing_but_bad_files_is_no_result(model: dict[str, Any], tmp_path: Path) -> None:
    (answer,) = sent(model, written(tmp_path, [b"bad"] * 3), refuse_bad)
    assert (answer.names, answer.results, len(answer.skipped)) == ([], [], 3)


def test_missing_overlong_and_too_large_files_are_skipped_without_asking(tmp_path: Path) -> None:
    big = BytesIO()
    Image.new("L", (101, 100)).save(big, "PNG")
    files = [
        *written(tmp_path, [png(np.zeros((2, 2), np.uint8)), b"x" * 2000, big.getvalue()]),
        str(tmp_path / "gone.png"),
    ]
    (answer,) = sent(limited(MODEL, max_body_bytes=1024), files, len)
    assert answer.results == [1]
    assert "1024 bytes (VAE_MAX_BODY_BYTES)" in answer.skipped[files[1]]
    assert answer.skipped[files[2]] == "the image has 10,100 pixels; at most 10,000 are read"
    assert answer.skipped[files[3]] == "No such file or directory"


@pytest.mark.parametrize(
    ("status", "code"),
    [(422, "out_of_range"), (400, "malformed_multipart"), (500, "internal"), (412, "model_mismatch")],
)
def test_refusal_that_is_no_file_s_fault_ends_it(status: int, code: str, tmp_path: Path) -> None:
    def refuse(batch: list[Any]) -> None:
        error = ServiceError("no")
        error.status, error.code = status, code
        raise error

    with pytest.raises(ServiceError) as caught:
        sent(MODEL, pictures(tmp_path, 2), refuse)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_request_that_is_too_long_after_all_is_halved(tmp_path: Path) -> None:
    def short(batch: list[Any]) -> int:
        if len(batch) > 2:
            raise uploads.ContentTooLarge("the body is too long")
        return len(batch)

    assert sizes(sent(MODEL, pictures(tmp_path, 5), short)) == [2, 1, 2]


def test_only_a_few_requests_are_on_their_way_at_a_time(tmp_path: Path) -> None:
    now, most = 0, 0

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1
            return httpx.Response(200, json={})

    client = AsyncClient("http://service.test", transport=Slow())
    files = pictures(tmp_path, 12)
    list(Upload(limited(MODEL, max_items=1)).send(client, files, lambda images: Call("GET", "/", lambda answer: 0)))
    assert most == REQUESTS
