"""Keys: who may ask. A property of the routes that do the model's work, never a rule about paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hmac import compare_digest

from app.errors import Unauthorized


def check_key(keys: Sequence[bytes], headers: Mapping[bytes, bytes]) -> None:
    """Let a request pass whose ``Authorization: Bearer`` or ``X-API-Key`` is one of the configured keys.

    Without configured keys everything passes. Every key is compared, as bytes and in constant time, so the time
    tells nothing.

    Args:
        keys: those that are configured.
        headers: fields of the request by name in lower case.

    Raises:
        Unauthorized: no key, or a wrong one.
    """
    if not keys:
        return
    sent = _sent_key(headers)
    known = [compare_digest(sent, key) for key in keys]
    if not sent or not any(known):
        problem = "a wrong key" if sent else "no key"
        raise Unauthorized(
            f"the request has {problem}; send one as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _sent_key(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    return headers.get(b"x-api-key", b"").strip()
