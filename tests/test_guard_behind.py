"""What comes behind a request: trailers of its body, and more than can be held of the requests after it."""

import asyncio
from dataclasses import replace

import pytest
from guard_fakes import GET, POST, SHORT, guarded, play

CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REST = b"2\r\nhi\r\n0\r\nX-API-Key: of a trailer\r\nContent-Type: image/png\r\n\r\n"
BODY = b"x" * 60_000
WAITING = GET.replace(b"/small", b"/slow") + POST + b"Content-Length: 60000\r\n\r\n"


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("packets", [[CHUNKED + REST], [CHUNKED, REST], [CHUNKED, REST[:20], REST[20:]]])
def test_trailers_are_no_headers_however_they_arrive(packets):
    async def scenario():
        async with guarded(replace(SHORT, receive_s=20)) as (app, _, connect):
            client = await connect()
            for packet in packets:
                await client.send(packet)
                await asyncio.sleep(0.05)
            assert (await client.answer())[0] == 200
            assert app.bodies == [b"hi"]
            assert app.fields == [[(b"host", b"x"), (b"transfer-encoding", b"chunked")]]
            await client.send(GET)
            assert (await client.answer())[0] == 200

    play(scenario)


def test_what_comes_behind_requests_that_wait_is_bounded_over_all_connections():
    async def scenario():
        async with guarded(replace(SHORT, behind_bytes=200_000, receive_s=30)) as (app, state, connect):
            clients = [await connect() for _ in range(10)]
            for client in clients:
                await client.send(WAITING + BODY)
            await until(lambda: len(state.connections) < 10 and all(guard._unparsed for guard in state.connections))
            kept = len(state.connections)
            assert 100_000 < state.behind_bytes <= 200_000
            held = sum(memoryview(guard._unparsed.obj).nbytes for guard in state.connections)
            assert state.behind_bytes == held
            good = await connect()
            await good.send(GET)
            assert (await good.answer())[0] == 200
            app.free.set()
            await until(lambda: app.bodies.count(BODY) == kept)
            assert state.behind_bytes == 0

    play(scenario)


def test_who_leaves_takes_what_is_behind_along():
    async def scenario():
        async with guarded() as (_, state, connect):
            await (await connect()).send(WAITING + BODY)
            await until(lambda: state.behind_bytes)
            for guard in list(state.connections):
                guard.transport.abort()
            await until(lambda: not state.connections)
            assert state.behind_bytes == 0

    play(scenario)


def test_a_few_bytes_do_not_keep_the_buffer_in_which_they_came():
    async def scenario():
        async with guarded() as (_, state, connect):
            first = POST.replace(b"/echo", b"/slow") + b"Content-Length: 60000\r\n\r\n" + BODY
            await (await connect()).send(first + POST + b"Content-Length: 5000\r\n\r\n" + b"y" * 2000)
            await until(lambda: state.behind_bytes)
            (guard,) = state.connections
            assert memoryview(guard._unparsed.obj).nbytes == state.behind_bytes <= 2 * len(guard._unparsed)

    play(scenario)
