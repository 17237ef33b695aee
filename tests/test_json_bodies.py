"""Wrong JSON becomes one readable error, which holds neither the input nor a library's words."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import MAX_PROBLEM_BYTES, BadRequest, ContentTooLarge, ServiceError, Unprocessable
from app.json_bodies import FEW_LISTS, MAX_FIELDS, MAX_LISTS, MAX_VALUES, check_lists, read_json
from app.schemas import MAX_ROWS, Body, ImagesIn, KlIn, LatentsIn


def error_of(body: bytes, model: type[Body] = LatentsIn) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read_json(model, body)
    return caught.value


def test_right_body_is_read() -> None:
    assert read_json(LatentsIn, b' {"z": [[1, 2.5], [3e0, -0.0]]}\n').z == [[1.0, 2.5], [3.0, 0.0]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"nul",
        b"{",
        b'{"z": [[1,]]}',
        b'{"z": [[01]]}',
        b'{"z": [[.5]]}',
        b"{'z': [[1]]}",
        b'{"z": [[1]]} x',
        b'{"z": [[1]]}\x00',
        b'\xef\xbb\xbf{"z": [[1]]}',
        b'{"z": "\xff"}',
        b'{"z": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"z": "\x01"}',
        '{"z": [[1]]}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"z":' * 100_000,
    ],
)
def test_what_is_not_json_is_400(body: bytes) -> None:
    error = error_of(body)
    assert isinstance(error, BadRequest)
    assert error.code == "malformed_json"


def test_syntax_errors_name_their_place() -> None:
    assert error_of(b'{"z":\n[[1,]]}').detail == "the body is not valid JSON in UTF-8 (line 2, column 5)"
    assert error_of(b"[" * 300).detail.startswith("the JSON body is nested too deeply (line 1, column 2")


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "-" + "9" * 400, "9" * 5000]
)
def test_numbers_that_no_float_can_hold_are_422_not_finite(number: str) -> None:
    error = error_of(b'{"z": [[0, ' + number.encode() + b"]]}")
    assert isinstance(error, Unprocessable)
    assert error.code == "not_finite"
    assert "999" not in error.detail


@pytest.mark.parametrize(
    ("model", "body", "where", "message"),
    [
        (LatentsIn, b"{}", "body.z", "is missing"),
        (LatentsIn, b"[]", "body", "is not an object"),
        (LatentsIn, b"3", "body", "is not an object"),
        (LatentsIn, b'{"z": 3}', "body.z", "is not a list"),
        (LatentsIn, b'{"z": [3]}', "body.z.0", "is not a list"),
        (LatentsIn, b'{"z": [[1], [2, "3"]]}', "body.z.1.1", "is not a number"),
        (LatentsIn, b'{"z": [[true]]}', "body.z.0.0", "is not a number"),
        (LatentsIn, b'{"z": [[1]], "x": 1}', "body", "has a field that is not known here"),
        (ImagesIn, b'{"images": [3]}', "body.images.0", "is neither a string nor nested lists of numbers"),
        (ImagesIn, b'{"images": ["a", [[0, "b"]]]}', "body.images.1.0.1", "is not a number"),
        (ImagesIn, b'{"images": [[[[0], ["b"]]]]}', "body.images.0.0.1.0", "is not a number"),
        (KlIn, b'{"p": {"nu": [1]}}', "body.p", "has a field that is not known here"),
        (KlIn, b'{"q": null}', "body.q", "is not an object"),
    ],
)
def test_wrong_fields_are_422_with_their_place(model: type[Body], body: bytes, where: str, message: str) -> None:
    error = error_of(body, model)
    assert (error.status, error.code) == (422, "invalid_field")
    assert error.errors[0] == (where, message)
    assert error.detail.startswith(f"{where} {message}")
    assert error.detail.endswith(model.form)


def test_every_wrong_field_is_told_up_to_eight() -> None:
    body = json.dumps({"z": 1} | {f"k{i}": 1 for i in range(20)}).encode()
    error = error_of(body)
    assert len(error.errors) == 8
    assert "and 20 more" in error.detail


def test_names_from_the_input_are_never_echoed() -> None:
    error = error_of(orjson.dumps({"z": [], "<script>marker": 1}))
    assert error.errors[0][0] == "body"
    assert "marker" not in str(error.to_problem(""))


def test_too_many_rows_are_413() -> None:
    error = error_of(b'{"z": [' + b"[]," * MAX_ROWS + b"[]]}")
    assert isinstance(error, ContentTooLarge)
    assert error.code == "too_many_items"


@pytest.mark.parametrize(
    "body", [b'{"z":[[' + b"1," * MAX_VALUES + b"1]]}", b'{"z":[' + b"[1]," * MAX_LISTS + b"[1]]}"]
)
def test_bodies_that_would_fill_the_memory_are_413_before_they_are_parsed(body: bytes) -> None:
    error = error_of(body)
    assert isinstance(error, ContentTooLarge)
    assert "application/x-npy" in error.detail


def test_so_many_lists_pass_and_one_more_is_413_or_malformed_where_they_nest_too_deeply() -> None:
    for most in (FEW_LISTS + 5, 5):
        limit = max(most, FEW_LISTS)
        check_lists(b"[" + b"[]," * (limit - 1) + b"]", most)
        with pytest.raises(ContentTooLarge) as caught:
            check_lists(b"[" + b"[]," * limit + b"]", most)
        assert caught.value.code == "too_many_items"
        assert f"{most:,} at most" in caught.value.detail
    for body in (b"[" * 100_000 + b"]" * 100_000, b'{"x":"[[[[[","images":[' + b"[]," * 100_000 + b"[]]}"):
        with pytest.raises(BadRequest) as malformed:  # refused unread, whatever stands before the lists
            check_lists(body, 5)
        assert malformed.value.code == "malformed_json"


def test_bodies_with_countless_fields_are_refused_before_they_are_parsed() -> None:
    body = b"{" + b",".join(b'"k%d" : 1' % i for i in range(MAX_FIELDS + 1)) + b"}"
    assert error_of(body).detail == "the JSON body has more than 64 fields, or is nested too deeply"


TOKENS = [
    b"NaN", b"1e999", b"9" * 400, b'"\\ud800"', b"null", b"true", b'"1"', b"[]", b"{}", b"[[[", b"]", b"}",
    b'"', b",", b":", b"\xff", b"\\", b"\x00", b"-", b"0.", b'{"a":1}', b"'",
]  # fmt: skip
BODIES = [
    (LatentsIn, b'{"z": [[1, 2.5], [3, 4]]}'),
    (ImagesIn, b'{"images": ["aGk=", [[0, 1]], [[[0.5]]]]}'),
    (KlIn, b'{"mu": [[1, 2]], "sigma": [[1, 2]]}'),
    (KlIn, b'{"p": {"mean": [1], "cov": [[1]]}, "q": {"mean": [1], "std": [2]}}'),
]


@settings(max_examples=500, deadline=None)
@given(
    seed=st.sampled_from(BODIES),
    edits=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 3), st.sampled_from(TOKENS)), min_size=1, max_size=4),
)
def test_mutated_bodies_are_read_or_refused_shortly(
    seed: tuple[type[Body], bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    model, body = seed[0], bytearray(seed[1])
    for at, length, token in edits:
        body[at : at + length] = token
    try:
        read_json(model, bytes(body))
    except (BadRequest, Unprocessable) as error:
        problem = orjson.dumps(error.to_problem("r"))
        words = (b"pydantic", b"Input should", b"input_value", b"errors.pydantic.dev", b"9" * 40)
        found = [word for word in words if word in problem]
        assert (len(problem) <= MAX_PROBLEM_BYTES, found) == (True, [])
