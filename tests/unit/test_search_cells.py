"""Codes in order of their cell: places and rows, numbers that repeat, and what it takes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_cluster.errors import DoesNotFitError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.manifest import FileEntry
from dq_cluster.search.cells import RUN_BYTES, CellCodes, Runs
from dq_cluster.search.merge import MISSING
from dq_cluster.search.room import check_fits
from dq_cluster.search.segments import Segment
from dq_cluster.search.slots import Slots

FILES = st.lists(st.lists(st.integers(0, 6), max_size=30).map(sorted), max_size=5)


@settings(max_examples=100, deadline=None)
@given(FILES, st.sampled_from([1, 32]))
def test_every_row_has_a_place_in_the_list_of_its_cell(files: list[list[int]], block: int) -> None:
    pieces = [np.array(file, np.int32) for file in files]
    cells = np.concatenate([np.empty(0, np.int32), *pieces])
    runs = Runs(pieces, 7, block)
    rows = np.arange(len(cells))
    places = runs.places_of(rows)
    np.testing.assert_array_equal(runs.rows_at(places), rows)
    np.testing.assert_array_equal(runs.cells_of(rows), cells)
    for cell in range(7):  # a list has its rows in order, from the start of a block on
        wanted = runs.starts[cell] + np.arange((cells == cell).sum())
        np.testing.assert_array_equal(places[cells == cell], wanted)
        assert runs.starts[cell] % block == 0
    for first in range(0, len(cells), 3):
        last = min(first + 11, len(cells))
        np.testing.assert_array_equal(runs.between(first, last), places[first:last])


@pytest.mark.parametrize("nbits", [4, 8])
def test_codes_are_found_by_row_however_they_are_packed(nbits: int) -> None:
    geometry = CodeGeometry(dim=16, m=64 // nbits, nbits=nbits, nlist=9)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (1000, 8), dtype=np.uint8)
    centroids = rng.normal(size=(geometry.m, geometry.ksub, geometry.dsub)).astype(np.float32)
    held = CellCodes.of(codes, rng.integers(0, 9, 1000), centroids, geometry)
    rows = rng.integers(0, 1000, (5, 40))
    np.testing.assert_array_equal(held[rows], codes[rows])


def test_files_in_order_of_their_cell_take_a_run_for_each_cell() -> None:
    rng = np.random.default_rng(1)
    files = [np.sort(rng.integers(0, 64, 4096)).astype(np.int32) for _ in range(8)]
    runs = Runs(files, 64, 1)
    assert runs.nbytes == RUN_BYTES * 8 * 64
    assert runs.nbytes < 0.2 * runs.rows


@pytest.mark.parametrize("period", [16, 64, 1 << 12])
def test_numbers_mean_every_code_that_they_may(period: int) -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(0, 20, 40)
    slots = Slots(sizes, period)
    starts = np.cumsum(sizes) - sizes
    for probes in (3, 40):
        keys = np.stack([rng.permutation(40)[:probes] for _ in range(6)])
        wanted = [{(int(key), at) for key in row for at in range(sizes[key])} for row in keys]
        taken = [sorted(pairs)[::3] for pairs in wanted]
        depth = max(map(len, taken))
        found = np.full((6, depth), MISSING, np.int64)
        for row, pairs in enumerate(taken):
            found[row, : len(pairs)] = [(starts[key] + at) % period for key, at in pairs]
        lists, offsets = slots.resolved(found, keys)
        for row, pairs in enumerate(taken):
            there = lists[row] != MISSING
            got = list(zip(lists[row][there].tolist(), offsets[row][there].tolist(), strict=True))
            assert len(set(got)) == len(got)
            assert set(pairs) <= set(got) <= wanted[row]
            assert (lists[row, -1] == MISSING) == (found[row, -1] == MISSING)


def test_small_files_count_with_the_runs_that_they_have() -> None:
    geometry = CodeGeometry(dim=8, m=8, nlist=4096)

    def segment(files: int, rows: int) -> Segment:
        entries = [FileEntry(path=f"a/{n}", rows=rows, size=1, sha256="") for n in range(files)]
        return Segment(tuple(entries))

    rows = 2 << 20
    check_fits(rows, geometry, int(9.6 * rows), segments=[segment(2, 1 << 20)])
    small = [segment(2 << 10, 1 << 10)]
    with pytest.raises(DoesNotFitError, match="need"):
        check_fits(rows, geometry, int(9.6 * rows), segments=small)
    check_fits(rows, geometry, int(21 * rows), segments=small)
