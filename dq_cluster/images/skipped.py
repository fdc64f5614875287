"""The files that a source skips, counted, with advice what to do."""

from collections import Counter
from collections.abc import Iterator, Mapping

from dq_cluster.images.formats import INSTALL
from dq_cluster.images.names import RUN_FOLDER, suffix_of
from dq_cluster.storage import FileInfo, Storage

# Distinct kinds that are counted, and that are reported.
_MOST_KINDS = 1000
_TOLD_KINDS = 20
_OTHERS = "others"
NO_SUFFIX = "no suffix"


class Skipped:
    """Counts by kind: a suffix (`.txt`), or words (`hidden`, `broken link`).

    formats: how many of them are pictures of a format that is not read here. However many kinds
    there are, it stays small.
    """

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = _OTHERS
        self._kinds[kind] += 1

    def add_file(self, path: str) -> None:
        """A file that is left out for what its name, or its first bytes, say."""
        self.add(suffix_of(path) or NO_SUFFIX)

    def add_listed(self, path: str, why: str) -> None:
        """What a listing leaves out itself; to be given to `Storage.list`."""
        if not path.startswith(f"{RUN_FOLDER}/"):
            self.add(why)

    def take(self) -> dict[str, int]:
        """The kinds counted since the last call, most frequent first."""
        kinds = most_frequent(self._kinds)
        self._kinds.clear()
        return kinds


def most_frequent(kinds: Mapping[str, int]) -> dict[str, int]:
    """`kinds` with the most frequent first and the rare ones put together as `others`."""
    ranked = sorted(kinds.items(), key=lambda item: (item[0] == _OTHERS, -item[1], item[0]))
    reported = dict(ranked[:_TOLD_KINDS])
    rest = sum(count for _, count in ranked[_TOLD_KINDS:])
    if rest:
        reported[_OTHERS] = reported.get(_OTHERS, 0) + rest
    return reported


def skipped_text(kinds: Mapping[str, int], formats: Mapping[str, int]) -> str:
    """`3 skipped (.txt 2, .heic 1); 1 HEIC: pip install pillow-heif`; empty for none."""
    if not kinds:
        return ""
    listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
    text = f"{sum(kinds.values()):,} skipped ({listed})"
    for name, count in formats.items():
        text += f"; {count:,} {name}: {INSTALL.get(name, 'convert them to JPEG or PNG')}"
    return text


def list_named(storage: Storage, suffixes: tuple[str, ...], skipped: Skipped) -> Iterator[FileInfo]:
    """The files whose names end with one of `suffixes`, whatever the case; others are counted."""
    for info in storage.list(left_out=skipped.add_listed):
        if info.path.lower().endswith(suffixes):
            yield info
        else:
            skipped.add_file(info.path)
