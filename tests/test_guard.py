import asyncio

import pytest
from guard_fakes import GET, POST, guarded, play, refusal

from app.limits import Limits


def test_ordinary_requests_pass_one_after_the_other_and_all_at_once():
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            for _ in range(3):
                await client.send(POST + b"Content-Length: 5\r\n\r\nhello")
                assert await client.answer() == (200, {"content-length": "5"}, b"/echo")
            await client.send(GET * 20)
            for _ in range(20):
                assert (await client.answer())[0] == 200
            assert app.bodies == [b"hello"] * 3 + [b""] * 20

    play(scenario)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /small HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 3000 + b"\r\n\r\n",
        b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /small HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 1000 + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: " + b"a" * 3000 + b"\r\n\r\n",
    ],
    ids=["a long value", "a long path", "many fields", "a long trailer"],
)
def test_a_header_block_over_the_limit_is_refused_in_one_piece_or_in_many(head):
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            await client.send(head)
            assert refusal(await client.rest()) == (431, "headers_too_large")
            client = await connect()
            for i in range(0, len(head), 250):
                if await client.flood(head[i : i + 250], 1):
                    break
                await asyncio.sleep(0)
            await client.rest()
            assert app.bodies == []

    play(scenario)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET /" + b"a" * 100,
        b"GET /small HTTP/1.1\r\nHost: x\r\nA: ",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: ",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=",
    ],
    ids=["before a request", "in a path", "in a header", "in a trailer", "in a chunk extension"],
)
def test_nothing_endless_is_read_to_its_end(start):
    async def scenario():
        async with guarded(Limits(receive_s=20)) as (_, _, connect):
            client = await connect()
            await client.send(start)
            assert await client.flood(b"\r\n" * 5000 if not start else b"a" * 10_000, 10_000)

    play(scenario)


@pytest.mark.parametrize("half", [b"", b"GET /sm", b"GET /small HTTP/1.1\r\nHost: x\r\nA: b", b"\r\n"])
def test_half_a_header_block_is_cut_at_the_deadline(half):
    async def scenario():
        async with guarded() as (_, _, connect):
            client, good = await connect(), await connect()
            await client.send(half)
            await good.send(GET)
            assert (await good.answer())[0] == 200
            assert refusal(await client.rest()) == (408, "too_slow")

    play(scenario)


def test_half_a_body_is_cut_at_the_deadline_and_the_application_sees_the_caller_go():
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            await client.send(POST + b"Content-Length: 500\r\n\r\nhalf")
            assert refusal(await client.rest()) == (408, "too_slow")
            assert (app.departed, app.bodies) == (1, [])

    play(scenario)


@pytest.mark.parametrize("first", [b"", GET])
def test_single_bytes_do_not_move_the_deadline(first):
    async def scenario():
        async with guarded() as (_, _, connect):
            client = await connect()
            await client.send(first + POST + b"Content-Length: 100000\r\n\r\n")
            if first:
                await client.answer()
            sent = 0
            while not await client.flood(b"x", 1):
                await asyncio.sleep(0.01)
                sent += 1
            assert sent < 1000

    play(scenario)


def test_stray_bytes_between_requests_do_not_keep_a_connection_for_ever():
    async def scenario():
        async with guarded() as (_, _, connect):
            client = await connect()
            await client.send(GET)
            await client.answer()
            await client.send(b"\r\n")
            assert refusal(await client.rest()) == (408, "too_slow")

    play(scenario)


def test_a_body_in_very_many_chunks_is_refused():
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100 + b"0\r\n\r\n")
            assert refusal(await client.rest()) == (400, "malformed_http")
            client = await connect()
            await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 99 + b"0\r\n\r\n")
            assert (await client.answer())[0] == 200
            assert app.bodies == [b"x" * 99]
            client = await connect()
            await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            assert await client.flood(b"1\r\nx\r\n" * 50, 20_000)

    play(scenario)


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET /small HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /small HTTP/1.1\r\n\r\n",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["nonsense", "two hosts", "no host", "two framings", "two lengths", "a broken chunk", "TLS"],
)
def test_what_is_no_request_is_answered_with_a_problem(request_):
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            await client.send(request_)
            assert refusal(await client.rest()) == (400, "malformed_http")
            assert app.bodies == []

    play(scenario)


def test_a_request_of_http_1_0_needs_no_host():
    async def scenario():
        async with guarded() as (_, _, connect):
            client = await connect()
            await client.send(b"GET /small HTTP/1.0\r\n\r\n")
            assert (await client.answer())[0] == 200

    play(scenario)


WISH = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
BODIES = {
    "none": (b"\r\n", b""),
    "a length": (b"Content-Length: %d\r\n\r\n%s" % (len(SMUGGLED), SMUGGLED), SMUGGLED),
    "chunks": (b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED), SMUGGLED),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("size", [1, 50, 180, 10_000])
def test_who_asks_for_another_protocol_is_answered_in_this_one_and_nothing_is_lost(name, size):
    rest, body = BODIES[name]
    data = (POST + WISH + rest) * 3 + GET

    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            for i in range(0, len(data), size):
                await client.send(data[i : i + size])
                await asyncio.sleep(0)
            for path in [b"/echo"] * 3 + [b"/small"]:
                assert await client.answer() == (200, {"content-length": str(len(path))}, path)
            assert app.bodies == [body] * 3 + [b""]

    play(scenario)


@pytest.mark.parametrize("after_head", [0.0, 0.05])
def test_a_body_after_the_head_of_who_asks_for_another_protocol_is_no_request(after_head):
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            await client.send(POST + WISH + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED))
            await asyncio.sleep(after_head)
            await client.send(SMUGGLED)
            assert (await client.answer())[2] == b"/echo"
            assert app.bodies == [SMUGGLED]

    play(scenario)


@pytest.mark.parametrize(
    "request_",
    [
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT /x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT a://b/ HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        POST + WISH + b"Host: y\r\n\r\n",
        POST + WISH + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + WISH + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=[
        "a tunnel",
        "a tunnel by path",
        "a tunnel to anywhere",
        "a tunnel by URL",
        "two hosts",
        "an unknown coding",
        "a broken chunk",
    ],
)
def test_to_ask_for_another_protocol_is_no_way_around_the_checks(request_):
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            await client.send(request_ + SMUGGLED)
            assert refusal(await client.rest()) == (400, "malformed_http")
            assert app.bodies == []

    play(scenario)


def test_requests_sent_all_at_once_are_answered_whole_and_in_order():
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            asked = [(b"/%d" % i, b"x" * (i * i)) for i in range(60)]
            await client.send(
                b"".join(
                    b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path, len(body), body)
                    for path, body in asked
                )
            )
            for path, _ in asked:
                assert await client.answer() == (200, {"content-length": str(len(path))}, path)
            assert app.bodies == [body for _, body in asked]

    play(scenario)


def test_however_many_requests_are_sent_at_once_few_are_held():
    async def scenario():
        async with guarded() as (_, state, connect):
            client = await connect()
            flood = asyncio.create_task(client.flood(GET * 1000, 200))
            waiting = unparsed = 0
            for _ in range(2000):
                assert (await client.answer())[0] == 200
                (guard,) = state.connections
                waiting, unparsed = max(waiting, len(guard.pipeline)), max(unparsed, len(guard._unparsed))
            flood.cancel()
            assert waiting <= 40
            assert unparsed <= 1_000_000

    play(scenario)


def test_after_a_pile_of_requests_a_body_is_still_read_and_half_a_request_still_cut():
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            await client.send(GET * 200 + POST + b"Content-Length: 300000\r\n\r\n")
            await client.send(b"x" * 300_000)
            for _ in range(201):
                assert (await client.answer())[0] == 200
            assert app.bodies[-1] == b"x" * 300_000
            await client.send(GET * 200 + b"GET /half")
            for _ in range(200):
                assert (await client.answer())[0] == 200
            assert refusal(await client.rest()) == (408, "too_slow")

    play(scenario)
