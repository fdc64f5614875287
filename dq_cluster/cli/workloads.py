"""The workloads, `featurize` to `serve`: a settings file and overrides for each.

`python jobs/<workload>.py` runs exactly these commands.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dq_cluster.cli.config_commands import find_config
from dq_cluster.cli.output import emit, results_only
from dq_cluster.config import load_settings
from dq_cluster.errors import ConfigError
from dq_cluster.location import absolute

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file with the workload's settings, or one that `config list` names.",
        callback=lambda path: path and find_config(path),
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of settings: key.sub=value."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the workloads to `app`."""
    for command in (
        build,
        add,
        featurize,
        train,
        encode,
        evaluate,
        neighbours,
        duplicates,
        groups,
        serve,
    ):
        app.command()(command)


Pile = Annotated[
    str | None,
    typer.Argument(metavar="PILE", help="Folder or s3:// prefix of pictures, Parquet, or tars."),
]
IndexPlace = Annotated[
    str | None, typer.Argument(metavar="INDEX", help="The index: a folder or s3:// prefix.")
]


def build(
    pile: Pile = None,
    index: IndexPlace = None,
    overrides: Overrides = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make an index of a pile of images: features, training, codes, quality. Continues a build.

    With --config FILE, the file names pile and index.
    """
    from dq_cluster.building.config import BuildSettings
    from dq_cluster.building.run import build

    settings = load_settings(BuildSettings, config, _of_pile(config, pile, index, overrides or ()))
    _run(lambda: build(settings), json)


def add(
    pile: Pile = None,
    index: IndexPlace = None,
    overrides: Overrides = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Append to an index the images of a pile whose ids it does not have.

    With --config FILE, the file names pile and index.
    """
    from dq_cluster.building.config import AddSettings
    from dq_cluster.building.run import add

    settings = load_settings(AddSettings, config, _of_pile(config, pile, index, overrides or ()))
    _run(lambda: add(settings), json)


def _of_pile(
    config: Path | None, pile: str | None, index: str | None, overrides: Sequence[str]
) -> list[str]:
    """The words of a command as overrides: pile and index come first, unless a file has them.

    The kind of the pile is found out unless it is given.
    """
    from dq_cluster.images.kinds import kind_of

    if config is not None:
        return [word for word in (pile, index, *overrides) if word is not None]
    if pile is None or index is None:
        raise ConfigError("expected PILE and INDEX, or --config FILE")
    given = any(text.startswith("source.kind=") for text in overrides)
    kind = [] if given else [f"source.kind={kind_of(absolute(pile))}"]
    return [f"source.uri={pile}", f"index={index}", *kind, *overrides]


def featurize(config: Config = None, overrides: Overrides = None, json: Json = False) -> None:
    """Turn images into backbone features (Ray Data)."""
    from dq_cluster.encoding.config import FeaturizeSettings
    from dq_cluster.encoding.featurize import featurize

    settings = load_settings(FeaturizeSettings, config, overrides or ())
    _run(lambda: featurize(settings), json)


def train(config: Config = None, overrides: Overrides = None, json: Json = False) -> None:
    """Train DeepQuan on features and publish the model (Ray Train)."""
    from dq_cluster.building.pixels import train_from
    from dq_cluster.training.config import TrainSettings

    settings = load_settings(TrainSettings, config, overrides or ())
    _run(lambda: train_from(settings), json)


def encode(config: Config = None, overrides: Overrides = None, json: Json = False) -> None:
    """Encode images or features into a new version of the index (Ray Data)."""
    from dq_cluster.encoding.config import EncodeSettings
    from dq_cluster.encoding.run import encode

    settings = load_settings(EncodeSettings, config, overrides or ())
    _run(lambda: encode(settings), json)


def evaluate(
    config: Config = None,
    overrides: Overrides = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Compare DeepQuan with classical quantizers on features."),
    ] = False,
    ablations: Annotated[
        bool,
        typer.Option(
            "--ablations", help="Compare DeepQuan with itself without one part at a time."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Measure a version, or compare DeepQuan with classical quantizers."""
    if compare or ablations:
        from dq_cluster.evaluate.comparison import run_comparison
        from dq_cluster.evaluate.config import AblationSettings, CompareSettings

        kind = AblationSettings if ablations else CompareSettings
        emit(run_comparison(load_settings(kind, config, overrides or ())), as_json=json)
        return
    from dq_cluster.evaluate.config import EvaluateSettings
    from dq_cluster.evaluate.version import evaluate_version

    settings = load_settings(EvaluateSettings, config, overrides or ())
    emit(evaluate_version(settings), as_json=json)


def neighbours(config: Config = None, overrides: Overrides = None, json: Json = False) -> None:
    """Find the nearest codes of every image of a version, or of a set of features (Ray Data)."""
    from dq_cluster.knn.config import NeighboursSettings
    from dq_cluster.knn.run import neighbours

    settings = load_settings(NeighboursSettings, config, overrides or ())
    _run(lambda: neighbours(settings), json)


def duplicates(config: Config = None, overrides: Overrides = None, json: Json = False) -> None:
    """Find groups of near-duplicates in a version, and delete all but one of each if asked."""
    from dq_cluster.knn.config import DuplicatesSettings
    from dq_cluster.knn.duplicates import duplicates

    settings = load_settings(DuplicatesSettings, config, overrides or ())
    _run(lambda: duplicates(settings), json)


def groups(config: Config = None, overrides: Overrides = None, json: Json = False) -> None:
    """Show what is in a version: its cells as coarse groups, with sizes and samples."""
    from dq_cluster.knn.cells import groups
    from dq_cluster.knn.config import GroupsSettings

    settings = load_settings(GroupsSettings, config, overrides or ())
    emit(groups(settings), as_json=json)


def serve(config: Config = None, overrides: Overrides = None, json: Json = False) -> None:
    """Serve the query API and the web page until interrupted (Ray Serve).

    `serve my-index` needs no settings file; `serve --config FILE key=value` names all settings.
    """
    from dq_cluster.cluster import ray_cluster
    from dq_cluster.index.catalog import Index
    from dq_cluster.serve.config import ServeSettings
    from dq_cluster.serve.run import fast_serve, serve_forever

    settings = load_settings(ServeSettings, *_of_index(config, overrides or ()))
    Index.at(settings.index).manifest(settings.version)  # before anything is started
    fast_serve()
    with results_only() as stdout, ray_cluster():
        serve_forever(settings, on_ready=lambda ready: emit(ready, as_json=json, file=stdout))


def _of_index(config: Path | None, overrides: Sequence[str]) -> tuple[Path | None, Sequence[str]]:
    """`INDEX key=value …` as settings; those of a laptop, unless there is a file."""
    key, equals, _ = overrides[0].partition("=") if overrides else ("", "=", "")
    if equals and "/" not in key:  # no setting has a slash in its name
        return config, overrides
    index, *others = overrides
    return config or find_config(Path("laptop/serve")), [f"index={index}", *others]


def _run(workload: Callable[[], Any], as_json: bool) -> None:
    from dq_cluster.cluster import ray_cluster

    with results_only(), ray_cluster():
        result = workload()
    emit(result, as_json=as_json)
