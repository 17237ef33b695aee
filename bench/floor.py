"""The floor: what HTTP alone costs under the same server (uvicorn), with an answer as long as that of one image.

uvicorn --factory bench.floor:create_app
"""

from collections.abc import Awaitable, Callable
from typing import Any

ANSWER = b'{"mu":[[' + b",".join([b"-0.12345678"] * 32) + b']],"sigma":[[' + b",".join([b"0.12345678"] * 32) + b"]]}"
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


def create_app() -> Callable[[dict[str, Any], Receive, Send], Awaitable[None]]:
    """Return an application that reads the body and answers always the same."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": ANSWER})

    return app
