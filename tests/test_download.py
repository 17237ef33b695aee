"""Downloads, with a function in place of the network."""

import functools
import threading
from collections.abc import Callable
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from model import download
from model.data import DataError, load_idx
from model.download import DownloadError, fetch, part_of
from tests.idx_files import ARRAYS, MIRRORS, SOURCE, packed

Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[httpx.Request]]:
    """``network(answer)`` lets a function answer every request instead of the world; returns what was asked."""

    def connect(answer: Answer) -> list[httpx.Request]:
        asked: list[httpx.Request] = []

        def note(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return answer(request)

        client = httpx.Client(transport=httpx.MockTransport(note))

        def stream(method: str, url: str, **options: Any) -> Any:
            options.pop("timeout")
            return client.stream(method, url, **options)

        monkeypatch.setattr(download.httpx, "stream", stream)
        return asked

    return connect


def found(content: bytes) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(content), headers={"Content-Length": str(len(content))})


def no_network(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("Name or service not known")


def test_missing_files_are_downloaded_checked_and_kept(tmp_path: Path, network: Any) -> None:
    asked = network(lambda request: found(packed(request.url.path.strip("/").removesuffix(".gz"))))
    assert len(load_idx(SOURCE, tmp_path).train) == 30
    assert [str(request.url) for request in asked] == [f"{MIRRORS[0]}{name}.gz" for name in ARRAYS]
    assert len(load_idx(SOURCE, tmp_path).train) == 30
    assert len(asked) == 4  # the second time nothing is asked
    assert not list(tmp_path.rglob("*.part"))


def test_without_a_network_the_error_says_what_is_missing_where_and_what_to_do(tmp_path: Path, network: Any) -> None:
    asked = network(no_network)
    with pytest.raises(DataError) as caught:
        load_idx(SOURCE, tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"train-images-idx3-ubyte is not in {tmp_path / 'noise'}" in text
    for words in (*MIRRORS, "ConnectError: Name or service not known", "--data-dir", "VAE_DATA_DIR"):
        assert words in text
    assert len(asked) == 2  # each mirror once; the other three files are not tried
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_second_mirror_helps_where_the_first_refuses_or_sends_something_else(tmp_path: Path, network: Any) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rsplit("/", 1)[1].removesuffix(".gz")
        if request.url.host == "two.example":
            return found(packed(name))
        return httpx.Response(503) if "labels" in name else found(b"<html>sign in</html>")

    network(answer)
    assert len(load_idx(SOURCE, tmp_path).train) == 30


def test_what_is_not_the_file_is_not_kept_and_the_next_attempt_starts_anew(tmp_path: Path, network: Any) -> None:
    network(lambda request: found(b"<html>sign in</html>"))
    with pytest.raises(DataError, match="not a whole gzip file"):
        load_idx(SOURCE, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    network(lambda request: found(packed(request.url.path.strip("/").removesuffix(".gz"))))
    assert len(load_idx(SOURCE, tmp_path).train) == 30


def test_a_refusal_names_address_and_status_in_one_line(tmp_path: Path, network: Any) -> None:
    network(lambda request: httpx.Response(404))
    with pytest.raises(DownloadError, match=r"^https://one.example/a.gz: .*404 Not Found[^\n]*$"):
        fetch("https://one.example/a.gz", tmp_path / "a.gz")


def serve(content: bytes) -> Answer:
    """Answer as a server that knows ranges."""

    def answer(request: httpx.Request) -> httpx.Response:
        if (wanted := request.headers.get("Range")) is None:
            return found(content)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return httpx.Response(416)
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return httpx.Response(206, stream=httpx.ByteStream(content[start:]), headers=headers)

    return answer


class Broken(httpx.SyncByteStream):
    """A body that breaks off."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Any:
        yield self.content
        raise httpx.ReadError("connection reset")


URL, CONTENT = "https://one.example/file", bytes(range(256)) * 20


def test_a_download_that_broke_off_goes_on_where_it_stopped(tmp_path: Path, network: Any) -> None:
    target = tmp_path / "file"
    network(lambda request: httpx.Response(200, stream=Broken(CONTENT[:1000])))
    with pytest.raises(DownloadError, match="ReadError: connection reset"):
        fetch(URL, target)
    assert not target.exists()
    assert part_of(URL, target).read_bytes() == CONTENT[:1000]
    asked = network(serve(CONTENT))
    fetch(URL, target)
    assert asked[0].headers["Range"] == "bytes=1000-"
    assert target.read_bytes() == CONTENT
    assert not part_of(URL, target).exists()


def test_a_part_that_is_whole_already_is_taken(tmp_path: Path, network: Any) -> None:
    part_of(URL, tmp_path / "file").write_bytes(CONTENT)
    network(serve(CONTENT))
    fetch(URL, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file_and_the_part_is_replaced(tmp_path: Path, network: Any) -> None:
    part_of(URL, tmp_path / "file").write_bytes(b"x" * 1000)
    network(lambda request: found(CONTENT))
    fetch(URL, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_one_mirror_began_another_does_not_continue(tmp_path: Path, network: Any) -> None:
    name = "train-images-idx3-ubyte"
    mirrors = {"one.example": packed(name, 9), "two.example": packed(name, 1)}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "one.example":
            return httpx.Response(200, stream=Broken(mirrors["one.example"][:500]))
        return serve(mirrors["two.example"])(request)

    network(answer)
    with pytest.raises(DataError, match="train-labels"):  # this mirror has the images only, they are not at fault
        load_idx(SOURCE, tmp_path)
    assert (tmp_path / "noise" / f"{name}.gz").read_bytes() == mirrors["two.example"]


def test_a_folder_that_cannot_be_written_is_a_readable_error(tmp_path: Path, network: Any) -> None:
    network(serve(CONTENT))
    (tmp_path / "noise").write_text("a file where a folder has to be")
    with pytest.raises(DownloadError, match="noise"):
        fetch(URL, tmp_path / "noise" / "file")


class Quiet(SimpleHTTPRequestHandler):
    """A real server of a folder, without ranges and without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_file_comes_over_a_real_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(CONTENT)
    with HTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "served"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        fetch(f"{url}/file", tmp_path / "target" / "file")
        with pytest.raises(DownloadError, match="404"):
            fetch(f"{url}/none", tmp_path / "target" / "none")
        server.shutdown()
    assert (tmp_path / "target" / "file").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["file"]
