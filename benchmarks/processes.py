"""Memory of this process' descendants, from /proc: Serve's replicas among them."""

from pathlib import Path

_FIELDS = {"RssAnon": "anonymous", "RssFile": "file", "RssShmem": "shared", "VmHWM": "peak"}


def descendants(root: int) -> list[int]:
    """Process ids below `root`, and `root` itself."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # gone since it was listed
                continue
            # The name, in brackets, may hold spaces.
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def memory(pid: int) -> dict[str, float]:
    """Megabytes (10⁶) resident in a process: `rss`, and its parts; `peak` is of `rss`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    found = {ours: int(values[name].split()[0]) * 1024 / 1e6 for name, ours in _FIELDS.items()}
    return found | {"rss": found["anonymous"] + found["file"] + found["shared"]}


def replicas(root: int) -> dict[str, int]:
    """Process ids of the Serve replicas below `root`, by the name of their deployment."""
    found = {}
    for pid in descendants(root):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if title.startswith("ray::ServeReplica:"):
            name = title.split(":")[4].partition(".")[0].strip("\0")
            found[name if name not in found else f"{name} ({pid})"] = pid
    return found
