"""The sizing behind `dq-cluster plan`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.errors import ConfigError, DoesNotFitError
from dq_cluster.geometry import CodeGeometry
from dq_cluster.index.sizing import SizingRequest, size_index
from dq_cluster.search.room import check_fits


def test_two_billion_images_of_64_bits() -> None:
    sizing = size_index(SizingRequest(images=2_000_000_000, bits=64, replicas=2, memory_gb=16))
    assert sizing.shards == 2
    assert sizing.replicas_total == 4
    assert sizing.memory_per_replica_gb == pytest.approx(10.3, abs=0.01)
    assert sizing.fragments == 30_518
    assert sizing.storage_gb == pytest.approx(38.4, abs=0.01)


@given(
    images=st.integers(1, 10**11),
    bits=st.sampled_from([16, 32, 64, 128]),
    memory=st.floats(0.5, 1000),
)
def test_every_replica_fits_and_one_shard_fewer_would_not(
    images: int, bits: int, memory: float
) -> None:
    sizing = size_index(SizingRequest(images=images, bits=bits, memory_gb=memory))
    assert sizing.memory_per_replica_gb <= memory + 0.001
    if sizing.shards > 1:
        fewer = images / (sizing.shards - 1) * (bits // 8 + 2) + 300e6
        assert fewer > memory * 1e9 * 0.999


def test_a_second_code_takes_disk_and_storage_but_no_memory() -> None:
    plain = size_index(SizingRequest(images=10**9, bits=64))
    refined = size_index(SizingRequest(images=10**9, bits=64, refine_bits=256))
    assert refined.memory_per_replica_gb == plain.memory_per_replica_gb
    assert (plain.disk_per_replica_gb, refined.disk_per_replica_gb) == (8, 40)
    assert refined.storage_gb - plain.storage_gb == pytest.approx(1.2 * 32)


def test_the_plan_is_what_a_replica_asks_for() -> None:
    asked = {"images": 10**9, "bits": 64, "memory_gb": 1000.0}
    cells = CodeGeometry(dim=16, m=8, nlist=100)
    fast = CodeGeometry(dim=16, m=16, nbits=4)
    fast_cells = fast.model_copy(update={"nlist": 100})
    for geometry in (CodeGeometry(dim=16, m=8), cells, fast, fast_cells):
        request = SizingRequest(nbits=geometry.nbits, cells=geometry.nlist > 0, **asked)
        codes = round(size_index(request).memory_per_replica_gb * 1e9) - 300 * 10**6
        check_fits(10**9, geometry, codes)
        with pytest.raises(DoesNotFitError):
            check_fits(10**9, geometry, codes - 1)


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 GB"):
        size_index(SizingRequest(images=10, bits=64, memory_gb=0.2))
