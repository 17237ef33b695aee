"""The errors that callers see: their table, their bodies, and the way back in the client."""

import json
from collections.abc import Mapping

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import errors
from app.errors import CODES, MAX_ENTRIES, MAX_PROBLEM_BYTES, TITLES, ServiceError, from_problem

CLASSES = ServiceError.__subclasses__()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_has_a_title_and_a_default_code_of_its_status(cls: type[ServiceError]) -> None:
    assert cls.status in TITLES
    assert CODES[cls.code][0] == cls.status
    assert cls.__doc__


def test_every_status_has_exactly_one_class_and_every_code_belongs_to_one() -> None:
    statuses = [cls.status for cls in CLASSES]
    assert len(statuses) == len(set(statuses))
    assert {status for status, _ in CODES.values()} == set(statuses) == set(TITLES)


def test_module_imports_the_standard_library_alone() -> None:
    names = {getattr(value, "__module__", "") for value in vars(errors).values()}
    assert not {name for name in names if name.partition(".")[0] in {"pydantic", "fastapi", "numpy", "orjson"}}


def test_code_of_another_status_is_refused() -> None:
    with pytest.raises(ValueError, match="not a code of status 422"):
        errors.Unprocessable("no", code="queue_full")
    with pytest.raises(ValueError, match="not a code"):
        errors.Unprocessable("no", code="invented")


def test_problem_has_the_members_of_the_contract() -> None:
    error = errors.Unprocessable(
        "got z of shape (3, 31); this model reads (N, 32)",
        code="wrong_shape",
        errors=[("body.z.0", "has 31 numbers; expected 32")],
    )
    assert error.to_problem("01J") == {
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "code": "wrong_shape",
        "detail": "got z of shape (3, 31); this model reads (N, 32)",
        "error": "got z of shape (3, 31); this model reads (N, 32)",
        "request_id": "01J",
        "errors": [{"where": "body.z.0", "message": "has 31 numbers; expected 32"}],
    }


def test_problem_without_entries_has_no_errors_member_and_extra_members_come_last() -> None:
    error = errors.QueueFull("the line is full", headers={"Retry-After": "2"}, extra={"retry_after_ms": 1500})
    body = error.to_problem("r")
    assert "errors" not in body
    assert list(body)[-1] == "retry_after_ms"
    assert body["retry_after_ms"] == 1500
    assert error.headers == {"Retry-After": "2"}


def test_extra_members_cannot_replace_the_members_of_the_contract() -> None:
    body = errors.NotFound("nothing here", extra={"status": 200, "code": "fine"}).to_problem("r")
    assert (body["status"], body["code"]) == (404, "not_found")


@settings(max_examples=60, deadline=None)
@given(
    detail=st.text(max_size=40),
    where=st.text(max_size=20),
    factor=st.integers(1, 400),
    entries=st.integers(0, 20),
    request_id=st.text(max_size=300),
    extra=st.dictionaries(st.text(max_size=8), st.text(max_size=5000), max_size=3),
)
def test_no_problem_is_longer_than_4_kb_and_each_is_valid_utf8_json(
    detail: str, where: str, factor: int, entries: int, request_id: str, extra: dict[str, str]
) -> None:
    error = errors.BadRequest(
        detail * factor, errors=[(where * factor, detail * factor)] * entries, extra=dict.fromkeys(extra, 1)
    )
    body = error.to_problem(request_id)
    assert len(json.dumps(body)) <= MAX_PROBLEM_BYTES
    assert len(orjson.dumps(body)) <= MAX_PROBLEM_BYTES
    assert len(body.get("errors", [])) <= MAX_ENTRIES  # type: ignore[arg-type]
    assert len(json.dumps(errors.BadRequest("x", extra=extra).to_problem("r"))) <= MAX_PROBLEM_BYTES


def test_control_characters_and_lone_surrogates_are_replaced_in_every_text() -> None:
    body = errors.BadRequest("a\ud800b\x00\n", errors=[("\udfff", "\x1b[31m")]).to_problem("\r\n")
    assert body["detail"] == "a?b??"
    assert body["errors"] == [{"where": "?", "message": "?[31m"}]
    assert body["request_id"] == "??"


@pytest.mark.parametrize("code", CODES)
def test_client_gets_the_class_and_parts_that_the_server_raised(code: str) -> None:
    cls = next(cls for cls in CLASSES if cls.status == CODES[code][0])
    sent = cls("a detail", code=code, errors=[("body", "wrong")], extra={"retry_after_ms": 5})
    got = from_problem(cls.status, sent.to_problem("id-1"), {"Retry-After": "1"})
    assert type(got) is cls
    assert (got.status, got.code, got.detail, got.errors) == (sent.status, code, "a detail", sent.errors)
    assert (got.extra, got.headers, got.request_id) == ({"retry_after_ms": 5}, {"Retry-After": "1"}, "id-1")
    assert str(got) == "a detail"


def test_unknown_codes_and_statuses_of_newer_servers_and_proxies_are_tolerated() -> None:
    newer = from_problem(422, {"code": "too_blue", "detail": "too blue"}, {})
    assert isinstance(newer, errors.Unprocessable)
    assert newer.code == "too_blue"
    proxy = from_problem(502, {}, {})
    assert type(proxy) is ServiceError
    assert proxy.status == 502
    assert proxy.to_problem("r")["status"] == 502


@settings(max_examples=60, deadline=None)
@given(status=st.integers(100, 599), body=st.dictionaries(st.text(max_size=12), JSON_VALUES, max_size=6))
def test_any_answer_becomes_an_error(status: int, body: Mapping[str, object]) -> None:
    for key in ("code", "detail", "errors", "request_id"):
        body = {**body, key: next(iter(body.values()), None)}
    got = from_problem(status, body, {})
    assert got.status == status
    assert len(json.dumps(got.to_problem("r"), default=str)) <= MAX_PROBLEM_BYTES
