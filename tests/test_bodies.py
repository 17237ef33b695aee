"""Images, latents and numbers as the client sends them: every form that is documented, and what is refused."""

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from service_pictures import jpeg

from app.client import Client
from app.errors import NotFound


def sent_by(call: Callable[[Client], object]) -> httpx.Request:
    """The request that a call makes; its answer is a refusal."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(404)

    with Client("http://service.test", transport=httpx.MockTransport(answer)) as client, pytest.raises(NotFound):
        call(client)
    return requests[0]


def array_of(request: httpx.Request) -> np.ndarray:
    assert request.headers["Content-Type"] == "application/x-npy"
    return np.load(io.BytesIO(request.content))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 1, 28, 28), np.uint8),
        np.linspace(0, 1, 56).reshape(2, 28),
        np.ones((2, 28, 28), np.float16),
        np.arange(28.0).reshape(1, 28).astype(">f4"),
        np.asfortranarray(np.ones((2, 5, 7), np.float32)),
    ],
)
def test_arrays_are_sent_as_they_are_in_native_byte_order(array: np.ndarray) -> None:
    sent = array_of(sent_by(lambda client: client.encode(array)))
    assert np.array_equal(sent, array)
    assert sent.dtype == array.dtype.newbyteorder("=")


def test_several_arrays_and_nested_lists_become_one_array() -> None:
    one, two = np.zeros((28, 28)), np.ones((28, 28))
    assert array_of(sent_by(lambda client: client.encode([one, two]))).shape == (2, 28, 28)
    assert array_of(sent_by(lambda client: client.encode([[0.0, 1.0], [0.5, 0.5]]))).shape == (2, 2)


def test_integers_are_latents_too() -> None:
    sent = array_of(sent_by(lambda client: client.decode([[0, 1]])))
    assert (sent.dtype, sent.tolist()) == (np.float32, [[0.0, 1.0]])


def test_one_file_is_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(np.zeros((9, 9), np.uint8)))
    for images in (path, str(path), path.read_bytes(), [path], iter([path])):
        request = sent_by(lambda client, images=images: client.encode(images))
        assert request.content == path.read_bytes()
        assert request.headers["Content-Type"] == "image/jpeg"
    request = sent_by(lambda client: client.encode(b"GIF89a"))
    assert request.headers["Content-Type"] == "image/png"  # the server then says what is wrong with the file


def test_several_files_are_a_form_in_order() -> None:
    request = sent_by(lambda client: client.score([b"\x89PNG-1", b"\x89PNG-2", b"\xff\xd8\xff3"], samples=3))
    assert request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    body = request.content
    assert body.count(b'name="images"') == 3
    assert body.index(b"\x89PNG-1") < body.index(b"\x89PNG-2") < body.index(b"\xff\xd8\xff3")
    assert dict(request.url.params) == {"samples": "3", "resize": "auto"}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "YCbCr", "I;16"])
def test_pil_images_of_any_mode_are_sent_as_png(mode: str) -> None:
    request = sent_by(lambda client: client.encode(Image.new(mode, (5, 3))))
    assert request.headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(request.content)).size == (5, 3)


def test_orientation_of_a_pil_image_is_sent_along() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (5, 3)).save(file, "JPEG", exif=exif)
    request = sent_by(lambda client: client.encode(Image.open(file)))
    assert Image.open(io.BytesIO(request.content)).getexif()[0x0112] == 6


def test_what_is_no_image_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with Client() as client:
        with pytest.raises(TypeError, match="mixed"):
            client.encode([b"file", np.zeros((2, 2))])  # type: ignore[list-item]
        with pytest.raises(FileNotFoundError):
            client.encode(tmp_path / "missing.png")
        with pytest.raises(ValueError, match="Object arrays"):
            client.encode(np.array([object()]))


def test_numbers_of_divergences_are_sent_as_exact_json() -> None:
    request = sent_by(lambda client: client.kl_posterior(np.array([[0.1]]), [[np.float32(0.5)]], unit="bits"))
    assert request.read() == b'{"mu": [[0.1]], "sigma": [[0.5]]}'
    assert dict(request.url.params) == {"unit": "bits"}
    request = sent_by(lambda client: client.kl_discrete(np.array([0.5, 0.5]), [0.9, 0.1]))
    assert request.read() == b'{"p": {"probs": [0.5, 0.5]}, "q": {"probs": [0.9, 0.1]}}'
    assert request.headers["Accept"] == "application/json"  # tensors would round float64
