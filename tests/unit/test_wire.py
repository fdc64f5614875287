"""The data plane: its format on any bytes, and routers and replicas on real sockets."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dq_cluster.errors import InputError, UnavailableError
from dq_cluster.search.placement import Layout
from dq_cluster.search.shard import Item, ShardAnswer, ShardQuery
from dq_cluster.serve.fanout import Failure
from dq_cluster.serve.wire import messages, proof
from dq_cluster.serve.wire.frames import (
    MAX_BYTES,
    MAX_BYTES_BEFORE_PROOF,
    FrameReader,
    Kind,
    WireError,
    pack,
    pack_body,
    unpack_body,
)
from dq_cluster.serve.wire.link import Address, Link
from dq_cluster.serve.wire.replicas import Replicas
from dq_cluster.serve.wire.server import ShardServer

SECRET = b"s" * 32
QUERY = ShardQuery(
    layout=Layout(3, 2),
    embeddings=np.arange(8, dtype=np.float32).reshape(2, 4),
    k=5,
    nprobe=1,
    k_factor=2,
    filter={"label": {"in": [1, 2]}},
    trace={"traceparent": "00-1-2-01"},
)

frames = st.tuples(st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=50))


@given(st.lists(frames, max_size=6), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    sent: list[tuple[Kind, int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(b"".join(pack(*frame)) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = FrameReader(MAX_BYTES)
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    got = [frame for piece in pieces for frame in reader.feed(piece)]
    assert [(frame.kind, frame.request, bytes(frame.body)) for frame in got] == sent


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_an_error_and_never_much_memory(data: bytes) -> None:
    reader = FrameReader(MAX_BYTES_BEFORE_PROOF)
    try:
        for frame in reader.feed(data):
            assert len(frame.body) <= MAX_BYTES_BEFORE_PROOF
    except WireError:
        pass
    else:
        assert len(reader._buffer) <= MAX_BYTES_BEFORE_PROOF + 4


UNPACK: list[Callable[[bytes], Any]] = [
    messages.unpack_query,
    messages.unpack_answer,
    messages.unpack_find,
    messages.unpack_item,
    messages.unpack_take,
    messages.unpack_table,
    messages.unpack_failure,
]
ROWS = pa.table({"id": [1, 2], "word": ["a", None]})
BODIES = [
    messages.pack_query(QUERY),
    messages.pack_answer(ShardAnswer(np.ones((2, 5), np.float32), np.ones((2, 5), np.int64), 0.5)),
    messages.pack_find(Layout(1, 2), 2**63 + 1),
    messages.pack_item(Item(np.ones(4, np.float32), "a.jpg", 7)),
    messages.pack_take(Layout(1, 2), np.arange(3), ("word",)),
    messages.pack_table(ROWS),
    messages.pack_failure(Failure("why")),
]


@pytest.mark.parametrize("unpack", UNPACK)
@given(data=st.data())
def test_any_body_is_a_message_or_an_error(unpack: Callable[[bytes], Any], data: Any) -> None:
    """Any bytes, and every real message with some bytes changed, cut off or added."""
    body = bytearray(data.draw(st.sampled_from(BODIES) | st.binary(max_size=100)))
    for _ in range(data.draw(st.integers(0, 4))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    with contextlib.suppress(WireError):
        unpack(bytes(body))


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
arrays = st.sampled_from(["f4", "i8", "u1"]).flatmap(lambda kind: hnp.arrays(kind, shapes))


@given(st.lists(arrays, max_size=3), st.dictionaries(st.text(max_size=5), st.integers()))
def test_bodies_come_out_as_they_went_in(sent: list[np.ndarray], values: dict[str, int]) -> None:
    values.pop("arrays", None)
    got, back = unpack_body(pack_body(values, sent))
    assert got == values
    for one, other in zip(sent, back, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


def test_messages_come_out_as_they_went_in() -> None:
    query = messages.unpack_query(messages.pack_query(QUERY))
    np.testing.assert_array_equal(query.embeddings, QUERY.embeddings)
    for name in ("layout", "k", "nprobe", "k_factor", "filter", "trace"):
        assert getattr(query, name) == getattr(QUERY, name)
    second = np.full((2, 5), 7, np.float32)
    answer = ShardAnswer(second - 1, np.arange(10).reshape(2, 5), 0.25, second)
    again = messages.unpack_answer(messages.pack_answer(answer))
    np.testing.assert_array_equal(again.ordinals, answer.ordinals)
    np.testing.assert_array_equal(again.second_scores, second)
    assert messages.unpack_find(messages.pack_find(Layout(1, 2), "é")) == (Layout(1, 2), "é")
    assert messages.unpack_item(messages.pack_item(None)) is None
    assert messages.unpack_table(messages.pack_table(ROWS)).equals(ROWS)
    assert messages.unpack_failure(messages.pack_failure(Failure("w", refused=True))).refused


class Shard:
    """A replica on a real socket that answers with its name; `gate` holds it back."""

    def __init__(self, name: str, secret: bytes = SECRET) -> None:
        self.name, self.asked = name, 0
        self.gate = asyncio.Event()
        self.gate.set()
        handlers = {Kind.FIND: self.find, Kind.SEARCH: self.fail}
        self.server = ShardServer(handlers, secret, hide="/secret/index")

    async def find(self, body: messages.Body) -> bytes:
        self.asked += 1
        await self.gate.wait()
        return messages.pack_item(Item(np.zeros(1, np.float32), self.name, 0))

    async def fail(self, body: messages.Body) -> bytes:
        raise InputError("k is wrong in /secret/index")


class Places:
    def __init__(self, *known: Address) -> None:
        self.known: list[Address] = list(known)

    async def addresses(self) -> Sequence[Address]:
        return self.known


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(240):
            await test()

    for loop in (asyncio.new_event_loop, uvloop.new_event_loop):  # Ray's processes have the other
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(bounded())


def soon() -> float:
    return time.monotonic() + 200


async def who(replicas: Replicas, deadline: float | None = None) -> str | None:
    found = await replicas.find(0, Layout(1, 2), "id", deadline or soon())
    assert isinstance(found, Item)
    return found.uri


def test_a_request_goes_there_and_back_and_errors_are_said() -> None:
    async def test() -> None:
        shard = Shard("one")
        replicas = Replicas([Places(await shard.server.listen("127.0.0.1"))], SECRET)
        assert await asyncio.gather(*(who(replicas) for _ in range(200))) == ["one"] * 200
        failure = await replicas.search(0, QUERY, soon())
        assert failure == Failure("k is wrong in <index>", refused=True)
        replicas.close()
        shard.server.close()

    run(test)


def test_a_replica_that_hangs_gets_no_more() -> None:
    async def test() -> None:
        shards = [Shard("one"), Shard("two")]
        places = Places(*[await shard.server.listen("127.0.0.1") for shard in shards])
        replicas = Replicas([places], SECRET)
        while {await who(replicas) for _ in range(4)} != {"one", "two"}:
            pass  # until both are connected
        for shard in shards:
            shard.gate.clear()
        before = [shard.asked for shard in shards]
        waiting = [asyncio.ensure_future(who(replicas)) for _ in shards]  # one for each
        while [shard.asked for shard in shards] != [n + 1 for n in before]:
            await asyncio.sleep(0)
        shards[1].gate.set()
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert {await who(replicas) for _ in range(100)} == {"two"}
        shards[0].gate.set()
        assert set(await asyncio.gather(*waiting)) == {"one", "two"}
        replicas.close()
        for shard in shards:
            shard.server.close()

    run(test)


def test_a_replica_that_is_gone_is_replaced() -> None:
    async def test() -> None:
        first, second = Shard("first"), Shard("second")
        places = Places(await first.server.listen("127.0.0.1"))
        replicas = Replicas([places], SECRET)
        assert await who(replicas) == "first"
        first.gate.clear()
        lost = asyncio.ensure_future(who(replicas))
        while first.asked < 2:
            await asyncio.sleep(0)
        places.known = []
        first.server.close()
        with pytest.raises(UnavailableError, match="connection to a replica was lost"):
            await lost
        with pytest.raises(UnavailableError, match="there is no replica"):
            await who(replicas, time.monotonic() + 0.01)
        waiting = asyncio.ensure_future(who(replicas))
        places.known = [await second.server.listen("127.0.0.1")]
        assert await waiting == "second"
        replicas.close()
        second.server.close()

    run(test)


def test_who_does_not_know_the_secret_is_not_served_and_not_believed() -> None:
    async def test() -> None:
        shard = Shard("one")
        address = await shard.server.listen("127.0.0.1")
        with pytest.raises(UnavailableError, match="closed the connection"):
            await Link.to(address, b"another", lambda: None)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"".join(pack(Kind.FIND, 1, messages.pack_find(Layout(1, 2), 1))))
        frames = list(FrameReader(MAX_BYTES).feed(await reader.read()))
        assert [frame.kind for frame in frames] == [Kind.CHALLENGE]
        writer.close()
        assert shard.asked == 0
        shard.server.close()

        async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonce = proof.nonce()
            writer.write(b"".join(pack(Kind.CHALLENGE, 0, nonce)))
            await reader.readexactly(10 + proof.PROOF_BYTES)
            writer.write(b"".join(pack(Kind.WELCOME, 0, nonce)))
            await reader.read()
            writer.close()

        server = await asyncio.start_server(pretend, "127.0.0.1", 0)
        with pytest.raises(WireError, match="no replica of this cluster"):
            await Link.to(server.sockets[0].getsockname(), SECRET, lambda: None)
        server.close()

    run(test)


def test_a_proof_is_good_for_one_connection() -> None:
    theirs, mine = proof.nonce(), proof.nonce()
    said = proof.router_proof(SECRET, theirs, mine)
    assert proof.check_router(SECRET, theirs, said) == mine
    assert proof.check_router(SECRET, proof.nonce(), said) is None
    answer = proof.replica_proof(SECRET, theirs, mine)
    assert proof.check_replica(SECRET, theirs, mine, answer)
    assert not proof.check_replica(SECRET, theirs, mine, said[proof.NONCE_BYTES :])
