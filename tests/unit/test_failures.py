"""What failed elsewhere, as the one line that its user reads."""

import importlib
import pickle
import pkgutil
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError, RaySystemError, RayTaskError

import dq_cluster
from dq_cluster.cluster.failures import error_in, plain, reason_in
from dq_cluster.errors import DqError, InputError, IntegrityError
from dq_cluster.images.decode import Reason, RejectError
from dq_cluster.serve.api import CoverageError


def raised(error: BaseException) -> RayTaskError:
    """As a task of Ray's hands it on."""
    return RayTaskError("work", f"Traceback\n{type(error).__name__}: {error}", error)


def test_an_error_of_ours_comes_through_every_wrapping() -> None:
    ours = InputError("row 5: the feature is not finite")
    assert plain(ours) is ours
    assert plain(raised(ours)) is ours
    assert plain(raised(ours).as_instanceof_cause()) is ours
    assert plain(raised(raised(ours).as_instanceof_cause())) is ours
    wrapped = ValueError("a library's")
    wrapped.__cause__ = raised(ours)
    assert plain(raised(wrapped)) is ours


def test_a_bug_is_named_and_its_stack_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = plain(raised(KeyError("cell")))
    assert type(found) is DqError
    (stack,) = tmp_path.iterdir()
    assert str(found) == f"a worker failed with KeyError: 'cell'; its stack is in {stack}"
    assert "KeyError: 'cell'" in stack.read_text()


def test_the_remote_text_is_believed_before_a_message_that_was_changed() -> None:
    text = "Traceback\n  File x\nFileNotFoundError: [Errno 2] No such file: '/x'"
    found = plain(RayTaskError("work", text, FileNotFoundError(2, "Failed to apply\nUDF")))
    assert str(found).startswith(
        "a worker failed with FileNotFoundError: [Errno 2] No such file: '/x'; its stack is in /"
    )
    found = plain(RayTaskError("work", "Traceback\n  File x\nAssertionError", AssertionError()))
    assert str(found).startswith("a worker failed with AssertionError: without a message; its")


def test_a_loss_is_what_ray_calls_it() -> None:
    found = plain(OutOfMemoryError("Task was killed due to the node running low on memory.\nMore."))
    assert str(found) == (
        "Ray reports OutOfMemoryError: Task was killed due to the node running low on memory."
    )


def test_an_actor_that_could_not_be_made_is_told_by_what_it_raised() -> None:
    account = (
        "The actor died because of an error raised in its creation task, ray::Proxy.__init__()\n"
        'Traceback (most recent call last):\n  File "proxy.py", line 7, in __init__\n'
        "RuntimeError: Failed to bind to address 0.0.0.0:80"
    )
    found = str(plain(RaySystemError(account)))
    assert found == "Ray reports RaySystemError: RuntimeError: Failed to bind to address 0.0.0.0:80"


def test_an_error_is_found_in_a_stack_that_came_as_text() -> None:
    text = (
        "The deployment failed to start 3 times in a row.\nTraceback (most recent call last):\n"
        '  File "replica.py", line 56, in __init__\n'
        "dq_cluster.errors.IntegrityError: shard 0 refused version 1: codes disagree\n"
    )
    found = error_in(text)
    assert type(found) is IntegrityError
    assert str(found) == "shard 0 refused version 1: codes disagree"
    assert error_in("dq_cluster.errors.NoSuchError: x") is None
    assert error_in("") is None
    assert error_in(f"{text}\nDuring handling of it another occurred:\nKeyError: 'cell'") is None
    assert reason_in(text.replace("dq_cluster.errors.Integrity", "Value")) == (
        "ValueError: shard 0 refused version 1: codes disagree"
    )
    assert reason_in("only this\nand more") == "only this"
    assert reason_in("") == "no reason given"


def test_every_error_survives_the_way_between_processes() -> None:
    for module in pkgutil.walk_packages(dq_cluster.__path__, "dq_cluster."):
        importlib.import_module(module.name)
    kinds, waiting = set(), [DqError]
    while waiting:
        kind = waiting.pop()
        if kind.__module__.startswith("dq_cluster."):  # Ray makes classes of its own of them
            kinds.add(kind)
        waiting += kind.__subclasses__()
    assert len(kinds) >= 12
    others = {RejectError: (Reason.CORRUPT,), CoverageError: ("too little", None)}
    for kind in kinds:
        error = kind(*others.get(kind, ("what, with the numbers",)))
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (kind, str(error))
