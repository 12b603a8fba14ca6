# SPDX-License-Identifier: Apache-2.0
"""Hello over real sockets: asked and answered, and whatever else may listen or call."""

import asyncio
import socket
from ipaddress import IPv4Address

import pytest

from ciliumd.health import hello

LOOPBACK = IPv4Address("127.0.0.1")
SECONDS = 5.0


def free_port():
    """A port nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def run(scenario):
    """Run it, not forever."""

    async def bounded():
        async with asyncio.timeout(SECONDS):
            return await scenario()

    return asyncio.run(bounded())


async def say(port, request):
    """All that is answered to *request*."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def test_a_responder_answers_where_it_listens():
    """There and back takes a time."""

    async def scenario():
        responder = hello.Responder(free_port())
        await responder.listen([LOOPBACK])
        try:
            assert responder.problem == ""
            assert 0 < await hello.ask(LOOPBACK, responder._port) < SECONDS
        finally:
            responder.close()
        with pytest.raises(ConnectionRefusedError):
            await hello.ask(LOOPBACK, responder._port)

    run(scenario)


def test_an_address_that_is_taken_is_told_and_tried_again():
    """The problem names the place, and goes when the place is free."""

    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            responder = hello.Responder(taken.getsockname()[1])
            await responder.listen([LOOPBACK])
            assert responder.problem.startswith(f"cannot listen at 127.0.0.1:{responder._port}: ")
        await responder.listen([LOOPBACK])
        assert responder.problem == ""
        assert await hello.ask(LOOPBACK, responder._port)
        await responder.listen([])
        with pytest.raises(ConnectionRefusedError):
            await hello.ask(LOOPBACK, responder._port)

    run(scenario)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET /secret HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found"),
        (b"nonsense", b""),
        (b"x" * 20000, b""),
    ],
)
def test_whatever_is_said_gets_its_answer(request_, answer):
    """Requests, and what is none."""

    async def scenario():
        responder = hello.Responder(free_port())
        await responder.listen([LOOPBACK])
        try:
            try:
                found = await say(responder._port, request_)
            except ConnectionError:
                found = b""
            assert found.split(b"\r\n")[0] == answer
        finally:
            responder.close()

    run(scenario)


@pytest.mark.parametrize("said", [b"HTTP/1.1 503 Unwell\r\n\r\n", b"SSH-2.0\r\n", b""])
def test_another_answer_is_no_hello(said):
    """Somebody listens, but is not well, or not us."""

    async def scenario():
        async def other(reader, writer):
            await reader.readline()
            writer.write(said)
            writer.close()

        async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
            with pytest.raises(hello.Unwell):
                await hello.ask(LOOPBACK, server.sockets[0].getsockname()[1])

    run(scenario)
