"""An image that is the end of its decoder is found out, and its neighbours are decoded."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import decode_image
from dq_cluster.images.guard import ChildDecoder, ChildDecoderPool
from dq_cluster.images.rejects import Reason, RejectError
from tests.deadly import GLUTTON, HANGER, KILLER, install
from tests.pictures import crops

QUICK = ImageLimits(max_seconds=3)
GOOD = crops(1)[0]


@pytest.fixture(scope="module", autouse=True)
def _deadly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Children of the fork server, which starts at the first use, have the bugs; those of servers
    before and after have not."""
    path = install(tmp_path_factory.mktemp("deadly") / "path")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path, prepend=os.pathsep)
        _stop_fork_server()
        yield
    _stop_fork_server()


def _stop_fork_server() -> None:
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # made for tests


@pytest.mark.parametrize("deadly", [KILLER, HANGER, GLUTTON], ids=["kills", "hangs", "eats"])
def test_what_ends_the_child_is_rejected_and_the_next_is_decoded(deadly: bytes) -> None:
    expected = decode_image(GOOD, 32)
    with ChildDecoder(QUICK) as decode:
        np.testing.assert_array_equal(decode(GOOD, 32), expected)
        with pytest.raises(RejectError, match="crashed_decoder"):
            decode(deadly, 32)
        np.testing.assert_array_equal(decode(GOOD, 32), expected)
        with pytest.raises(RejectError, match="truncated"):
            decode(GOOD[:300], 32)
    assert multiprocessing.active_children() == []


def test_a_good_image_outlives_a_child_that_something_else_killed() -> None:
    with ChildDecoder(ImageLimits()) as decode:
        decode(GOOD, 32)
        (child,) = multiprocessing.active_children()
        child.kill()
        np.testing.assert_array_equal(decode(GOOD, 32), decode_image(GOOD, 32))


def test_the_child_goes_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from dq_cluster.images.config import ImageLimits\n"
        "from dq_cluster.images.guard import ChildDecoder\n"
        "if __name__ == '__main__':\n"
        "    with ChildDecoder(ImageLimits()) as decode:\n"
        f"        decode({GOOD!r}, 32)\n"
        "        print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    child = Path("/proc") / done.stdout.strip()
    deadline = time.monotonic() + 240
    while child.exists():
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def test_where_no_child_can_start_no_image_is_to_blame(tmp_path: Path) -> None:
    script = tmp_path / "short.py"
    script.write_text(
        "import resource\n"
        "from dq_cluster.images.config import ImageLimits\n"
        "from dq_cluster.images.guard import ChildDecoder\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))\n"
        "    with ChildDecoder(ImageLimits()) as decode:\n"
        f"        decode({GOOD!r}, 32)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert "MemoryError: the process to decode images in did not start" in done.stderr


def test_a_hanging_image_ends_the_process_that_is_watched(tmp_path: Path) -> None:
    script = tmp_path / "watched.py"
    script.write_text(
        "import time\n"
        "from dq_cluster.images.config import ImageLimits\n"
        "from dq_cluster.images.guard import watched\n"
        "limits = ImageLimits(max_seconds=0.5)\n"
        "with watched(limits) as decode:\n"
        f"    decode({GOOD!r}, 32)\n"
        "time.sleep(2)\n"
        "print('not watched any more', flush=True)\n"
        "with watched(limits) as decode:\n"
        f"    decode({HANGER!r}, 32)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (1, "not watched any more\n")
    assert "Timeout (" in done.stderr
    assert "in decode_image" in done.stderr


def test_a_pool_serves_threads_and_ends_its_children() -> None:
    expected, pools = decode_image(GOOD, 32), [ChildDecoderPool(QUICK, 2)]

    def outcome(data: bytes) -> np.ndarray | str:
        try:
            return pools[0](data, 32)
        except RejectError as error:
            return error.reason.value

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(outcome, [GOOD, KILLER, GOOD, GOOD, KILLER, GOOD]))
    assert [n for n, each in enumerate(found) if isinstance(each, str)] == [1, 4]
    assert {found[1], found[4]} == {"crashed_decoder"}
    np.testing.assert_array_equal(found[5], expected)
    assert multiprocessing.active_children()
    pools.clear()
    gc.collect()
    assert multiprocessing.active_children() == []


def test_a_child_tells_what_is_wrong_beyond_the_reason() -> None:
    with ChildDecoder(ImageLimits()) as decode, pytest.raises(RejectError) as raised:
        decode(b"8BPS\0\1" + bytes(60), 32)
    assert raised.value.reason is Reason.UNSUPPORTED_FORMAT
    assert "PSD" in raised.value.detail
