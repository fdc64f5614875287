"""Codes in lists with centroids of zero, as a GPU scans them: the answers are those of a processor.

What runs here is all but the GPU itself. `pytest -m gpu` runs the same on one.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import pytest

from dq_cluster.errors import ConfigError, DoesNotFitError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.search.codebooks import Codebooks
from dq_cluster.search.codes import Codes
from dq_cluster.search.gpu import Lists, check_gpu
from dq_cluster.search.room import check_fits_gpu
from dq_cluster.search.searcher import Searcher
from dq_cluster.search.selection import Selection
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.local import LocalService
from tests.support import make_model, make_version
from tests.unit.test_searcher import GEOMETRIES, tensors_of

ROWS = 3000


class Counted(Lists):
    """Lists that say how often they were searched."""

    searches = 0

    def search(self, queries: np.ndarray, depth: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        self.searches += 1
        return super().search(queries, depth, nprobe)


class Made(NamedTuple):
    """The same codes, scanned by the processor and in lists."""

    plain: Searcher
    listed: Searcher
    lists: list[Counted]

    @property
    def searches(self) -> int:
        return sum(lists.searches for lists in self.lists)


def made_of(codes: np.ndarray, geometry: CodeGeometry, cuts: list[int]) -> Made:
    codebooks = Codebooks.of(tensors_of(geometry), geometry)
    cells = np.random.default_rng(7).integers(0, max(geometry.nlist, 1), len(codes))
    plain, listed, all_lists = [], [], []
    for a, b in itertools.pairwise([0, *cuts, len(codes)]):
        beside = cells[a:b].astype(np.int32) if geometry.nlist else None
        all_lists.append(Counted(codes[a:b], codebooks, beside))
        plain.append(Codes(codes[a:b], codebooks, beside))
        listed.append(Codes(codes[a:b], codebooks, beside, lists=all_lists[-1]))
    return Made(Searcher(plain, codebooks), Searcher(listed, codebooks), all_lists)


@pytest.mark.parametrize("where", ["here", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_lists_answer_what_a_processor_answers(
    name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dq_cluster.search.gpu._LIST_ROWS", 500)  # several lists without cells
    geometry = GEOMETRIES[name]
    rng = np.random.default_rng(5)
    pool = rng.integers(0, 256, (2000, geometry.code_size), dtype=np.uint8)
    codes = pool[rng.integers(len(pool), size=ROWS)]  # some twice: equal scores go by ordinal
    queries = rng.normal(size=(9, geometry.dim)).astype(np.float32)
    made = made_of(codes, geometry, [0, 1100])
    if where == "gpu":
        for lists in made.lists:
            lists.to_gpu()

    for nprobe in (None, 1, 2) if geometry.nlist else (None,):
        for k in (1, 10, 700):
            before = made.searches
            scores, ordinals = made.listed.search(queries, k, nprobe=nprobe)
            wanted = made.plain.search(queries, k, nprobe=nprobe)
            np.testing.assert_array_equal(ordinals, wanted[1])
            np.testing.assert_array_equal(scores, wanted[0])
            assert made.searches > before


@pytest.mark.parametrize("name", ["8-bit", "ivf"])
def test_what_a_gpu_cannot_do_the_processor_does(name: str) -> None:
    geometry = GEOMETRIES[name]
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 256, (ROWS, geometry.code_size), dtype=np.uint8)
    made = made_of(codes, geometry, [])
    queries = rng.normal(size=(2, geometry.dim)).astype(np.float32)
    few = Selection([rng.random(ROWS) < 0.01])  # too few to pass over the others

    for k, kept in ((2048, None), (5, few)):
        wanted = made.plain.search(queries, k, keep=kept)
        np.testing.assert_array_equal(made.listed.search(queries, k, keep=kept)[1], wanted[1])
    assert made.searches == 0


def test_an_empty_shard_has_lists_too() -> None:
    geometry = GEOMETRIES["8-bit"]
    made = made_of(np.empty((0, 2), np.uint8), geometry, [])
    assert (made.listed.search(np.zeros((1, 8), np.float32), 3)[1] == -1).all()


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="there is a GPU")
def test_without_a_gpu_the_setting_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=100, files=1)
    with pytest.raises(ConfigError, match="faiss sees no GPU in this process"):
        LocalService(ServeSettings(index=uri, shards=1, gpus=1))


def test_tables_that_a_gpu_has_no_room_for_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="64 sub-quantizers of 8 bits need tables of 65,536 bytes"
    ):
        check_gpu(CodeGeometry(dim=64, m=64))


def test_codes_that_do_not_fit_a_gpu_are_refused_with_the_numbers() -> None:
    geometry = CodeGeometry(dim=64, m=16)
    check_fits_gpu(10**9, geometry, 22 * 10**9)
    with pytest.raises(DoesNotFitError, match=r"21\.611 GB of the GPU, 21\.000 GB are allowed"):
        check_fits_gpu(10**9, geometry, 21 * 10**9)
