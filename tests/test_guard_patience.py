import asyncio
from dataclasses import replace

import pytest
from guard_fakes import GET, LARGE, SAFETY_S, SHORT, TWENTY, guarded, play


def test_a_slow_reader_of_a_large_answer_is_not_harmed():
    async def scenario():
        async with guarded() as (_, _, connect):
            client = await connect()
            await client.send(GET.replace(b"/small", b"/large"))
            await asyncio.sleep(3 * SHORT.receive_s)
            status, _, body = await client.answer()
            assert (status, len(body)) == (200, LARGE)

    play(scenario)


def test_who_takes_little_of_an_answer_is_cut_and_who_takes_enough_is_not():
    async def scenario():
        async with guarded(replace(SHORT, send_s=0.3, send_bytes=100_000)) as (_, state, connect):
            deaf, slow = await connect(), await connect()
            for client in (deaf, slow):
                await client.send(GET.replace(b"/small", b"/large"))
            taken = 0
            while len(state.connections) == 2:
                taken += len(await slow.reader.read(50_000))
                await asyncio.sleep(0.01)
            assert len(deaf.reader._buffer) + len(await deaf.rest()) < LARGE
            while taken < LARGE:
                taken += len(part := await slow.reader.read(1 << 20))
                assert part
            assert not state.unread

    play(scenario)


def test_answers_that_nobody_reads_do_not_fill_the_memory():
    async def scenario():
        async with guarded(replace(SHORT, unsent_bytes=3 * LARGE, connections=100)) as (app, state, connect):
            for _ in range(10):
                await (await connect()).send(GET.replace(b"/small", b"/large"))
            while len(app.bodies) < 10:
                await asyncio.sleep(0.01)
            assert sum(guard.unsent for guard in state.unread) <= 3 * LARGE
            good = await connect()
            await good.send(GET.replace(b"/small", b"/large"))
            status, _, body = await good.answer()
            assert (status, len(body)) == (200, LARGE)
            await good.send(GET)
            assert (await good.answer())[0] == 200

    play(scenario)


@pytest.mark.parametrize("more", [b"", b"GET /half", b"\r\n"])
def test_a_slow_answer_is_not_harmed_whatever_is_sent_meanwhile(more):
    async def scenario():
        async with guarded() as (app, _, connect):
            client = await connect()
            await client.send(GET.replace(b"/small", b"/slow"))
            await asyncio.sleep(0.05)
            await client.send(more)
            await asyncio.sleep(2 * SHORT.receive_s)
            app.free.set()
            assert await client.answer() == (200, {"content-length": "5"}, b"/slow")

    play(scenario)


def test_no_refusal_is_sent_in_the_place_of_an_answer_that_is_due():
    async def scenario():
        async with guarded() as (_, _, connect):
            client = await connect()
            await client.send(GET.replace(b"/small", b"/slow"))
            await asyncio.sleep(0.05)
            await client.send(b"nonsense\r\n\r\n")
            assert await client.rest() == b""

    play(scenario)


def test_an_early_answer_is_followed_by_no_second_one():
    async def scenario():
        async with guarded() as (_, _, connect):
            client = await connect()
            await client.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nhalf")
            assert await client.answer() == (200, {"content-length": "6"}, b"/early")
            assert await client.rest() == b""

    play(scenario)


def test_while_it_drains_each_answer_ends_its_connection():
    async def scenario():
        async with guarded() as (_, state, connect):
            client = await connect()
            await client.send(GET)
            assert "connection" not in (await client.answer())[1]
            state.draining = True
            await client.send(GET)
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.rest() == b""

    play(scenario)


@pytest.mark.parametrize(("sent", "code"), [(b"nonsense\r\n\r\n", "malformed_http"), (GET[:9], "too_slow")])
def test_a_refused_connection_is_counted_by_its_code(sent, code):
    async def scenario():
        async with guarded() as (_, state, connect):
            counted = []
            state.rejected = counted.append
            client = await connect()
            await client.send(sent)
            await client.rest()
            assert counted == [code]

    play(scenario)


def test_nothing_is_left_of_who_says_that_it_sends_no_more_and_reads_two_large_answers():
    async def scenario():
        limits = replace(SHORT, send_s=0.3, send_bytes=1)
        async with guarded(limits) as (_, state, connect):
            for _ in range(8):
                client = await connect()
                client.writer.transport.pause_reading()
                await client.send(GET.replace(b"/small", b"/large") * 2)
                while not state.unread:
                    await asyncio.sleep(0.01)
                client.writer.write_eof()
                await asyncio.sleep(0.05)
                client.writer.transport.resume_reading()
                await client.rest()
                while state.connections:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(3 * limits.send_s)
            assert not state.unread

    play(scenario)


async def deaf(connect, state):
    """Return a client that has asked for as much as keeps some of an answer with the server, and reads none of it."""
    client = await connect()
    client.writer.transport.pause_reading()
    (guard,) = state.connections
    while not guard.unsent:
        await client.send(GET.replace(b"/small", b"/twenty"))
        await asyncio.sleep(0.005)
    assert guard.unsent < 65_536  # less than what is watched while the connection lives
    assert not state.unread
    return client


async def cut(state):
    while state.connections:
        await asyncio.sleep(0.01)
    assert not state.unread


PATIENT = replace(SHORT, keep_alive_s=0.5, send_s=0.5)


def test_who_never_takes_a_small_rest_is_cut_when_the_connection_has_been_idle():
    async def scenario():
        async with guarded(PATIENT) as (_, state, connect):
            await deaf(connect, state)
            await cut(state)

    play(scenario)


def test_who_never_takes_a_small_rest_is_cut_when_the_server_ends():
    async def scenario():
        async with guarded(replace(PATIENT, keep_alive_s=1)) as (_, state, connect):
            await deaf(connect, state)
            for guard in list(state.connections):
                guard.shutdown()
                assert guard.transport.is_closing()
            await cut(state)

    play(scenario)


def test_who_takes_a_small_rest_late_has_all_of_it():
    async def scenario():
        async with guarded(replace(PATIENT, send_s=SAFETY_S)) as (app, state, connect):
            client = await deaf(connect, state)
            (guard,) = state.connections
            while guard not in state.unread:
                await asyncio.sleep(0.01)
            assert guard.transport.is_closing()
            client.writer.transport.resume_reading()
            for _ in app.bodies:
                assert len((await client.answer())[2]) == TWENTY
            await cut(state)

    play(scenario)
