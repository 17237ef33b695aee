"""Arrays in: .npy and safetensors, honest and lying."""

import io
import json
import struct
from contextlib import suppress

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from app.arrays import FLOATS, PIXELS, read_array, to_float32
from app.errors import BadRequest, Unprocessable
from app.negotiation import NPY, SAFETENSORS

Array = NDArray[np.generic]


def npy(array: Array, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def npy_with(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def tensors_with(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(kind: str, shape: list[int], size: int) -> dict[str, object]:
    return {"z": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}


arrays = hnp.arrays(
    dtype=st.sampled_from(["u1", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]),
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
)


@settings(max_examples=100, deadline=None)
@given(arrays, st.booleans(), st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_npy_of_every_order_and_version_comes_back(array: Array, fortran: bool, version: tuple[int, int]) -> None:
    array = np.asfortranarray(array) if fortran else array
    got = read_array(npy(array, version), NPY, "z", PIXELS)
    assert got.shape == array.shape
    np.testing.assert_array_equal(got, array)


@settings(max_examples=50, deadline=None)
@given(arrays)
def test_safetensors_come_back_and_other_tensors_are_ignored(array: Array) -> None:
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    body = safetensors.numpy.save({"a": np.zeros(3, np.int64), "z": native, "zz": np.ones((2, 2), np.float32)})
    got = read_array(body, SAFETENSORS, "z", PIXELS)
    assert got.shape == array.shape
    np.testing.assert_array_equal(got, native)


def test_scalar_and_single_axis_are_read() -> None:
    assert read_array(npy(np.array(3, np.float32)), NPY, "z", FLOATS).shape == ()
    assert read_array(npy(np.ones(5, np.float32)), NPY, "z", FLOATS).shape == (5,)


def test_headers_of_other_writers_are_read() -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    for header in (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
        '{"shape": (2,3), "descr": "<f4", "fortran_order": False}',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }          \n",
    ):
        got = read_array(npy_with(header, data), NPY, "z", FLOATS)
        np.testing.assert_array_equal(got, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    "descr",
    ["'|b1'", "'<i4'", "'<u2'", "'<c8'", "'<f16'", "'<f3'", "'|O'", "'|S5'", "'<U9'", "'<M8[ns]'", "'|V8'", "'?'"],
)
def test_number_types_that_are_not_read_are_refused(descr: str) -> None:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}"
    with pytest.raises(Unprocessable, match="expected float16, float32 or float64") as caught:
        read_array(npy_with(header, bytes(16)), NPY, "z", FLOATS)
    assert caught.value.code == "wrong_dtype"


def test_structured_and_pickled_arrays_are_refused() -> None:
    for array in (np.zeros(2, [("a", "<f4")]), np.array([{"a": 1}], dtype=object)):
        with pytest.raises(Unprocessable) as caught:
            read_array(npy(array), NPY, "z", FLOATS)
        assert caught.value.code == "wrong_dtype"


def test_pixels_may_be_bytes_and_latents_may_not() -> None:
    body = npy(np.zeros((2, 3), np.uint8))
    assert read_array(body, NPY, "images", PIXELS).dtype == np.uint8
    with pytest.raises(Unprocessable, match="number type u1"):
        read_array(body, NPY, "z", FLOATS)


HEADER = "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a .npy file"),
        (b"\x93NUMPY", "not a .npy file"),
        (b"\x93NUMPY\x04\x00" + bytes(20), "not a .npy file"),
        (b"\x93NUMPY\x01\x00", "truncated or too long"),
        (b"\x93NUMPY\x01\x00\xff\xff" + bytes(100), "truncated or too long"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100_000), "truncated or too long"),
        (npy_with("{" * 9000), "lacks"),
        (npy_with("__import__('os').system('true')"), "lacks"),
        (npy_with("{'descr': '<f4', 'shape': (1,)}", bytes(4)), "lacks"),
        (npy_with("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", bytes(4)), "lacks"),
        (npy_with(HEADER.format("-1,"), bytes(4)), "lacks"),
        (npy_with(HEADER.format("1.5,"), bytes(4)), "lacks"),
        (npy_with(HEADER.format("9" * 400 + ","), bytes(4)), "lacks"),
        (npy_with(HEADER.format("4294967296,"), bytes(4)), "asks for 17,179,869,184 bytes"),
        (npy_with(HEADER.format("999999999999999," * 8), bytes(4)), "asks for"),
        (npy_with(HEADER.format("2,"), bytes(4)), "asks for 8 bytes of data, the body holds 4"),
        (npy_with(HEADER.format("1,"), bytes(5)), "asks for 4 bytes of data, the body holds 5"),
        (npy_with(HEADER.format("0, 5"), bytes(1)), "asks for 0 bytes"),
    ],
)
def test_broken_and_lying_npy_headers_are_refused_before_anything_is_allocated(body: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        read_array(body, NPY, "z", FLOATS)
    assert caught.value.code == "malformed_npy"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        tensors_with(b"{" + b" " * 200_000 + b"}"),
        tensors_with(b"[" * 5000),
        tensors_with(b'{"a":' * 5000),
        tensors_with(b"\xff\xfe"),
        tensors_with({"z": 3}),
        tensors_with(tensor("F32", [2**40, 2**40], 4), bytes(4)),
        tensors_with(tensor("F32", [1], 8), bytes(8)),
        tensors_with(tensor("F32", [2], 8), bytes(4)),
        tensors_with(tensor("F32", [1], 4), bytes(8)),
        tensors_with(tensor("F32", [-1], 4), bytes(4)),
        tensors_with(tensor("X99", [1], 4), bytes(4)),
    ],
)
def test_broken_and_lying_safetensors_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        read_array(body, SAFETENSORS, "z", FLOATS)
    assert caught.value.code == "malformed_safetensors"


def test_tensor_that_is_not_there_is_named() -> None:
    with pytest.raises(Unprocessable, match="no tensor named 'z'"):
        read_array(safetensors.numpy.save({"y": np.zeros(1, np.float32)}), SAFETENSORS, "z", FLOATS)


@pytest.mark.parametrize("kind", ["BF16", "I64", "BOOL", "U8"])
def test_tensors_of_other_number_types_are_refused(kind: str) -> None:
    size = {"BF16": 2, "I64": 8, "BOOL": 1, "U8": 1}[kind]
    with pytest.raises(Unprocessable, match=f"number type {kind}") as caught:
        read_array(tensors_with(tensor(kind, [1], size), bytes(size)), SAFETENSORS, "z", FLOATS)
    assert caught.value.code == "wrong_dtype"


def test_too_many_axes_are_refused() -> None:
    with pytest.raises(Unprocessable) as caught:
        read_array(npy_with(HEADER.format("1, " * 70), bytes(4)), NPY, "z", FLOATS)
    assert caught.value.code == "wrong_shape"
    with pytest.raises(Unprocessable):
        read_array(tensors_with(tensor("F32", [1] * 70, 4), bytes(4)), SAFETENSORS, "z", FLOATS)


SEEDS = [
    (NPY, npy(np.ones((2, 3), np.float32))),
    (NPY, npy(np.ones((2, 3)), (2, 0))),
    (SAFETENSORS, safetensors.numpy.save({"z": np.ones((2, 3), np.float32)})),
]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=3)), min_size=1, max_size=5),
)
def test_mutated_files_give_an_array_or_an_error_of_ours(
    seed: tuple[str, bytes], edits: list[tuple[int, bytes]]
) -> None:
    kind, body = seed[0], bytearray(seed[1])
    for at, data in edits:
        body[at : at + 1] = data
    with suppress(BadRequest, Unprocessable):
        assert read_array(bytes(body), kind, "z", FLOATS).nbytes <= len(body)


def test_float32_is_native_contiguous_writable_and_overflows_to_infinity_without_a_warning() -> None:
    got = to_float32(np.asfortranarray(np.array([[1.5, 1e300], [-1e300, np.nan]], ">f8")))
    assert got.dtype == np.dtype("=f4")
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_array_equal(got, np.array([[1.5, np.inf], [-np.inf, np.nan]], np.float32))
    view = read_array(npy(np.ones(2, np.float32)), NPY, "z", FLOATS)
    assert to_float32(view).flags.writeable


@pytest.mark.parametrize(
    "shape", [[0, 10**15 - 1, 10**15 - 1], [10**15 - 1, 0, 10**15 - 1], [0, 2**63 - 1], [0, 2**49]]
)
@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_an_empty_array_with_sides_that_no_array_has_is_refused(kind: str, shape: list[int]) -> None:
    if kind == "npy":
        sides = ", ".join(str(min(side, 10**15 - 1)) for side in shape)
        body = npy_with(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({sides})}}")
    else:
        body = tensors_with(tensor("F32", shape, 0))
    with pytest.raises((Unprocessable, BadRequest)) as raised:  # some are beyond what the library reads
        read_array(body, NPY if kind == "npy" else SAFETENSORS, "z", FLOATS)
    assert raised.value.code in ("wrong_shape", "malformed_safetensors")


def test_an_empty_array_with_modest_sides_is_read() -> None:
    assert read_array(npy(np.zeros((0, 28, 28), "<f4")), NPY, "z", FLOATS).shape == (0, 28, 28)
    body = tensors_with(tensor("F32", [0, 2**40], 0))
    assert read_array(body, SAFETENSORS, "z", FLOATS).shape == (0, 2**40)
