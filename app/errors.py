"""Every failure that a caller can see: class, HTTP status and stable code.

    ServiceError
    ├── BadRequest            400   the bytes cannot be read
    ├── Unauthorized          401   a key is configured; none or a wrong one was sent
    ├── NotFound              404   no such path
    ├── MethodNotAllowed      405   the path has no such method
    ├── NotAcceptable         406   the route cannot write what Accept asks for
    ├── PreconditionFailed    412   If-Model-Match names other weights
    ├── ContentTooLarge       413   over a limit of this server
    ├── UnsupportedMediaType  415   the route cannot read this Content-Type
    ├── Unprocessable         422   well-formed, but wrong
    ├── QueueFull             429   the line is full; try again later
    ├── InternalError         500   a bug of the service
    ├── Unavailable           503   loading, draining or without its device
    └── DeadlineExceeded      504   the request's time is up

The server turns these into ``application/problem+json`` (RFC 9457), the client turns such an answer back into
the same class. This module knows neither: it is plain data and imports the standard library alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

MAX_PROBLEM_BYTES: Final = 4096
MAX_ENTRIES: Final = 8

# Names of RFC 9110, section 15; older Python releases still carry the names of RFC 4918 for 413 and 422.
TITLES: Final[dict[int, str]] = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

# code -> (status, meaning); the documentation prints this table.
CODES: Final[dict[str, tuple[int, str]]] = {
    "malformed_body": (400, "The body or a parameter cannot be read."),
    "malformed_json": (400, "The body is not valid JSON in UTF-8, nested too deeply, or has countless fields."),
    "malformed_image": (400, "An image file is broken, truncated or not a PNG or JPEG."),
    "malformed_npy": (400, "The .npy header is broken or does not fit the body's length."),
    "malformed_safetensors": (400, "The safetensors header is broken or does not fit the body's length."),
    "malformed_multipart": (400, "The multipart body is broken or incomplete."),
    "unauthorized": (401, "A key is required, and the request has none or a wrong one."),
    "not_found": (404, "There is nothing at this path."),
    "no_map": (404, "No map of the latent space lies beside the loaded weights."),
    "method_not_allowed": (405, "The path exists, but not with this method."),
    "not_acceptable": (406, "The route cannot write any type that Accept or format asks for."),
    "model_mismatch": (412, "If-Model-Match names other weights than those loaded."),
    "body_too_large": (413, "The body is longer than VAE_MAX_BODY_BYTES."),
    "too_many_pixels": (413, "An image file has more pixels than VAE_MAX_PIXELS, or all together many times that."),
    "too_many_items": (413, "The request holds or asks for more items than a limit allows."),
    "unsupported_media_type": (415, "The route cannot read this Content-Type."),
    "invalid_field": (422, "A field or parameter is missing, unknown or of the wrong type."),
    "wrong_shape": (422, "An array or image has another shape than the model reads."),
    "wrong_dtype": (422, "An array has a number type that the route does not read."),
    "out_of_range": (422, "A number lies outside its range."),
    "not_finite": (422, "A number is NaN, infinite or too large for a float."),
    "not_positive_definite": (422, "A covariance matrix is not positive definite."),
    "not_symmetric": (422, "A covariance matrix is not symmetric."),
    "not_normalized": (422, "Probabilities do not sum to 1."),
    "infinite_divergence": (422, "The divergence is infinite: q has no mass where p has some."),
    "empty": (422, "The request holds no item."),
    "queue_full": (429, "Too many items are waiting, or bytes of bodies are held; Retry-After says when to try again."),
    "internal": (500, "A bug of the service; the request id finds it in the log."),
    "loading": (503, "The model is not loaded yet."),
    "draining": (503, "The server is shutting down."),
    "device_lost": (503, "The device that computes is gone; the server ends."),
    "deadline_exceeded": (504, "The request's deadline passed before its answer was ready."),
}

# Of connections that are refused before there is a request: code -> (status, its name, meaning).
CONNECTION_CODES: Final[dict[str, tuple[int, str, str]]] = {
    "malformed_http": (400, "Bad Request", "this is not a valid HTTP/1.1 request with one Host header"),
    "too_slow": (408, "Request Timeout", "the request did not arrive in time"),
    "headers_too_large": (431, "Request Header Fields Too Large", "the header fields are too long"),
    "too_many_connections": (
        503,
        "Service Unavailable",
        "too many connections are open (VAE_MAX_CONNECTIONS); try again later",
    ),
}

_OWN_KEYS: Final = frozenset({"type", "title", "status", "code", "detail", "error", "request_id", "errors"})


class ServiceError(Exception):
    """A failure that a caller can see.

    Attributes:
        status: HTTP status of the class.
        code: stable name of the failure, a key of ``CODES`` (a client may meet a newer server's code).
        detail: one sentence: what was got, what was expected, what to do.
        errors: ``(where, message)`` pairs such as ``("body.z.0.3", "is not a number")``.
        headers: HTTP headers that the answer carries, such as ``Retry-After``.
        extra: further members of the error body, such as ``retry_after_ms``.
        request_id: id of the request that failed, where it is known (in the client).
    """

    status: int = 500
    code: str = "internal"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Keep the parts; ``ValueError`` where ``code`` is not one of the codes of this class's status."""
        super().__init__(detail)
        if code is not None:
            if CODES.get(code, (0, ""))[0] != self.status:
                raise ValueError(f"{code!r} is not a code of status {self.status}")
            self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})
        self.request_id = ""

    def to_problem(self, request_id: str) -> dict[str, object]:
        """Return the body of ``application/problem+json`` as a dictionary of JSON values.

        Encoded, with or without ASCII escapes, it is at most ``MAX_PROBLEM_BYTES`` long: texts are cut, at
        most ``MAX_ENTRIES`` entries are kept, and entries, then extra members, go while it is still longer.
        """
        detail = _clean(self.detail, 700)
        body: dict[str, object] = {
            "type": "about:blank",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "code": _clean(self.code, 64),
            "detail": detail,
            "error": detail,
            "request_id": _clean(request_id, 128),
        }
        entries = [{"where": _clean(w, 96), "message": _clean(m, 200)} for w, m in self.errors[:MAX_ENTRIES]]
        extra = {_clean(name, 64): value for name, value in self.extra.items() if name not in _OWN_KEYS}
        while _too_long(whole := body | ({"errors": entries} if entries else {}) | extra):
            if entries:
                entries.pop()
            elif extra:
                extra.popitem()
            else:
                body["detail"] = body["error"] = detail = _clean(detail, len(detail.encode()) // 2)
        return whole


class BadRequest(ServiceError):
    """The bytes cannot be read: broken JSON, a truncated image, a wrong header."""

    status = 400
    code = "malformed_body"


class Unauthorized(ServiceError):
    """A key is configured, and the request has none or a wrong one."""

    status = 401
    code = "unauthorized"


class NotFound(ServiceError):
    """There is nothing at this path."""

    status = 404
    code = "not_found"


class MethodNotAllowed(ServiceError):
    """The path has no such method."""

    status = 405
    code = "method_not_allowed"


class NotAcceptable(ServiceError):
    """The route cannot write what the request accepts."""

    status = 406
    code = "not_acceptable"


class PreconditionFailed(ServiceError):
    """The request wants other weights than those loaded."""

    status = 412
    code = "model_mismatch"


class ContentTooLarge(ServiceError):
    """Body, pixels or items are over a limit; the message names the limit and its setting."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(ServiceError):
    """The route cannot read this Content-Type; the answer carries ``Accept-Post``."""

    status = 415
    code = "unsupported_media_type"


class Unprocessable(ServiceError):
    """The request is well-formed but wrong: shape, range, NaN, a missing field."""

    status = 422
    code = "invalid_field"


class QueueFull(ServiceError):
    """Too many items are waiting; ``Retry-After`` says when to try again."""

    status = 429
    code = "queue_full"


class InternalError(ServiceError):
    """A bug of the service; the detail tells a caller nothing internal."""

    status = 500
    code = "internal"


class Unavailable(ServiceError):
    """The service is loading, draining or without its device."""

    status = 503
    code = "loading"


class DeadlineExceeded(ServiceError):
    """The request's deadline passed before its answer was ready."""

    status = 504
    code = "deadline_exceeded"


_BY_STATUS: Final = {cls.status: cls for cls in ServiceError.__subclasses__()}


def from_problem(status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> ServiceError:
    """Return the error that an answer stands for, of the class that raised it in the server.

    Nothing is required of ``body``: a proxy in between may have written it. An unknown status gives a plain
    ``ServiceError`` with that status, an unknown code is kept.
    """
    detail = body.get("detail") or body.get("error") or TITLES.get(status, "no detail was given")
    extra = {str(name): value for name, value in body.items() if name not in _OWN_KEYS}
    error = _BY_STATUS.get(status, ServiceError)(
        str(detail), errors=_entries(body.get("errors")), headers=headers, extra=extra
    )
    error.status = status
    code = body.get("code")
    error.code = code if isinstance(code, str) and code else error.code
    error.request_id = str(body.get("request_id") or "")
    return error


def _entries(errors: object) -> list[tuple[str, str]]:
    """Return the ``(where, message)`` pairs of an error body, without what does not look like one."""
    if not isinstance(errors, list):
        return []
    return [(str(e.get("where", "")), str(e.get("message", ""))) for e in errors if isinstance(e, Mapping)]


def _clean(text: str, limit: int) -> str:
    """Return ``text`` without control characters and lone surrogates, cut to ``limit`` bytes of UTF-8."""
    text = "".join(c if c.isprintable() else "?" for c in text[:limit])
    data = text.encode()
    return text if len(data) <= limit else data[: max(limit - 3, 0)].decode(errors="ignore") + "…"


def _too_long(body: Mapping[str, object]) -> bool:
    # ASCII escapes are the longest way to write the body, so the bound holds for every JSON writer.
    return len(json.dumps(body, default=str)) > MAX_PROBLEM_BYTES
