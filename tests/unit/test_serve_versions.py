"""Which versions are held, needed, and served: loads, releases, and restarts in every order."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from ray.exceptions import ActorDiedError, RayError

from dq_cluster.errors import (
    DoesNotFitError,
    DqError,
    InputError,
    IntegrityError,
    StorageError,
    UnavailableError,
)
from dq_cluster.index.catalog import Index
from dq_cluster.search.placement import Layout
from dq_cluster.serve.api import parse_request
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.held import Held
from dq_cluster.serve.keeper import VersionKeeper, _refusal
from dq_cluster.serve.local import LocalService
from dq_cluster.serve.versions import SILENT_S, Versions, still_serving
from tests.support import make_model, make_version

SHARDS = 4


def at(*versions: int) -> frozenset[Layout]:
    return frozenset(Layout(version, SHARDS) for version in versions)


LAYOUTS = st.frozensets(st.builds(Layout, st.integers(1, 5), st.integers(3, 4)), max_size=3)


class VersionsMachine(RuleBasedStateMachine):
    """Routers that report, fall silent and come back, while versions are switched."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.versions = Versions(1, SHARDS, clock=lambda: self.now)
        self.reports: dict[str, tuple[frozenset[Layout], float]] = {}

    @rule(router=st.sampled_from("abc"), in_use=LAYOUTS)
    def report(self, router: str, in_use: frozenset[Layout]) -> None:
        assert self.versions.report(router, in_use) == self.versions.serving
        self.reports[router] = (in_use, self.now)

    @rule(version=st.integers(1, 5))
    def switch(self, version: int) -> None:
        self.versions.serving = version

    @rule(seconds=st.floats(0, 2 * SILENT_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_is_in_use_is_needed_and_nothing_else(self) -> None:
        needed = self.versions.needed()
        if self.now < SILENT_S:
            assert needed is None, "routers of before may not have reported yet"
            return
        alive = [used for used, at in self.reports.values() if self.now - at < SILENT_S]
        assert needed == at(self.versions.serving).union(*alive)


TestVersions = VersionsMachine.TestCase
TestVersions.settings = settings(max_examples=60)


class HeldMachine(RuleBasedStateMachine):
    """Loads that end when the machine says so, between orders to load and to release."""

    waiting = Bundle("waiting")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.gates: dict[int, threading.Event] = {}
        self.loads: list[int] = []
        self.held: Held[int, str] = Held(self.load)
        self.wanted: set[int] = set()

    def load(self, version: int) -> str:
        self.loads.append(version)
        assert self.gates[version].wait(240)
        return f"version {version}"

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @rule(target=waiting, version=st.integers(1, 4))
    def ask(self, version: int) -> tuple[int, "asyncio.Task[str]"]:
        if version not in self.held._loading and version not in self.held._held:
            self.gates[version] = threading.Event()

        async def start() -> "asyncio.Task[str]":
            task = asyncio.ensure_future(self.held.get(version))
            await asyncio.sleep(0)
            return task

        self.wanted.add(version)
        return version, self.run(start())

    @rule(asked=waiting)
    def loaded(self, asked: tuple[int, "asyncio.Task[str]"]) -> None:
        version, task = asked
        self.gates[version].set()

        async def wait() -> str:
            return await task

        assert self.run(wait()) == f"version {version}"

    @rule(keep=st.frozensets(st.integers(1, 4)))
    def release(self, keep: frozenset[int]) -> None:
        self.held.release(keep)
        self.wanted &= keep

    @invariant()
    def nothing_else_is_held(self) -> None:
        assert self.held.keys == self.wanted
        assert set(self.held._held) <= self.wanted, "a load that was given up is held for ever"
        assert self.held._released <= set(self.held._loading)

    def teardown(self) -> None:
        for gate in self.gates.values():
            gate.set()
        self.runner.close()


TestHeld = HeldMachine.TestCase
TestHeld.settings = settings(max_examples=60)


def test_a_load_that_fails_is_tried_again() -> None:
    answers: Iterator[Exception | str] = iter([StorageError("away"), "loaded"])

    def load(version: int) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run() -> None:
        held: Held[int, str] = Held(load)
        with pytest.raises(StorageError):
            await held.get(1)
        assert held.keys == frozenset()
        assert await held.get(1) == "loaded"

    asyncio.run(run())


class Memory:
    """What outlives a keeper: one number."""

    version: int | None = None
    away = False

    def read(self) -> int | None:
        return self.version

    def write(self, version: int) -> None:
        if self.away:
            raise RayError("no head")
        self.version = version


class Shard:
    """As Serve's handle of a deployment with one replica; `gate` holds up its answers."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, Any]] = []
        self.under_way: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.answers: dict[Layout, Any] = {}

    def broadcast(self, method: str, argument: Any) -> "Shard":
        assert not self.under_way, f"{method} while {self.under_way}"
        self.under_way.append(method)
        self.orders.append((method, argument))
        return self

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> list[Any]:
        try:
            await self.gate.wait()
            method, argument = self.orders[-1]
            answer = self.answers.get(argument) if method == "load" else None
            if isinstance(answer, TimeoutError):
                raise answer
            return [answer]
        finally:
            self.under_way.pop()


class Cluster:
    """A keeper over shards of the test, a clock that the test moves, and the cluster's memory."""

    def __init__(self, uri: str, **asked: Any) -> None:
        self.settings = ServeSettings(index=uri, shards=SHARDS, **asked)
        self.now = 0.0
        self.memory, self.shards = Memory(), [Shard(), Shard()]

    async def start(self) -> VersionKeeper:
        """A keeper; a second one is what Serve starts after the first one died."""
        keeper = object.__new__(VersionKeeper)
        make: Callable[..., Coroutine[Any, Any, None]] = VersionKeeper.__init__
        await make(keeper, self.settings, self.shards, self.memory, clock=lambda: self.now)
        keeper._tidying.cancel()  # the test calls `tidy`
        return keeper

    def orders(self) -> list[tuple[str, Any]]:
        assert self.shards[0].orders == self.shards[1].orders
        return self.shards[0].orders


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index with versions 1 to 3; CURRENT is 3."""
    uri = str(tmp_path_factory.mktemp("versions") / "index")
    card = make_model(uri)
    for seed in range(3):
        make_version(uri, card, rows=300, files=2, seed=seed)
    return uri


def test_a_keeper_remembers_what_was_switched_to(uri: str) -> None:
    async def run() -> None:
        cluster = Cluster(uri, version=1)
        keeper = await cluster.start()
        assert await keeper.switch(2) is None
        for _ in range(2):
            keeper = await cluster.start()
            # Nobody has told it yet: not a router, and CURRENT is another version.
            assert await keeper.serving() == 2
            assert await keeper.follow("a new router", frozenset()) == 2
            assert await keeper.follow("a router that missed the switch", at(1)) == 2

    asyncio.run(run())


def test_a_keeper_serves_on_what_it_started_with_when_current_moves(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    card = make_model(uri)
    make_version(uri, card, rows=300, files=2)

    async def run() -> None:
        cluster = Cluster(uri)
        assert await (await cluster.start()).serving() == 1
        make_version(uri, card, rows=300, files=2, seed=1)
        assert Index.at(uri).current() == 2
        assert await (await cluster.start()).serving() == 1
        assert await (await Cluster(uri).start()).serving() == 2, "another deployment starts anew"

    asyncio.run(run())


def test_what_is_loading_is_not_released(uri: str) -> None:
    """Shard.broadcast refuses an order while another is under way."""

    async def run() -> None:
        cluster = Cluster(uri, version=1)
        keeper = await cluster.start()
        await keeper.follow("a", at(1))
        assert await keeper.switch(2) is None
        cluster.now = SILENT_S
        for shard in cluster.shards:
            shard.gate.clear()
        switching = asyncio.ensure_future(keeper.switch(3))
        await asyncio.sleep(0)
        await keeper.follow("a", at(2))
        tidying = asyncio.ensure_future(keeper.tidy())
        for _ in range(5):
            await asyncio.sleep(0)
        assert cluster.orders() == [("load", Layout(2, SHARDS)), ("load", Layout(3, SHARDS))]
        for shard in cluster.shards:
            shard.gate.set()
        assert await switching is None
        await tidying
        assert cluster.orders()[2:] == [("release", at(2, 3))]
        await keeper.tidy()
        assert len(cluster.orders()) == 3, "what is done is not done again at once"
        cluster.now += SILENT_S / 2
        await keeper.follow("a", at(3))
        await keeper.tidy()
        assert cluster.orders()[3:] == [("release", at(3))]
        cluster.now += 100
        await keeper.tidy()
        assert cluster.orders()[4:] == [("release", at(3))], "for those that missed it"

    asyncio.run(run())


def test_a_refused_switch_changes_nothing_and_is_released(uri: str) -> None:
    async def run() -> None:
        cluster = Cluster(uri, version=1)
        keeper = await cluster.start()
        cluster.shards[1].answers = {
            Layout(2, SHARDS): IntegrityError("shard 1 refused version 2: damaged"),
            Layout(3, SHARDS): TimeoutError(),
        }
        cluster.now = SILENT_S
        await keeper.tidy()
        assert cluster.orders() == [("release", at(1))]
        refused = await keeper.switch(2)
        await keeper.tidy()
        assert cluster.orders()[1:] == [("load", Layout(2, SHARDS)), ("release", at(1))]
        assert isinstance(refused, IntegrityError)
        assert "damaged" in str(refused)
        late = await keeper.switch(3)
        assert isinstance(late, UnavailableError)
        assert "did not load in 600 s (load_timeout_s)" in str(late)
        assert await keeper.serving() == 1 == cluster.memory.version
        await keeper.tidy()
        assert cluster.orders()[3:] == [("load", Layout(3, SHARDS)), ("release", at(1))]

    asyncio.run(run())


def test_a_switch_that_cannot_be_remembered_does_not_happen(uri: str) -> None:
    async def run() -> None:
        cluster = Cluster(uri, version=1)
        keeper = await cluster.start()
        cluster.memory.away = True
        assert isinstance(await keeper.switch(2), UnavailableError)
        assert await keeper.serving() == 1

    asyncio.run(run())


def test_a_restarted_keeper_releases_nothing_until_every_router_reported(uri: str) -> None:
    async def run() -> None:
        cluster = Cluster(uri, version=1)
        keeper = await cluster.start()
        await keeper.switch(2)
        keeper = await cluster.start()
        cluster.now = SILENT_S - 1
        await keeper.tidy()
        assert cluster.orders() == [("load", Layout(2, SHARDS))]
        await keeper.follow("slow", at(1))
        cluster.now = SILENT_S
        await keeper.tidy()
        assert cluster.orders()[1:] == [("release", at(1, 2))]

    asyncio.run(run())


def test_a_release_that_a_replica_missed_is_said_again(uri: str) -> None:
    async def run() -> None:
        cluster = Cluster(uri, version=1)
        keeper = await cluster.start()
        cluster.now = SILENT_S
        broken, results = cluster.shards[1], cluster.shards[1].results_async

        async def died(**_: Any) -> list[Any]:
            broken.under_way.pop()
            return [ActorDiedError()]

        broken.results_async = died  # type: ignore[assignment,method-assign]
        await keeper.tidy()
        broken.results_async = results  # type: ignore[method-assign]
        await keeper.tidy()
        await keeper.tidy()
        assert cluster.orders() == [("release", at(1))] * 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([[None], [None, None]], None),
        ([[None], [None, ActorDiedError()]], None),
        ([[None], [ActorDiedError()]], UnavailableError),
        ([[None], []], UnavailableError),
        ([[None], ValueError()], UnavailableError),
        ([[None], [None, StorageError("away")]], StorageError),
    ],
)
def test_one_replica_of_each_shard_is_enough(answers: list[Any], kind: type | None) -> None:
    refused = _refusal(answers, 600)
    assert refused is None if kind is None else type(refused) is kind


def test_what_is_away_is_told_from_what_is_wrong() -> None:
    for error in (StorageError("x"), UnavailableError("x")):
        assert type(still_serving(3, error)) is type(error)
    for wrong in (DoesNotFitError("x"), InputError("x"), IntegrityError("x"), DqError("x")):
        assert type(still_serving(3, wrong)) is IntegrityError
    assert str(still_serving(3, DqError("why"))) == "still serving version 3: why"


def test_a_local_service_holds_what_its_queries_use(uri: str) -> None:
    async def run() -> None:
        service = LocalService(ServeSettings(index=uri, version=1, shards=2))
        for version in (2, 3, 1, 2):
            assert (await service.refresh(version)).version == version
            assert service._held.keys == {version}
        with service._engine._pinned() as served:  # as a query does
            await asyncio.gather(service.refresh(1), service.refresh(3), service.refresh(1))
            assert served.manifest.version == 2
            assert service._held.keys == {1, 2}
        answer = await service.search(parse_request({"id": 5}))
        assert answer.version == 1
        assert service._held.keys == {1}

    asyncio.run(run())
