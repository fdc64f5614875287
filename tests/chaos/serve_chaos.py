"""What chaos tests of a service need: clients that ask all the time, and its processes."""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

TIMEOUT_MS = 60_000  # of a query; none takes a tenth of it, however busy the machine


@dataclass
class Load:
    """Clients that ask one after the other until stopped, and everything they were told."""

    url: str
    clients: int = 3
    answers: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._http = httpx.Client(base_url=self.url, timeout=2 * TIMEOUT_MS / 1e3)
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def _ask(self) -> None:
        while not self._stop.is_set():
            status, text = self.ask()
            if status == 200:
                self.answers.append(json.loads(text))
            else:
                self.errors.append(f"{status} {text}")

    def ask(self) -> tuple[int, str]:
        """Ask once: the status, and the answer as JSON or what went wrong."""
        try:
            question = {"embedding": [0.25] * 16, "k": 20}
            answer = self._http.post("/v1/search", json=question)
        except httpx.HTTPError as error:
            return 0, repr(error)
        return answer.status_code, answer.text

    def wait_for(self, more: int) -> None:
        """Until `more` further questions are answered."""
        start = len(self.answers)
        until(lambda: len(self.answers) + len(self.errors) >= start + more)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._http.close()


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def replicas_of(deployment: str) -> list[int]:
    """Process ids of a deployment's replicas, of this test session's Ray only."""
    running = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    titles = {int(folder.name): _title(folder) for folder in running}
    return [
        pid
        for pid, title in titles.items()
        if title.startswith("ray::ServeReplica") and f":{deployment}" in title and _descends(pid)
    ]


def _title(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") + " "
    except OSError:
        return ""


def _descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def assert_unmixed(answers: list[dict[str, Any]]) -> None:
    """Every answer holds ids of the version that it names, and of no other."""
    for answer in answers:
        versions = {1 + hit["id"] // 1_000_000 for hits in answer["hits"] for hit in hits}
        assert versions == {answer["version"]}
        assert answer["coverage"] == 1
