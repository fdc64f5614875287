"""The settings of the workloads: the files that ship are valid, and locations are locations."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import AfterValidator

from dq_cluster.config import Location, LocationPrefix, Settings, load_settings
from dq_cluster.encoding.config import EncodeSettings, FeaturizeSettings
from dq_cluster.evaluate.config import AblationSettings, CompareSettings, EvaluateSettings
from dq_cluster.index.sizing import SizingRequest
from dq_cluster.serve.config import ServeSettings
from dq_cluster.training.config import TrainSettings

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS: dict[str, type[Settings]] = {
    "featurize": FeaturizeSettings,
    "train": TrainSettings,
    "encode": EncodeSettings,
    "serve": ServeSettings,
    "evaluate": EvaluateSettings,
}


@pytest.mark.parametrize("size", ["laptop", "cluster"])
@pytest.mark.parametrize("workload", KINDS)
def test_shipped_configuration(size: str, workload: str) -> None:
    # The model is the one thing that a file cannot know.
    overrides = ["model=abc"] if workload == "encode" else []
    load_settings(KINDS[workload], CONFIGS / size / f"{workload}.yaml", overrides)


def test_there_are_no_others() -> None:
    assert {path.stem for path in CONFIGS.rglob("*.yaml")} == set(KINDS)


# What a setting is called that says where something lies.
PLACE = re.compile(
    r"(.*_)?(uri|url|path|file|folder|dir|index|features|output|storage|database|queries|report|"
    r"allow|cache|checkpoints?|weights|tokenizer|texts)"
)


def fields(kind: type[Settings], seen: set[type]) -> Iterator[tuple[str, Any]]:
    """Every setting of a class and of the classes within it, and its type with annotations."""
    seen.add(kind)
    for name, field in kind.model_fields.items():
        yield f"{kind.__name__}.{name}", (field.annotation, *field.metadata)
        for inner in parts(field.annotation):
            if isinstance(inner, type) and issubclass(inner, Settings) and inner not in seen:
                yield from fields(inner, seen)


def parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from parts(inner)


def text_in(types: tuple[Any, ...]) -> bool:
    return any(part is str for each in types for part in parts(each))


def located(types: tuple[Any, ...]) -> bool:
    marks = [mark for kind in (Location, LocationPrefix) for mark in get_args(kind)[1:]]
    found = [part for each in types for part in parts(each)]
    found += [mark for part in found for mark in getattr(part, "__metadata__", ())]
    return any(mark in marks for mark in found if isinstance(mark, AfterValidator))


def test_every_setting_that_names_a_place_is_a_location() -> None:
    seen: set[type] = set()
    kinds: list[type[Settings]] = [
        *KINDS.values(),
        CompareSettings,
        AblationSettings,
        SizingRequest,
    ]
    every = {name: types for kind in kinds for name, types in fields(kind, seen)}
    places = {
        name
        for name, types in every.items()
        if PLACE.fullmatch(name.partition(".")[2]) and text_in(types)
    }
    assert {"SourceSettings.uri", "BackboneSettings.path", "SourceSettings.allow"} <= places
    assert not sorted(name for name in places if not located(every[name]))
    # The other way round: nothing else is one, so that a new name is added to the pattern.
    assert {name for name, types in every.items() if located(types)} == places


def test_relative_places_are_of_the_folder_the_command_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path.resolve()
    settings = load_settings(
        EncodeSettings,
        None,
        ["index=i", "model=0012", "source.kind=inventory", "source.uri=Album #2"]
        + ["source.allow=[photos/,s3://b/]", "run=20240101"],
    )
    assert settings.index == f"{here}/i"
    assert settings.source.uri == f"{here}/Album #2"
    assert settings.source.allow == (f"{here}/photos/", "s3://b/")
    assert (settings.model, settings.run) == ("0012", "20240101")
    train = load_settings(TrainSettings, None, ["index=i/", "features=f", "storage=~/s"])
    assert train.run_uri == str(Path.home() / "s")
    assert TrainSettings(index="i", features="f").run_uri == f"{here}/i/runs/train/train"
