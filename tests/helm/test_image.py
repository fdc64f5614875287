"""What can be said about the image without building it; nothing here builds images."""

import re

from tests.helm.conftest import REPO

DOCKERFILE = (REPO / "deploy/docker/Dockerfile").read_text()


NEEDED = {"pyproject.toml", "constraints.txt", "dq_cluster", "jobs", "configs"}


def test_what_an_image_needs_is_copied_and_nothing_copied_is_ignored() -> None:
    copied = [
        name
        for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
        for name in line.split()
    ]
    assert set(copied) >= NEEDED
    assert all((REPO / name).exists() for name in NEEDED)
    ignore = (REPO / "deploy/docker/Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert f"!{name}" in ignore, name


def test_each_target_ends_as_the_user_that_the_chart_runs() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[2:]
    assert [re.match(r"base AS (\w+)", stage)[1] for stage in stages] == ["cuda", "cpu"]  # type: ignore[index]
    for stage in stages:
        assert stage.rstrip().endswith("USER 1000:1000")


def test_packages_are_pinned_and_faiss_is_installed_once() -> None:
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[2:]:
        assert "--constraint constraints.txt" in stage
        assert len(re.findall(r"'\.\[(cpu|gpu)\]'", stage)) == 1
        for name in re.findall(r"\s((?:faiss|opentelemetry)[-\w]*\S*)", stage):
            assert "==" in name
