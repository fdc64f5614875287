"""`dq-cluster index …`: inspect an index, verify it, move between versions, clean up."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dq_cluster.cli.output import emit
from dq_cluster.errors import ConfigError, InputError, NotFoundError

if TYPE_CHECKING:
    from dq_cluster.index.catalog import Index

_MAX_HOURS = 1_000_000

app = typer.Typer(help="Manage the versions of an index: list, verify, roll back, clean up.")

Uri = Annotated[str, typer.Argument(help="The index: a folder or s3:// URI.")]
Version = Annotated[int | None, typer.Option("--version", help="Default: the current version.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def _open(uri: str) -> "Index":
    # Imported here, as every command does: the client's installation has this module, and no more.
    from dq_cluster.index.catalog import Index

    return Index.at(uri)


@app.command("list")
def list_versions(index: Uri, json: Json = False) -> None:
    """List the versions, oldest first."""
    catalog = _open(index)
    current = catalog.current()
    rows = []
    for number in catalog.versions():
        manifest = catalog.manifest(number)
        rows.append(
            {
                "version": number,
                "current": number == current,
                "created": manifest.created.isoformat(timespec="seconds"),
                "rows": manifest.rows - manifest.deleted,
                "rejected": manifest.rejected,
                "files": len(manifest.files),
                "model": manifest.model[:12],
            }
        )
    strays = catalog.strays()
    emit(
        {"index": catalog.storage.uri, "current": current, "versions": rows}
        | ({"ignored": strays} if strays else {}),
        as_json=json,
    )


@app.command()
def export(
    index: Uri,
    output: Annotated[
        str | None,
        typer.Argument(help="A folder or s3:// prefix for the files. Default: INDEX-faiss."),
    ] = None,
    to: Annotated[Literal["faiss"], typer.Option(help="What to write.")] = "faiss",
    shards: Annotated[int, typer.Option(min=1, help="Files to divide the version into.")] = 1,
    version: Version = None,
    json: Json = False,
) -> None:
    """Write a version as faiss indexes, with the ids of their rows as Parquet.

    The index itself is Parquet already.
    """
    from dq_cluster.search.export import export_faiss

    output = output or f"{index.rstrip('/')}-{to}"
    emit(export_faiss(_open(index), output, version=version, shards=shards), as_json=json)


@app.command()
def show(index: Uri, version: Version = None, json: Json = False) -> None:
    """Show one version: its model, codes, size, rejects, and measured quality."""
    from dq_cluster.index.models import read_card

    catalog = _open(index)
    manifest = catalog.manifest(version)
    card = read_card(catalog.storage, manifest.model)
    size = sum(file.size for file in manifest.files)
    emit(
        {
            "version": manifest.version,
            "parent": manifest.parent,
            "created": manifest.created.isoformat(timespec="seconds"),
            "model": manifest.model,
            "geometry": manifest.geometry.model_dump(),
            "rows": manifest.rows,
            "deleted": manifest.deleted,
            "rejected": manifest.rejected,
            "files": len(manifest.files),
            "bytes": size,
            "bytes_per_image": size / manifest.rows if manifest.rows else 0.0,
            "columns": list(manifest.columns),
            "evaluation": manifest.evaluation,
            "training": card.training,
            "producer": manifest.producer.model_dump(),
        },
        as_json=json,
    )


@app.command()
def rollback(
    index: Uri,
    version: Annotated[
        int | None, typer.Argument(help="Default: the parent of the current version.")
    ] = None,
    json: Json = False,
) -> None:
    """Make an existing version the current one."""
    catalog = _open(index)
    if version is None:
        current = catalog.manifest()
        if current.parent is None:
            raise NotFoundError(f"version {current.version} has no parent; name a version")
        version = current.parent
    manifest = catalog.rollback(version)
    emit({"index": catalog.storage.uri, "current": manifest.version}, as_json=json)


@app.command()
def verify(
    index: Uri,
    version: Version = None,
    ids: Annotated[bool, typer.Option("--ids", help="Also look for duplicate ids.")] = False,
    json: Json = False,
) -> None:
    """Hash every file of a version and report problems; exit status 1 if there are any."""
    from dq_cluster.index.verify import verify

    report = verify(_open(index), version, ids=ids)
    emit(report, as_json=json)
    if report.problems:
        raise typer.Exit(1)


# An argument such as -5 is an id, not an option.
@app.command(context_settings={"ignore_unknown_options": True})
def delete(
    index: Uri,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of the images to delete.", show_default=False)
    ] = None,
    ids_file: Annotated[
        str | None,
        typer.Option(help="File of ids: Parquet, or text with one id per line; -: stdin."),
    ] = None,
    ids_column: Annotated[str, typer.Option(help="Column of a Parquet file of ids.")] = "id",
    json: Json = False,
) -> None:
    """Publish a version without some images; compacting removes their codes from the files."""
    from dq_cluster.cli.ids_file import read_ids
    from dq_cluster.index.ids import to_ids
    from dq_cluster.index.tombstones import delete_ids

    if bool(ids) == (ids_file is not None):
        raise ConfigError("say which images to delete: either ids or --ids-file FILE")
    catalog = _open(index)
    id_type = catalog.manifest().id_type
    deleted = to_ids(ids if ids_file is None else read_ids(ids_file, ids_column), id_type)
    if not len(deleted):
        raise InputError(f"ids file {ids_file} holds no ids")
    manifest = delete_ids(catalog, deleted)
    emit(
        {"version": manifest.version, "ids": len(deleted), "deleted": manifest.deleted},
        as_json=json,
    )


@app.command()
def compact(
    index: Uri,
    rows: Annotated[int, typer.Option(help="Target number of rows per file.")] = 1_000_000,
    json: Json = False,
) -> None:
    """Publish the current version with fewer, larger files and without deleted rows."""
    from dq_cluster.index.compact import compact

    if rows < 1:
        raise ConfigError(f"--rows {rows} is not 1 or more")
    manifest = compact(_open(index), rows)
    emit(
        {"version": manifest.version, "rows": manifest.rows, "files": len(manifest.files)},
        as_json=json,
    )


@app.command()
def gc(
    index: Uri,
    grace_hours: Annotated[
        float, typer.Option(help="Keep what is younger, and versions that were current within it.")
    ] = 72.0,
    keep: Annotated[
        int | None,
        typer.Option(help="Also remove versions, except the current and the KEEP newest."),
    ] = None,
    training: Annotated[
        list[str] | None,
        typer.Option(help="Also remove the files of this training, which then cannot be resumed."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be removed.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove files that no version names; report what stays and why."""
    from dq_cluster.index.gc import collect_garbage

    if not 0 <= grace_hours <= _MAX_HOURS:
        raise ConfigError(f"--grace-hours {grace_hours:g} is not between 0 and {_MAX_HOURS:,}")
    report = collect_garbage(
        _open(index),
        timedelta(hours=grace_hours),
        keep=keep,
        trainings=training or (),
        dry_run=dry_run,
    )
    emit(report, as_json=json)
