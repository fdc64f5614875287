"""`dq-cluster index …`: look at an index, check it, move it between versions, clean it."""

from typing import Annotated

import typer

from dq_cluster.cli.output import emit
from dq_cluster.errors import NotFoundError
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
