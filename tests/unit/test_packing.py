"""Planning is pure: nothing is lost, nothing is doubled, order is kept."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.encoding.packing import divide, pack
from dq_cluster.encoding.plan import PlanReader, find_plan, make_plan
from dq_cluster.errors import InputError
from dq_cluster.images.units import Unit
from dq_cluster.storage import Storage

units = st.lists(
    st.builds(Unit, st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 20)), max_size=40
)


@given(units, st.integers(1, 30))
def test_fragments_are_the_units_in_order(listed: list[Unit], target: int) -> None:
    fragments = list(pack(listed, target))
    assert [unit for fragment in fragments for unit in fragment] == listed
    for fragment in fragments[:-1]:
        known = sum(unit.rows for unit in fragment)
        assert known < target + fragment[-1].rows
        if all(unit.rows for unit in fragment):
            assert known >= target or _before_unknown(fragments, fragment)
        else:
            assert len(fragment) == 1


def _before_unknown(fragments: list[list[Unit]], fragment: list[Unit]) -> bool:
    following = next(n for n, other in enumerate(fragments) if other is fragment) + 1
    return fragments[following][0].rows == 0


def test_packing_streams() -> None:
    endless = (Unit(str(n)) for n in iter(int, 1))
    assert len(next(pack(endless, 1000))) == 1000


@given(units.filter(bool), st.integers(1, 9))
def test_lanes_hold_the_rows_in_order_and_in_balance(fragment: list[Unit], parts: int) -> None:
    def rows(units: list[Unit]) -> list[tuple[str, int]]:
        return [
            (unit.path, row)
            for unit in units
            for row in (range(unit.start, unit.start + unit.rows) if unit.rows else [-1])
        ]

    lanes = divide(fragment, parts)
    assert [row for lane in lanes for row in rows(lane)] == rows(fragment)
    assert 1 <= len(lanes) <= parts
    assert all(lanes)
    if all(unit.rows for unit in fragment):
        sizes = [len(rows(lane)) for lane in lanes]
        assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_a_stored_plan_reads_back_by_fragment(storage: Storage) -> None:
    listed = [Unit(f"f{n // 3}", n, 1 + n % 4) for n in range(50)]
    plan = make_plan(storage, "runs/r", listed, fragment_rows=10, newest=7)
    assert (plan.units, plan.rows, plan.newest) == (
        50,
        sum(unit.rows for unit in listed),
        7,
    )
    reader = PlanReader(storage, plan)
    assert [reader.fragment(n) for n in range(plan.fragments)] == list(pack(listed, 10))
    assert find_plan(storage, "runs/r") == plan
    assert find_plan(storage, "runs/other") is None


def test_the_first_plan_counts(storage: Storage) -> None:
    first = make_plan(storage, "r", [Unit("a")], fragment_rows=1)
    second = make_plan(storage, "r", [Unit("b"), Unit("c")], fragment_rows=1)
    assert second == first
    assert [info.path for info in storage.list("r")] == [first.path, "r/plan.json"]


def test_rows_are_unknown_if_one_unit_does_not_tell(storage: Storage) -> None:
    plan = make_plan(storage, "r", [Unit("a", 0, 5), Unit("b.tar", 0, 0)], fragment_rows=9)
    assert plan.rows is None
    assert plan.fragments == 2


def test_nothing_to_plan_is_an_error_and_leaves_nothing(storage: Storage) -> None:
    with pytest.raises(InputError, match="holds no images"):
        make_plan(storage, "r", [], fragment_rows=9)
    assert list(storage.list()) == []
