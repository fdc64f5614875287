"""`dq-cluster index …`: look at an index, check it, move it between versions, clean it."""

from datetime import timedelta
from typing import Annotated

import typer

from dq_cluster.cli.output import emit
from dq_cluster.errors import InputError, NotFoundError
from dq_cluster.index.catalog import Index
from dq_cluster.index.models import read_card

app = typer.Typer(help="Versions of an index: list, show, verify, roll back, clean up.")

Uri = Annotated[str, typer.Argument(help="The index: a folder or s3:// URI.")]
Version = Annotated[int | None, typer.Option("--version", help="Default: the current version.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("list")
def list_versions(index: Uri, json: Json = False) -> None:
    """List the versions, oldest first."""
    catalog = Index.at(index)
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
    emit({"index": catalog.storage.uri, "current": current, "versions": rows}, as_json=json)


@app.command()
def show(index: Uri, version: Version = None, json: Json = False) -> None:
    """Show one version: its model, codes, size, rejects, and measured quality."""
    catalog = Index.at(index)
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
        int | None, typer.Argument(help="Default: the current one's parent.")
    ] = None,
    json: Json = False,
) -> None:
    """Make an existing version the current one."""
    catalog = Index.at(index)
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
    ids: Annotated[bool, typer.Option("--ids", help="Also look for duplicated ids.")] = False,
    json: Json = False,
) -> None:
    """Hash every file of a version and name what is wrong; exit status 1 if anything is."""
    from dq_cluster.index.verify import verify

    report = verify(Index.at(index), version, ids=ids)
    emit(report, as_json=json)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def delete(
    index: Uri,
    ids: Annotated[list[str], typer.Argument(help="Ids of the images to take out.")],
    json: Json = False,
) -> None:
    """Publish a version without some images; their rows go when the index is compacted."""
    from dq_cluster.index.tombstones import delete_ids

    catalog = Index.at(index)
    manifest = delete_ids(catalog, ids)
    emit({"version": manifest.version, "deleted": manifest.deleted}, as_json=json)


@app.command()
def compact(
    index: Uri,
    rows: Annotated[int, typer.Option(help="Rows per file to aim at.")] = 1_000_000,
    json: Json = False,
) -> None:
    """Publish the current version again with fewer, larger files and without deleted rows."""
    from dq_cluster.index.compact import compact

    manifest = compact(Index.at(index), rows)
    emit(
        {"version": manifest.version, "rows": manifest.rows, "files": len(manifest.files)},
        as_json=json,
    )


@app.command()
def gc(
    index: Uri,
    grace_hours: Annotated[
        float, typer.Option(help="Leave alone what is younger, or was current within it.")
    ] = 72.0,
    keep: Annotated[
        int | None, typer.Option(help="Also drop all versions but the current and the KEEP newest.")
    ] = None,
    training: Annotated[
        list[str] | None,
        typer.Option(help="Also remove this training's checkpoints; it cannot go on then."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: Json = False,
) -> None:
    """Remove the files that no version names, and say what stays and why."""
    from dq_cluster.index.gc import collect_garbage

    try:
        grace = timedelta(hours=grace_hours)
    except (OverflowError, ValueError):
        raise InputError(f"--grace-hours must be a number of hours, not {grace_hours}") from None
    report = collect_garbage(
        Index.at(index), grace, keep=keep, trainings=training or (), dry_run=dry_run
    )
    emit(report, as_json=json)
