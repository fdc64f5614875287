"""A short run of the fuzzer of pictures; benchmarks/results/fuzz-images.json is of a long one."""

from benchmarks.fuzz_images import LIMITS, fuzz
from dq_cluster.images.guard import ChildDecoder


def test_damage_ends_no_decoder_and_damaged_metadata_changes_no_pixel() -> None:
    with ChildDecoder(LIMITS) as decode:
        tallies, found = fuzz(1600, 0, decode)
    assert not found
    for tally in tallies.values():
        assert tally.decoded + sum(tally.rejected.values()) == tally.files
        assert tally.decoded > tally.metadata_files == 50
        assert tally.rejected
