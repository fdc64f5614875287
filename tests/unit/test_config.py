"""Settings: a wrong key, value, or file is one line that says what and where."""

from pathlib import Path

import pytest

from dq_cluster.config import Settings, load_settings
from dq_cluster.errors import ConfigError


class Inner(Settings):
    bits: int = 8


class Outer(Settings):
    index: str
    inner: Inner = Inner()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "index: /a\ninner: {bits: 16}\n")
    loaded = load_settings(Outer, path, ["inner.bits=32"])
    assert loaded == Outer(index="/a", inner=Inner(bits=32))


def test_overrides_alone() -> None:
    assert load_settings(Outer, None, ["index=s3://b/i"]).index == "s3://b/i"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("index: /a\nindx: 1\n", [], r"unknown key 'indx' \(known: index, inner\)"),
        ("index: /a\ninner: {bit: 1}\n", [], r"unknown key 'inner.bit' \(known: bits\)"),
        ("index: /a\n", ["inner.bits=many"], r"'inner.bits'.*integer.*'many'"),
        ("inner: {bits: 8}\n", [], "'index' is required"),
        ("- a list\n", [], "mapping|list"),
        ("index: [unclosed\n", [], "settings.yaml"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(Outer, write(tmp_path, text), overrides)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings(Outer, tmp_path / "absent.yaml")
