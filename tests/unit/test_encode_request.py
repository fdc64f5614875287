"""A run that an older version began goes on, though its locations were kept as they were typed."""

from pathlib import Path
from typing import Any

import pytest

from dq_cluster.encoding.config import EncodeSettings, FeaturizeSettings
from dq_cluster.encoding.request import EncodeRequest, FeaturizeRequest
from dq_cluster.encoding.run import _name
from dq_cluster.errors import ConfigError
from dq_cluster.index.catalog import Index
from dq_cluster.run import Run
from dq_cluster.storage import Storage


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


def request_of(uri: str = "photos", path: str = "tiny.onnx") -> FeaturizeRequest:
    settings = FeaturizeSettings.model_validate(
        {
            "source": {"kind": "folder", "uri": uri},
            "output": "out",
            "backbone": {"kind": "onnx", "path": path},
        }
    )
    asked = settings.model_dump(include={"source", "backbone", "views", "fragment_rows"})
    return FeaturizeRequest.model_validate(asked)


@pytest.mark.parametrize("typed", ["photos", "photos/", "./photos", "{here}/photos"])
def test_a_stored_relative_location_is_of_the_folder_the_command_runs_in(
    typed: str, here: Path
) -> None:
    stored: dict[str, Any] = request_of().model_dump(mode="json")
    stored["source"]["uri"] = typed.format(here=here)
    stored["backbone"]["path"] = "tiny.onnx"
    del stored["source"]["limits"]  # as if that setting were newer than the run
    Run(Storage("out/.run")).claim(request_of(), stored)


def test_another_location_is_another_request() -> None:
    run = Run(Storage("out/.run"))
    run.claim(request_of())
    for other in (request_of("pictures"), request_of(path="other.onnx")):
        with pytest.raises(ConfigError, match="was begun with"):
            run.claim(other)


@pytest.mark.parametrize("typed", ["photos", "photos/", "{here}/photos/", "{here}/photos"])
def test_a_run_without_a_name_is_found_under_its_older_digest(typed: str, here: Path) -> None:
    index = Index.at("index")
    settings = EncodeSettings.model_validate(
        {"index": "index", "model": "m", "source": {"kind": "folder", "uri": "photos"}}
    )
    request = EncodeRequest(source=settings.source, append=False, fragment_rows=8, model="m")
    assert _name(index, request) == request.names()[0]
    older = request._digest(typed.format(here=here))
    index.storage.write(f"runs/{older}/published", b"1")
    assert _name(index, request) == older
