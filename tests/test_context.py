"""What is known of a request: its header fields and its id."""

from typing import cast

import pytest

from app.context import Context
from app.service import Service


def context(*fields: tuple[bytes, bytes]) -> Context:
    return Context(cast(Service, None), list(fields))


def test_of_a_repeated_field_the_first_counts_unless_it_is_a_list() -> None:
    asked = context(
        (b"accept", b"image/png"),
        (b"x-api-key", b"first"),
        (b"if-none-match", b'"a"'),
        (b"accept", b"application/json;q=0.5, text/html"),
        (b"x-api-key", b"second"),
        (b"if-none-match", b'"b"'),
    )
    assert asked.header(b"accept") == "image/png, application/json;q=0.5, text/html"
    assert asked.header(b"if-none-match") == '"a", "b"'
    assert asked.header(b"x-api-key") == "first"
    assert asked.header(b"content-type") is None


def test_a_field_that_is_no_ascii_is_read_as_latin_1() -> None:
    assert context((b"accept", b"caf\xe9")).header(b"accept") == "caf\u00e9"


@pytest.mark.parametrize("sent", [b"order-7:a.b_c", b"x" * 64])
def test_a_sane_request_id_is_kept(sent: bytes) -> None:
    assert context((b"x-request-id", sent)).request_id == sent.decode()


@pytest.mark.parametrize("sent", [b"", b"x" * 65, b"a b", b"a\nb", b"\xe9"])
def test_any_other_is_replaced_by_one_of_32_hexadecimal_digits(sent: bytes) -> None:
    first, second = (context((b"x-request-id", sent)).request_id for _ in range(2))
    assert len(first) == len(second) == 32
    assert first != second
    assert int(first, 16) >= 0
