"""A run that an older version began goes on, though its locations were kept as they were typed."""

from pathlib import Path
from typing import Any

import pytest

from dq_cluster.encode.config import EncodeSettings, FeaturizeSettings
from dq_cluster.encode.plan import make_plan
from dq_cluster.encode.planning import continue_or_plan
from dq_cluster.encode.run import _default_name, _digest
from dq_cluster.errors import ConfigError
from dq_cluster.images.units import Unit
from dq_cluster.index.catalog import Index
from dq_cluster.storage import Storage


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


def request_of(settings: FeaturizeSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", include={"source", "backbone", "fragment_rows"})


def settings_of(uri: str = "photos", path: str = "tiny.onnx") -> FeaturizeSettings:
    return FeaturizeSettings.model_validate(
        {
            "source": {"kind": "folder", "uri": uri},
            "output": "out",
            "backbone": {"kind": "onnx", "path": path},
        }
    )


@pytest.mark.parametrize("typed", ["photos", "photos/", "./photos", "{here}/photos"])
def test_a_stored_relative_location_is_of_the_folder_the_command_runs_in(
    typed: str, here: Path
) -> None:
    settings = settings_of()
    stored = request_of(settings)
    stored["source"]["uri"] = typed.format(here=here)
    stored["backbone"]["path"] = "tiny.onnx"
    del stored["source"]["limits"]  # as if that setting were newer than the run
    storage = Storage("out")
    plan = make_plan(storage, ".run", [Unit("a.jpg")], fragment_rows=8, request=stored)
    again = continue_or_plan(
        storage, ".run", settings.source, fragment_rows=8, request=request_of(settings)
    )
    assert again == plan


def test_another_location_is_another_request() -> None:
    storage, settings = Storage("out"), settings_of()
    make_plan(storage, ".run", [Unit("a.jpg")], fragment_rows=8, request=request_of(settings))
    for other in (settings_of("pictures"), settings_of(path="other.onnx")):
        with pytest.raises(ConfigError, match="begun with another"):
            continue_or_plan(
                storage, ".run", other.source, fragment_rows=8, request=request_of(other)
            )


@pytest.mark.parametrize("typed", ["photos", "photos/", "{here}/photos/", "{here}/photos"])
def test_a_run_without_a_name_is_found_under_its_older_digest(typed: str, here: Path) -> None:
    index = Index.at("index")
    settings = EncodeSettings.model_validate(
        {"index": "index", "model": "m", "source": {"kind": "folder", "uri": "photos"}}
    )
    request = settings.model_dump(mode="json", include={"source", "append", "fragment_rows"})
    stored = request | {"source": request["source"] | {"uri": typed.format(here=here)}}
    assert _default_name(index, request) == _digest(request)
    index.storage.write(f"runs/{_digest(stored)}/published", b"1")
    assert _default_name(index, request) == _digest(stored)
