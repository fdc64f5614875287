"""A release that cannot fit its worker groups is refused with the numbers.

The template decides as `dq_cluster.cluster.room` does on a running cluster, for which the release
would wait in vain.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import yaml

from dq_cluster.cluster.room import Need, shortage
from dq_cluster.config import Settings
from dq_cluster.encoding.config import PoolSettings
from dq_cluster.encoding.pool import needs as encoders
from dq_cluster.index.sizing import (
    CELL_ROW_BYTES,
    LABEL_BYTES,
    PROCESS_BYTES,
    ROW_BYTES,
    SizingRequest,
    row_bytes,
    size_index,
)
from dq_cluster.knn.config import FinderSettings
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.startup import needs as served
from dq_cluster.training.config import TrainSettings
from tests.helm.conftest import CHART, CI, INDEX, Helm

SIZES = yaml.safe_load((CHART / "sizes.yaml").read_text())
BYTES = SIZES["bytes"]


def group(count: int, cpu: Any, *, gpus: int = 0, memory: str = "64Gi") -> dict[str, Any]:
    limits = {"cpu": cpu, "memory": memory} | ({"nvidia.com/gpu": gpus} if gpus else {})
    counts = {"replicas": count, "minReplicas": count, "maxReplicas": count}
    return {**counts, "resources": {"limits": limits}}


class Case(NamedTuple):
    """Settings that fit `groups`, those that ask for one too many, and what is said of them."""

    fits: dict[str, Any]
    too_many: dict[str, Any]
    groups: Sequence[dict[str, Any]]
    words: Sequence[str]


GPUS = (group(1, 8), group(1, 3, gpus=1))
SERVE = {
    # Five processes on five CPUs, all settings but the shards by default.
    "defaults": Case({}, {"shards": 5}, [group(1, 5)], ["1 of 1 routers", "6 CPUs", "1 × (5 CPUs"]),
    "replicas": Case(
        {"shards": 2, "replicas": 2}, {"shards": 3, "replicas": 2}, [group(1, 3), group(1, 2)],
        ["1 of 6 replicas of shards (each 1 CPU", "1 of 1 routers", "it asks for 7 CPUs"],
    ),
    "routers": Case(
        {"shards": 1, "routers": 3}, {"shards": 1, "routers": 4}, [group(2, 2)], ["1 of 4 routers"]
    ),
    "parts of CPUs": Case(
        {"shards": 5, "cpus": 0.3}, {"shards": 5, "cpus": 0.4}, [group(2, 1)], ["each 0.4 CPUs"]
    ),
    # Ten CPUs on two nodes are no place for a replica that wants six.
    "node by node": Case(
        {"shards": 1, "cpus": 5}, {"shards": 1, "cpus": 6}, [group(2, 5)],
        ["1 of 1 replicas of shards (each 6 CPUs", "2 × (5 CPUs"],
    ),
    "KubeRay rounds CPUs up": Case({"shards": 1}, {"shards": 2}, [group(1, "1500m")], ["(2 CPUs"]),
    "GPUs": Case(
        {"shards": 1, "gpus": 1, "cpus": 3}, {"shards": 2, "gpus": 1}, GPUS,
        ["1 of 2 replicas of shards (each 1 CPU, 1 GPU,", "(3 CPUs, 1 GPU, 68.72 GB)"],
    ),
    "parts of GPUs": Case(
        {"shards": 2, "gpus": 0.5}, {"shards": 2, "gpus": 0.6}, GPUS, ["1 of 2", "0.6 GPUs"]
    ),
    "no groups": Case({}, {}, [], ["no workers"]),
}  # fmt: skip
JOBS = {
    "encode": Case(
        {"pool": {"encoders": 2, "decoders": 3}}, {"pool": {"encoders": 3, "decoders": 3}},
        [group(2, 7)], ["1 of 3 encoders (each 4 CPUs)", "12 CPUs", "2 × (7 CPUs", "pool.encoders"],
    ),
    "featurize": Case(
        {"pool": {"gpus": 1}}, {"pool": {"encoders": 2, "gpus": 1}}, GPUS,
        ["1 of 2 encoders (each 2 CPUs, 1 GPU)"],
    ),
    "build": Case(
        {"pool": None}, {"pool": {"decoders": 2}}, [group(3, 2)], ["1 of 1 encoders (each 3 CPUs)"]
    ),
    "add": Case({}, {"pool": {"decoders": 7}}, [group(1, 7)], ["each 8 CPUs"]),
    "train": Case(
        {"workers": {"min": 4, "max": 9}, "cpus_per_worker": 2},
        {"workers": 5, "cpus_per_worker": 2}, [group(2, 5)], ["1 of 5 workers (each 2 CPUs)"],
    ),
    "neighbours": Case(
        {"pool": {"workers": 2, "cpus": 4}}, {"pool": {"workers": 2, "cpus": 5}}, [group(1, 9)],
        ["1 of 2 finders of neighbours (each 5 CPUs)"],
    ),
    "duplicates": Case({}, {"pool": {"workers": 2}}, [group(1, 1)], ["pool.workers"]),
}  # fmt: skip


def as_nodes(group: dict[str, Any]) -> list[dict[str, float]]:
    """What Ray counts on the nodes of a group."""
    limits = group["resources"]["limits"]
    cpu = 1.5 if limits["cpu"] == "1500m" else float(limits["cpu"])
    node = {"CPU": math.ceil(cpu), "GPU": limits.get("nvidia.com/gpu", 0)}
    return [node] * int(group["replicas"])


def values(path: str, settings: dict[str, Any], groups: Sequence[dict[str, Any]]) -> list[str]:
    named = {f"g{number}": each for number, each in enumerate(groups)} | {"cpu": None}
    wanted = {"settings": settings, "workerGroups": named}
    return [*INDEX, "--set-json", f"{path}={json.dumps({'enabled': True, **wanted})}"]


@pytest.mark.parametrize("name", SERVE)
def test_what_is_served_fits_or_is_refused(helm: Helm, name: str) -> None:
    case = SERVE[name]
    if case.groups:
        helm.render(*values("serve", case.fits, case.groups))
    message = helm.refuse(*values("serve", case.too_many, case.groups))
    for words in ("serve.settings does not fit its worker groups", *case.words):
        assert words in message
    # On the running cluster the same would be said, at the end of a long wait.
    nodes = [node for each in case.groups for node in as_nodes(each)]
    index = {"index": "s3://images/index"}
    assert shortage(served(ServeSettings(**index, **case.too_many)), nodes)
    assert not nodes or not shortage(served(ServeSettings(**index, **case.fits)), nodes)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_fits_or_is_refused(helm: Helm, name: str) -> None:
    case = JOBS[name]
    helm.render(*values(f"jobs.{name}", case.fits, case.groups))
    message = helm.refuse(*values(f"jobs.{name}", case.too_many, case.groups))
    for words in (f"jobs.{name}.settings does not fit its worker groups", *case.words):
        assert words in message


def test_a_job_that_is_off_is_not_looked_at(helm4: Helm) -> None:
    helm4.render(*INDEX, "--set", "jobs.encode.settings.pool.encoders=1000")


def test_a_cluster_that_grows_has_room_for_what_its_largest_size_takes(helm: Helm) -> None:
    most = {**group(2, 2), "maxReplicas": 3}
    grown = values("serve", {"shards": 5}, [most])
    assert "1 of 1 routers" in helm.refuse(*grown)
    helm.render(*grown, "--set", "serve.autoscaling.enabled=true")
    jobs = values("jobs.encode", {"pool": {"encoders": 3}}, [most])
    assert "1 of 3 encoders" in helm.refuse(*jobs)
    helm.render(*jobs, "--set", "jobDefaults.autoscaling=true")


def test_the_memory_of_a_plan(helm: Helm) -> None:
    """Two replicas of 5.05 GB, a router and a keeper beside what a node takes: 10.8 GB."""
    plan = {"images": 10**9, "bits": 64, "cells": True}
    planned = size_index(SizingRequest(**plan, memory_gb=9.4))
    settings = {"shards": planned.shards, "cpus": 0.1}
    assert planned.shards == 2
    needed = int(planned.memory_per_replica_gb * 2e9)
    needed += BYTES["router"] + BYTES["keeper"] + BYTES["node"]

    def given(memory: int, **more: Any) -> list[str]:
        groups = [group(1, 8, memory=str(memory))]
        asked = values("serve", settings | more, groups)
        return [*asked, "--set-json", f"serve.plan={json.dumps(plan)}"]

    helm.render(*given(needed + 10**6))
    message = helm.refuse(*given(needed - 10**6))
    assert "no room for 1 of 1 keepers" in message
    assert f"{planned.memory_per_replica_gb:.2f} GB" in helm.refuse(*given(needed // 2))
    # What the replicas may take for codes is less than the codes.
    message = helm.refuse(*given(2 * needed, memory_gb=3))
    assert "serve.settings.memory_gb 3 is too little" in message
    assert "1000000000 images in 2 shards take 4.75 GB" in message
    # Codes for a GPU are put into lists first.
    gpu = values("serve", settings | {"gpus": 1}, [group(2, 8, gpus=1, memory="10G")])
    row = row_bytes(8, cells=True, packed=False, gpu=True)
    message = helm.refuse(*gpu, "--set-json", f"serve.plan={json.dumps(plan)}")
    assert f"{(row * 5e8 + PROCESS_BYTES) / 1e9:.2f} GB" in message


def test_the_memory_that_replicas_may_take(helm: Helm) -> None:
    settings = {"shards": 2, "memory_gb": 16}
    helm.render(*values("serve", settings, [group(2, 2, memory="17G")]))
    message = helm.refuse(*values("serve", settings, [group(2, 2, memory="16G")]))
    assert "2 of 2 replicas of shards (each 1 CPU, 16.00 GB)" in message
    assert "16.00 GB), of which 0.30 GB are each node's own" in message


def test_a_head_too_small_for_ray_itself(helm: Helm) -> None:
    memory = "serve.head.resources.limits.memory"
    helm.render(*INDEX, "--set", f"{memory}=1Gi")
    assert "serve.head has 0.54 GB" in helm.refuse(*INDEX, "--set", f"{memory}=512Mi")


def test_more_than_a_gpu_and_a_half(helm: Helm) -> None:
    message = helm.refuse(*values("jobs.encode", {"pool": {"gpus": 1.5}}, GPUS))
    assert "1.5 GPUs for each of the encoders" in message


def test_the_chart_counts_with_the_settings_own_defaults() -> None:
    def defaults(kind: type[Settings], names: dict[str, Any]) -> dict[str, Any]:
        return {name: kind.model_fields[name].default for name in names}

    kinds: dict[str, type[Settings]] = {
        "serve": ServeSettings,
        "plan": SizingRequest,
        "encoders": PoolSettings,
        "finders": FinderSettings,
        "train": TrainSettings,
    }
    for name, kind in kinds.items():
        assert SIZES[name] == defaults(kind, SIZES[name]), name
    sizing = {
        "process": PROCESS_BYTES,
        "row": ROW_BYTES,
        "cell_row": CELL_ROW_BYTES,
        "label": LABEL_BYTES,
    }
    assert {name: BYTES[name] for name in sizing} == sizing


def test_the_chart_asks_for_what_the_workloads_ask_for() -> None:
    """The resources that _room.tpl writes down again."""
    pool = PoolSettings(encoders=3, decoders=4, gpus=2)
    assert encoders(pool) == [Need("encoders", 3, {"CPU": 1 + 4, "GPU": 2})]
    settings = ServeSettings(index="/i", shards=3, replicas=2, routers=4, cpus=0.5, gpus=1)
    assert served(settings) == [
        Need("replicas of shards", 3 * 2, {"CPU": 0.5, "GPU": 1}),
        Need("routers", 4, {"CPU": 0.5}),
    ]


def test_the_laptop_has_8_gib(helm4: Helm) -> None:
    """Serving, or building: never both at once."""
    for switches in ([], ["--set", "serve.enabled=false,jobs.build.enabled=true"]):
        total = 0
        for document in helm4.render("-f", CI["laptop"], *switches):
            cluster = document.get("spec", {}).get("rayClusterConfig") or document.get(
                "spec", {}
            ).get("rayClusterSpec")
            if cluster:
                for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                    container = each["template"]["spec"]["containers"][0]
                    memory = container["resources"]["limits"]["memory"]
                    assert memory.endswith("Gi")
                    total += int(memory.removesuffix("Gi")) * each.get("replicas", 1)
        # The rest is for the control plane, the operator, and the machine itself.
        assert 0 < total <= 5
