"""`search`, `plan`, and `demo`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from dq_cluster.cli.output import emit, results_only
from dq_cluster.config import validate_settings
from dq_cluster.errors import ConfigError, NotFoundError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (search, plan, demo):
        app.command()(command)


def search(
    target: Annotated[
        str, typer.Argument(help="An index (folder or s3://), or the http:// URL of an API.")
    ],
    image: Annotated[Path | None, typer.Option(help="Image file to search for.")] = None,
    id: Annotated[
        str | None, typer.Option(help="Id of an image of the index to search for.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Words to search for; also with --image.")
    ] = None,
    not_text: Annotated[str | None, typer.Option(help="Words for what is not wanted.")] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="How much a part counts: image=1, text=1, not_text=0.5; may be repeated."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of neighbours.")] = 10,
    within: Annotated[
        float | None, typer.Option(help="Only those that score at least this: is it there already?")
    ] = None,
    nprobe: Annotated[
        int | None, typer.Option(help="Cells of an IVF version to scan; default: all.")
    ] = None,
    k_factor: Annotated[
        int | None, typer.Option(help="Candidates per neighbour that a second code re-ranks.")
    ] = None,
    decode_factor: Annotated[
        int | None, typer.Option(help="Candidates per neighbour that the decoder re-ranks.")
    ] = None,
    version: Annotated[int | None, typer.Option(help="Version of the index to search.")] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Carried column to return; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Find the images most similar to an image, or to words. DQ_API_KEY holds the key of an API."""
    from dq_cluster.client import Client

    if (id is None) == (image is None and text is None):
        raise ConfigError("say what to search for: --image FILE, --text WORDS, or both; or --id ID")
    if image is not None and not image.is_file():
        raise NotFoundError(f"image {image} does not exist")
    key = os.environ.get("DQ_API_KEY")
    with Client(target, api_key=key, version=version) as client:
        answer = client.search(
            image=image,
            id=id,
            text=text,
            not_text=not_text,
            weights=_weights(weight or []) or None,
            k=k,
            within=within,
            nprobe=nprobe,
            k_factor=k_factor,
            decode_factor=decode_factor,
            include=include or (),
        )
    emit(
        {
            "hits": [{"id": hit.id, "score": hit.score, **hit.columns} for hit in answer.hits[0]],
            "version": answer.version,
            "coverage": answer.coverage,
            "ms": answer.ms,
        },
        as_json=json,
    )


def _weights(given: list[str]) -> dict[str, float]:
    weights = {}
    for each in given:
        name, _, value = each.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise ConfigError(f"--weight {each}: write NAME=NUMBER, such as text=2") from None
    return weights


def plan(
    images: Annotated[int, typer.Option(help="Images in the index.")],
    bits: Annotated[int, typer.Option(help="Bits per code.")] = 64,
    nbits: Annotated[int, typer.Option(help="Bits of a sub-code: 8, or 4 for fast-scan.")] = 8,
    cells: Annotated[bool, typer.Option(help="With coarse cells (IVF).")] = False,
    refine_bits: Annotated[
        int, typer.Option(help="Bits of a second code for re-ranking; 0: none.")
    ] = 0,
    replicas: Annotated[int, typer.Option(help="Replicas of each shard.")] = 2,
    memory_gb: Annotated[float, typer.Option(help="Memory that one replica may use.")] = 16.0,
    json: Json = False,
) -> None:
    """Compute the shards, memory, and storage that an index needs."""
    from dq_cluster.index.sizing import SizingRequest, size_index

    request = {
        "images": images,
        "bits": bits,
        "nbits": nbits,
        "cells": cells,
        "refine_bits": refine_bits,
        "replicas": replicas,
        "memory_gb": memory_gb,
    }
    emit(size_index(validate_settings(SizingRequest, request, "plan")), as_json=json)


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for images, index, and report.")] = Path(
        "demo"
    ),
    images: Annotated[int, typer.Option(help="Largest number of images.")] = 20_000,
    json: Json = False,
) -> None:
    """Run every stage on real images: train, encode, serve, query, measure, report."""
    from dq_cluster.cluster import ray_cluster
    from dq_cluster.demo.run import run_demo
    from dq_cluster.serve.run import fast_serve

    fast_serve()
    with results_only(), ray_cluster():
        summary = run_demo(folder, images)
    emit(summary, as_json=json)
