"""How far something is, as lines: at least ten seconds apart, with rate and what is left."""

import pytest

from dq_cluster.progress import LINE_EVERY, Steps


def test_lines_are_ten_seconds_apart_and_say_what_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    with Steps("verify 1", 100_000_000, "MB", scale=1e-6, clock=lambda: now[0]) as steps:
        for _ in range(10):
            now[0] += 4
            steps.advance(10_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "verify 1: 30/100 MB, 2.5 MB/s, 0:00:28 left",
        "verify 1: 60/100 MB, 2.5 MB/s, 0:00:16 left",
        "verify 1: 90/100 MB, 2.5 MB/s, 0:00:04 left",
    ]
    assert LINE_EVERY == 10


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps("verify 1", 0, "MB") as steps:
        steps.advance(0)
        assert steps.figures().startswith("0/0 MB")
    assert not capsys.readouterr().err
