"""Pictures and bodies for the service tests: digits drawn with strokes, and their bytes in every format."""

import base64
import io
import json

import numpy as np
import safetensors.numpy
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

SIDE = 28
STROKES: dict[int, list[tuple[float, float]]] = {
    0: [(14, 5), (19, 8), (20, 14), (18, 21), (13, 23), (9, 20), (8, 13), (10, 7), (14, 5)],
    1: [(13, 5), (14, 14), (14, 23)],
    2: [(8, 9), (12, 5), (18, 7), (18, 12), (8, 22), (20, 22)],
    4: [(11, 5), (9, 14), (19, 14), (17, 8), (17, 23)],
    7: [(8, 6), (20, 6), (14, 14), (12, 23)],
}
SHAPES = tuple(STROKES)


def digit(kind: int = 7, *, shift: float = 0.0, width: float = 2.4) -> np.ndarray:
    """Return a drawn digit, ``(28, 28)`` uint8, white on black with soft edges."""
    scale = 8
    canvas = Image.new("L", (SIDE * scale, SIDE * scale))
    points = [((x + shift) * scale, y * scale) for x, y in STROKES[kind]]
    ImageDraw.Draw(canvas).line(points, fill=255, width=int(width * scale), joint="curve")
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))


def digits(n: int) -> np.ndarray:
    """Return ``n`` different drawn digits, ``(n, 28, 28)`` uint8."""
    return np.stack([digit(SHAPES[i % 5], shift=(i // 5) % 5 - 2.0, width=2.0 + 0.3 * (i // 25)) for i in range(n)])


def ink(kind: int = 7) -> np.ndarray:
    """Return a digit of 0 and 255 alone: exact in every dtype, and under every conversion."""
    return np.where(digit(kind) > 127, 255, 0).astype(np.uint8)


def small_real_digits(n: int) -> np.ndarray:
    """Return scikit-learn's bundled 8×8 handwritten digits scaled up, ``(n, 28, 28)`` uint8."""
    small = np.clip(load_digits().images[:n] * 16, 0, 255).astype(np.uint8)
    return np.stack(
        [np.pad(np.asarray(Image.fromarray(one).resize((20, 20), Image.Resampling.BICUBIC)), 4) for one in small]
    )


def file_bytes(image: Image.Image | np.ndarray, form: str = "PNG", **options: object) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png(image: Image.Image | np.ndarray, **options: object) -> bytes:
    return file_bytes(image, "PNG", **options)


def jpeg(image: Image.Image | np.ndarray, **options: object) -> bytes:
    return file_bytes(image, "JPEG", quality=95, **options)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def tensors(**named: np.ndarray) -> bytes:
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in named.items()})


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def images_json(*items: object) -> bytes:
    return json.dumps({"images": list(items)}).encode()


def from_png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def from_base64_png(text: str) -> np.ndarray:
    return from_png(base64.b64decode(text, validate=True))


def from_npy(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


def from_tensors(data: bytes) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(data)


def multipart(*files: bytes, name: str = "images") -> list[tuple[str, tuple[str, bytes, str]]]:
    """File parts for httpx, in order."""
    return [(name, (f"{i}.png", data, "image/png")) for i, data in enumerate(files)]


PNG = {"Content-Type": "image/png"}
JPEG = {"Content-Type": "image/jpeg"}
NPY = {"Content-Type": "application/x-npy"}
SAFETENSORS = {"Content-Type": "application/x-safetensors"}
JSON = {"Content-Type": "application/json"}
