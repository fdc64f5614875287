"""What a signal does to a command, in processes of their own."""

import signal
import subprocess
import sys
import textwrap
from subprocess import PIPE

import pytest

BOUND_S = 30  # for a loaded machine; each takes a second


def command(body: str) -> subprocess.Popen[str]:
    """A process whose `work` is `body`; it has printed "ready" when this returns."""
    code = "import sys, time\nfrom dq_cluster.cli import signals\ndef work():\n"
    code += textwrap.indent(textwrap.dedent(body), "    ")
    code += "\nsys.exit(signals.run_until_signal(work))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


WAIT = "print('ready', flush=True)\nwhile True: time.sleep(60)"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_closes_what_was_opened(number: signal.Signals, status: int) -> None:
    body = f"try:\n{textwrap.indent(WAIT, '    ')}\nfinally: print('closed', flush=True)"
    process = command(body)
    process.send_signal(number)
    out, err = process.communicate(timeout=BOUND_S)
    assert (process.returncode, out) == (status, "closed\n")
    assert err == f"{number.name}: stopping; once more ends at once\n"


CLOSES = f"""
try:
{textwrap.indent(WAIT, "    ")}
finally:
    print("closing", flush=True)
    sys.stdin.readline()
    print("closed", flush=True)
"""


def test_the_second_signal_ends_at_once() -> None:
    process = command("signals._ONE_KEYSTROKE_S = 0\n" + CLOSES)
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "closing\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(BOUND_S) == 143


def test_closing_that_takes_too_long_is_cut_short() -> None:
    process = command("signals.GRACE_S = 0.1\n" + CLOSES)
    process.send_signal(signal.SIGTERM)
    assert process.wait(BOUND_S) == 143


def test_one_keystroke_that_arrives_twice_is_one() -> None:
    process = command("signals._ONE_KEYSTROKE_S = 3600\n" + CLOSES)
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "closing\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate("go on\n", timeout=BOUND_S)
    assert (process.returncode, out) == (130, "closed\n")


def test_work_that_takes_a_signal_for_its_end_has_succeeded() -> None:
    process = command(
        """
        import signal, threading
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        print("ready", flush=True)
        stop.wait()
        return 0
        """
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(BOUND_S) == 0


def test_a_failure_that_a_signal_caused_has_its_status() -> None:
    process = command(f"try:\n{textwrap.indent(WAIT, '    ')}\nexcept BaseException: return 1")
    process.send_signal(signal.SIGINT)
    assert process.wait(BOUND_S) == 130
