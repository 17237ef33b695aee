"""From the bytes of a JSON body to a checked model, or to one readable error.

Neither the input nor a library's message is passed on. What a body may hold stands in ``app.schemas``.
"""

import re
from itertools import islice
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from app.errors import MAX_ENTRIES, BadRequest, ContentTooLarge, ServiceError, Unprocessable
from app.schemas import Body

MAX_VALUES: Final = 2_500_000
"""Most values in a JSON body: each becomes some 50 bytes of memory. Binary forms have no such limit."""

MAX_LISTS: Final = 300_000
"""Most lists in a JSON body: each becomes some 200 bytes of memory, however short it is."""

FEW_LISTS: Final = 10_000
"""So many lists are never too many: a body of them is read in some milliseconds."""

MAX_FIELDS: Final = 64
"""Most fields of all objects in a JSON body."""

_FIELD: Final = re.compile(rb'"\s*:')
_POSITION: Final = re.compile(r"line (\d+) column (\d+)")
_TAGS: Final = frozenset({"file", "plane", "planes", "latent"})  # Pydantic puts the tag of an item into its path

# Pydantic's type of error -> code, message; anything else is an invalid_field.
_MEANINGS: Final = {
    "finite_number": ("not_finite", "is not a finite number"),
    "float_type": ("invalid_field", "is not a number"),
    "int_type": ("invalid_field", "is not a whole number"),
    "int_from_float": ("invalid_field", "is not a whole number"),
    "int_parsing_size": ("out_of_range", "is beyond every range"),
    "greater_than_equal": ("out_of_range", "is below {ge}"),
    "less_than_equal": ("out_of_range", "is above {le}"),
    "literal_error": ("invalid_field", "is not {expected}"),
    "list_type": ("invalid_field", "is not a list"),
    "string_type": ("invalid_field", "is not a string"),
    "model_type": ("invalid_field", "is not an object"),
    "missing": ("invalid_field", "is missing"),
    "extra_forbidden": ("invalid_field", "has a field that is not known here"),
    "union_tag_not_found": ("invalid_field", "is neither a string nor nested lists of numbers"),
    "too_long": ("too_many_items", "has more than {max_length:,} entries"),
}

M = TypeVar("M", bound=Body)


def read_json(model: type[M], body: bytes) -> M:
    """Return a JSON body as ``model``.

    Raises:
        BadRequest: it is not JSON in UTF-8, is nested too deeply, or has countless fields.
        ContentTooLarge: it holds more values, lists or rows than are read from JSON.
        Unprocessable: a field is missing, unknown, of the wrong type, or not finite.
    """
    _check_counts(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    raise _syntax_error(found[0]) if found[0]["type"] == "json_invalid" else _wrong(model, found)


def check_lists(body: bytes, most: int) -> None:
    """Refuse a body with more items than a request may hold before each of them is read.

    Args:
        body: JSON.
        most: lists that the largest allowed request has.

    Raises:
        BadRequest: there are more than that, and than ``FEW_LISTS``, and the first are nested as no item is.
        ContentTooLarge: there are more than that, and than ``FEW_LISTS``.
    """
    if (lists := body.count(b"[")) > max(most, FEW_LISTS):
        if b"[[[[[" in body[:64]:
            raise BadRequest("the JSON body is nested too deeply", code="malformed_json")
        raise ContentTooLarge(
            f"the JSON body holds {lists:,} lists; as many items as a request may hold (VAE_MAX_ITEMS) have "
            f"{most:,} at most; send them in several",
            code="too_many_items",
        )


def _check_counts(body: bytes) -> None:
    """Refuse bodies that would take many times their length in memory, before they do."""
    if body.count(b",") >= MAX_VALUES or body.count(b"[") > MAX_LISTS:
        raise ContentTooLarge(
            f"a JSON body may hold {MAX_VALUES:,} values in {MAX_LISTS:,} lists; send application/x-npy or "
            "application/x-safetensors, which are also smaller and faster",
            code="too_many_items",
        )
    if sum(1 for _ in islice(_FIELD.finditer(body), MAX_FIELDS + 1)) > MAX_FIELDS:
        raise BadRequest(
            f"the JSON body has more than {MAX_FIELDS} fields, or is nested too deeply", code="malformed_json"
        )


def _syntax_error(found: Any) -> ServiceError:
    """Return the error for text that the JSON parser refused."""
    reason = str(found.get("ctx", {}).get("error", ""))
    position = _POSITION.search(reason)
    where = f" (line {position[1]}, column {position[2]})" if position else ""
    if "out of range" in reason:  # an integer of thousands of digits
        return Unprocessable(f"a number is too large for a float{where}", code="not_finite")
    if "recursion" in reason:
        return BadRequest(f"the JSON body is nested too deeply{where}", code="malformed_json")
    return BadRequest(f"the body is not valid JSON in UTF-8{where}", code="malformed_json")


def _wrong(model: type[Body], found: list[Any]) -> ServiceError:
    """Return the error for JSON that is not the model; the first entry decides about its code."""
    entries = [(_where(item), _meaning(item)[1]) for item in found[:MAX_ENTRIES]]
    code = _meaning(found[0])[0]
    where, message = entries[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    detail = f"{where} {message}{more}; expected {model.form}"
    if code == "too_many_items":
        return ContentTooLarge(detail, code=code, errors=entries)
    return Unprocessable(detail, code=code, errors=entries)


def _meaning(item: Any) -> tuple[str, str]:
    code, message = _MEANINGS.get(item["type"], ("invalid_field", "is not valid"))
    return code, message.format(**item.get("ctx", {})) if "{" in message else message


def _where(item: Any) -> str:
    """Return a path such as ``body.z.0.3``, made of known names and indices only: an unknown one is left out."""
    path = item["loc"][:-1] if item["type"] == "extra_forbidden" else item["loc"]
    return ".".join(["body", *(str(part) for i, part in enumerate(path) if not (i in (1, 2) and part in _TAGS))])
