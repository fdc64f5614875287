"""Whatever is killed while encoding, nothing is lost and nothing is doubled."""

from pathlib import Path

import pytest

from tests.chaos.encode_chaos import Arena
from tests.seaweed import S3Server


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.timeout(1800)
def test_every_input_is_there_exactly_once_after_every_kind_of_blow(
    tmp_path: Path, s3_server: S3Server
) -> None:
    arena = Arena(tmp_path, s3_server, images=1600, seed=0)
    blows = ("storage", "loader", "encoder", "node", "second driver", "driver")
    try:
        dealt = arena.storm("run", len(blows), blows)
    finally:
        arena.close()
    assert dealt.total() >= 3, "the run was over before enough had happened to it"
    assert arena.gave_up == 0, "a driver ended although nobody killed it"
