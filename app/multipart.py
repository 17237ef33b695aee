"""multipart/form-data (RFC 7578) to the contents of its parts, without temporary files or form objects."""

import logging
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import BadRequest, ContentTooLarge, Unprocessable

_DISPOSITION: Final = b"content-disposition"
_SILENT: Final = logging.Logger("app.multipart", logging.CRITICAL)


def split_parts(body: bytes, content_type: str, name: str, max_parts: int) -> list[bytes]:
    """Return the contents of the parts, which must all be called ``name``, in order.

    Raises:
        BadRequest: no boundary, broken, or without its end.
        ContentTooLarge: more than ``max_parts`` parts.
        Unprocessable: a part has another name.
    """
    boundary = parse_options_header(content_type.encode("latin-1", "replace"))[1].get(b"boundary")
    if not boundary:
        raise _malformed("the Content-Type of the multipart body has no boundary")
    parts = _Parts(name, max_parts)
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        parser.logger = _SILENT  # it warns of every broken body: a way for callers to flood the log
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _malformed("the multipart body is broken") from None
    if not parts.ended:
        raise _malformed("the multipart body ends before its last boundary")
    return parts.contents


class _Parts:
    """What the parser calls back; it ends the parse at the first part that is not wanted."""

    def __init__(self, name: str, max_parts: int) -> None:
        self.contents: list[bytes] = []
        self.ended = False
        self._name, self._max_parts = name, max_parts
        self._data: list[bytes] = []
        self._field, self._value, self._part_name = b"", b"", b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.contents) == self._max_parts:
            raise ContentTooLarge(
                f"the form has more than {self._max_parts:,} images (VAE_MAX_ITEMS); send them in several",
                code="too_many_items",
            )
        self._data, self._part_name = [], b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == _DISPOSITION:
            self._part_name = parse_options_header(self._value)[1].get(b"name", b"")
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        if self._part_name != self._name.encode():
            raise Unprocessable(
                f"part {len(self.contents) + 1} of the form has another name; expected file parts named "
                f"{self._name}, as in curl -F {self._name}=@picture.png",
                code="invalid_field",
            )

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _part_end(self) -> None:
        self.contents.append(b"".join(self._data))

    def _end(self) -> None:
        self.ended = True


def _malformed(text: str) -> BadRequest:
    return BadRequest(text, code="malformed_multipart")
