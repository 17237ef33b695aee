"""multipart/form-data to the contents of its parts."""

import logging
from contextlib import suppress

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import BadRequest, ContentTooLarge, ServiceError, Unprocessable
from app.multipart import split_parts

TYPE = "multipart/form-data; boundary=XX"


def part(content: bytes, name: str = "images", extra: bytes = b"") -> bytes:
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'.encode()
    return head + extra + b"\r\n" + content + b"\r\n"


def form(*contents: bytes) -> bytes:
    return b"".join(part(content) for content in contents) + b"--XX--\r\n"


def split(body: bytes, content_type: str = TYPE, most: int = 100) -> list[bytes]:
    return split_parts(body, content_type, "images", most)


def error_of(body: bytes, content_type: str = TYPE, most: int = 100) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        split(body, content_type, most)
    return caught.value


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"\r\n--X", b"\r\n", b"--XX", b"\r" * 9]), max_size=5))
def test_contents_come_back_in_order_byte_for_byte(contents: list[bytes]) -> None:
    contents = [content for content in contents if b"\r\n--XX" not in b"\r\n" + content]
    if contents:
        assert split(form(*contents)) == contents


def test_form_of_a_real_client_is_read() -> None:
    request = httpx.Request("POST", "http://x/", files=[("images", ("ä.png", b"one")), ("images", b"two\r\n")])
    assert split(request.read(), request.headers["content-type"]) == [b"one", b"two\r\n"]


def test_boundary_may_be_quoted_and_headers_may_have_any_case() -> None:
    body = b"--XX\r\ncontent-DISPOSITION:form-data;name=images\r\nX-A: b\r\n\r\n1\r\n--XX--"
    assert split(body, 'Multipart/Form-Data; charset=x; Boundary="XX"') == [b"1"]


def test_form_without_parts_is_empty() -> None:
    assert split(b"--XX--\r\n") == []


@pytest.mark.parametrize("name", ["image", "Images", "", "images[]", "images\xe4"])
def test_parts_of_another_name_are_refused_and_the_right_name_is_told(name: str) -> None:
    error = error_of(part(b"1") + part(b"2", name) + b"--XX--")
    assert isinstance(error, Unprocessable)
    assert error.code == "invalid_field"
    assert error.detail.startswith("part 2 of the form has another name; expected file parts named images")


def test_part_without_a_name_is_refused() -> None:
    assert error_of(b"--XX\r\n\r\n1\r\n--XX--").code == "invalid_field"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(b"1"), "multipart/form-data"),
        (form(b"1"), "multipart/form-data; boundary="),
        (form(b"1"), "multipart/form-data; boundary=YY"),
        (form(b"1"), "multipart/form-data; boundary=" + "X" * 300),
        (b"", TYPE),
        (b"\r\n" * 1000, TYPE),
        (b"hello", TYPE),
        (form(b"1")[:-6], TYPE),
        (part(b"1"), TYPE),
        (b"--XX\r\nno colon\r\n\r\n1\r\n--XX--", TYPE),
        (b"--XX\r\nA: " + b"b" * 100_000 + b"\r\n\r\n1\r\n--XX--", TYPE),
        (b"--XX\r\n" + b"A: b\r\n" * 1000 + b"\r\n1\r\n--XX--", TYPE),
    ],
)
def test_broken_and_unfinished_forms_are_400(body: bytes, content_type: str) -> None:
    error = error_of(body, content_type)
    assert isinstance(error, BadRequest)
    assert error.code == "malformed_multipart"


def test_parts_over_the_limit_end_the_parse() -> None:
    body = form(*[b""] * 100)
    assert len(split(body, most=100)) == 100
    error = error_of(body + b"garbage that is never reached", most=99)
    assert isinstance(error, ContentTooLarge)
    assert error.code == "too_many_items"
    assert "99 images (VAE_MAX_ITEMS)" in error.detail


def test_broken_forms_leave_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        error_of(b"--XX\r\nno colon\r\n\r\n1\r\n--XX--")
        assert split(form(b"1") + b"after the end") == [b"1"]
    assert caplog.records == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 9), st.binary(max_size=4)), min_size=1, max_size=4))
def test_mutated_forms_are_read_or_refused(edits: list[tuple[int, int, bytes]]) -> None:
    body = bytearray(form(b"first", b"second"))
    for at, length, data in edits:
        body[at : at + length] = data
    with suppress(BadRequest, Unprocessable):
        assert sum(map(len, split(bytes(body)))) <= len(body)
