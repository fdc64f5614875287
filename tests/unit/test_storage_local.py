"""Atomic writes on file systems that lack something, and among processes that race or die."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dq_cluster.errors import StorageError
from dq_cluster.storage import Storage
from dq_cluster.storage.local import locked

# What a file system lacks, as a library that is loaded before the C library.
_LACKS = {
    "links": """
        int link(const char *a, const char *b) { errno = EPERM; return -1; }
        int linkat(int a, const char *b, int c, const char *d, int e) { errno = EPERM; return -1; }
    """,
    "flock": "int flock(int a, int b) { errno = ENOSYS; return -1; }",
    "ranges": """
        static int answer(int fd, int command, long argument) {
            if (command == 37) { errno = ENOLCK; return -1; }  /* F_OFD_SETLK */
            return syscall(SYS_fcntl, fd, command, argument);
        }
        int fcntl(int fd, int command, ...) {
            va_list more; va_start(more, command); return answer(fd, command, va_arg(more, long));
        }
        int fcntl64(int fd, int command, ...) {
            va_list more; va_start(more, command); return answer(fd, command, va_arg(more, long));
        }
    """,
    "fsync": "int fsync(int a) { errno = EINVAL; return -1; }",
    "chmod": """
        int chmod(const char *a, mode_t b) { errno = EPERM; return -1; }
        int fchmod(int a, mode_t b) { errno = EPERM; return -1; }
        int fchmodat(int a, const char *b, mode_t c, int d) { errno = EPERM; return -1; }
    """,
    # Not what it lacks: the process dies in the moment before its file appears.
    "mercy": """
        int rename(const char *a, const char *b) { raise(SIGKILL); return -1; }
        int renameat(int a, const char *b, int c, const char *d) { raise(SIGKILL); return -1; }
    """,
    "disk": "int fsync(int a) { errno = EIO; return -1; }",
}
_HEADERS = (
    "#define _GNU_SOURCE\n#include <errno.h>\n#include <signal.h>\n#include <stdarg.h>\n"
    "#include <sys/stat.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n"
)

_CREATE = """
for number in range(40):
    data = f"{os.getpid()} ".encode() * 20_000
    if storage.create(f"n/{number}", data):
        print(number)
    # Whoever won: what is there is whole, and stays.
    assert len(set(storage.read(f"n/{number}").split())) == 1
"""
_COUNT = """
for _ in range(25):
    while True:
        seen = storage.read("counter")
        if storage.replace("counter", str(int(seen) + 1).encode(), seen):
            break
"""
_ONCE = """
try:
    print(storage.create("once", b"me"), storage.replace("old", b"new", b"old"))
except StorageError as error:
    print("failed", error)
except StorageRefusedError as error:
    print("refused", error)
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    for name, code in _LACKS.items():
        (folder / f"{name}.c").write_text(_HEADERS + code)
        library = str(folder / f"{name}.so")
        command = [compiler, "-shared", "-fPIC", "-o", library, str(folder / f"{name}.c")]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def start(code: str, store: Path, libraries: Path, lacks: str) -> subprocess.Popen[str]:
    """`code` in a process of its own, which waits for the file `go`; lacks: names, by commas."""
    preload = ":".join(str(libraries / f"{name}.so") for name in lacks.split(",") if name)
    head = (
        "import os, sys, time\n"
        "from dq_cluster.errors import StorageError, StorageRefusedError\n"
        "from dq_cluster.storage import Storage\n"
        "storage = Storage(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "while not os.path.exists(sys.argv[1] + '/go'): time.sleep(0.001)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code, str(store)],
        env=os.environ | {"LD_PRELOAD": preload, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def race(processes: list[subprocess.Popen[str]], store: Path) -> list[list[str]]:
    """The lines that each printed, once all were let go together."""
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    (store / "go").touch()
    printed = []
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err[-2000:]
        printed.append(out.splitlines())
    return printed


def run(code: str, store: Path, libraries: Path, lacks: str) -> str:
    (store / "old").write_bytes(b"old")
    (store / "go").unlink(missing_ok=True)  # what is printed with the first line would be lost
    return race([start(code, store, libraries, lacks)], store)[0][0]


@pytest.mark.parametrize("lacks", ["", "links", "links,flock", "links,chmod,fsync"])
def test_one_of_many_processes_creates(tmp_path: Path, libraries: Path, lacks: str) -> None:
    won = race([start(_CREATE, tmp_path, libraries, lacks) for _ in range(4)], tmp_path)
    assert sorted(int(line) for lines in won for line in lines) == list(range(40))
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize("lacks", ["", "flock"])
def test_no_replacement_is_lost_among_processes(
    tmp_path: Path, libraries: Path, lacks: str
) -> None:
    (tmp_path / "counter").write_bytes(b"0")
    race([start(_COUNT, tmp_path, libraries, lacks) for _ in range(4)], tmp_path)
    assert (tmp_path / "counter").read_bytes() == b"100"


@pytest.mark.parametrize("lacks", ["links", "flock", "links,flock", "fsync", "chmod", "ranges"])
def test_a_file_system_that_lacks_something(tmp_path: Path, libraries: Path, lacks: str) -> None:
    assert run(_ONCE, tmp_path, libraries, lacks) == "True True"
    assert (tmp_path / "once").read_bytes() == b"me"
    assert (tmp_path / "once").stat().st_mode & 0o444 == 0o444
    assert [info.path for info in Storage(str(tmp_path)).list()] == ["go", "old", "once"]


@pytest.mark.parametrize(
    ("lacks", "code"),
    [
        ("links,flock,ranges", 'storage.create("once", b"me")'),
        ("flock,ranges", 'storage.replace("old", b"new", b"old")'),
        ("flock,ranges", "storage.check_replace()"),
    ],
)
def test_without_any_lock_nothing_is_risked(
    tmp_path: Path, libraries: Path, lacks: str, code: str
) -> None:
    call = 'storage.create("once", b"me"), storage.replace("old", b"new", b"old")'
    said = run(_ONCE.replace(call, code), tmp_path, libraries, lacks)
    assert f"the file system of {tmp_path} has no file locks (No locks available)" in said
    assert said.startswith("refused ")
    assert "mount it with them" in said
    assert not (tmp_path / "once").exists()
    assert not list(tmp_path.rglob(".partial-*"))


def test_a_disk_that_fails_is_no_file_system_without_fsync(tmp_path: Path, libraries: Path) -> None:
    assert "Input/output error; the disk" in run(_ONCE, tmp_path, libraries, "disk")
    assert not (tmp_path / "once").exists()


@pytest.mark.parametrize("code", ['storage.create("x", b"1")', 'storage.replace("old", b"1", b"")'])
def test_a_process_killed_before_its_file_appears_holds_up_nobody(
    tmp_path: Path, libraries: Path, code: str
) -> None:
    (tmp_path / "old").write_bytes(b"")
    (tmp_path / "go").touch()
    dying = start(code, tmp_path, libraries, "links,mercy")
    dying.communicate(timeout=240)
    assert dying.returncode == -9
    assert list(tmp_path.glob(".partial-*"))
    storage = Storage(str(tmp_path))
    assert run('print(storage.create("x", b"2"))', tmp_path, libraries, "links") == "True"
    assert storage.read("x") == b"2"
    assert storage.replace("old", b"3", b"old")


def test_waiting_for_a_lock_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    waiting = locked(path, patience=0.05)
    with locked(path), pytest.raises(StorageError, match=f"{path} was locked by another process"):
        waiting.__enter__()
    with locked(path, patience=0):
        pass


def test_files_get_the_mode_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Storage(str(tmp_path)).write("x", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
