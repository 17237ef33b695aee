import asyncio

import pytest
from guard_fakes import GET, LARGE, SHORT, guarded, play, refusal


def test_a_slow_reader_of_a_large_answer_is_not_harmed():
    async def scenario():
        async with guarded() as (_, _, connect):
            client = await connect()
            await client.send(GET.replace(b"/small", b"/large"))
            await asyncio.sleep(3 * SHORT.receive_s)
            status, _, body = await client.answer()
            assert (status, len(body)) == (200, LARGE)

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


def test_one_connection_too_many_is_refused_and_there_is_room_again_later():
    async def scenario():
        async with guarded() as (_, state, connect):
            clients = [await connect() for _ in range(4)]
            for client in clients:
                await client.send(GET)
                assert (await client.answer())[0] == 200
            assert refusal(await (await connect()).rest()) == (503, "too_many_connections")
            clients[0].writer.close()
            while len(state.connections) == 4:
                await asyncio.sleep(0.01)
            client = await connect()
            await client.send(GET)
            assert (await client.answer())[0] == 200

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
