"""Values that the schema or a template refuses, each with the words that lead to the mistake."""

import json
import subprocess
import sys

import pytest

from tests.helm.conftest import CHART, CI_VALUES, INDEX, REPO, Helm

WRONG = {
    "no index": ([], "index"),
    "index of another scheme": (["index=http://images"], "index"),
    "unknown top-level key": (["replicas=3"], "replicas"),
    "unknown nested key": (["image.tagg=1"], "tagg"),
    "unknown key of a worker group": (["serve.workerGroups.cpu.replica=1"], "replica"),
    "unknown job": (["jobs.index.enabled=true"], "index"),
    "wrong type": (["serve.enabled=maybe"], "serve"),
    "negative replicas": (["serve.workerGroups.cpu.replicas=-1"], "replicas"),
    "incomplete worker group": (["serve.workerGroups.gpu.replicas=1"], "gpu"),
    "group name not DNS": (["serve.workerGroups.GPU.replicas=1"], "GPU"),
    "index inside the settings": (["serve.settings.index=s3://other"], "settings"),
    "digest too short": (["image.digest=sha256:12"], "digest"),
    "name too long": ([f"fullnameOverride={'a' * 48}"], "fullnameOverride"),
    "name not DNS-1035": (["fullnameOverride=1abc"], "fullnameOverride"),
    "unknown upgrade strategy": (["serve.upgradeStrategy.type=Nonsense"], "type"),
    "incremental without autoscaling": (
        [
            "serve.upgradeStrategy.type=NewClusterWithIncrementalUpgrade",
            "serve.upgradeStrategy.gatewayClassName=istio",
        ],
        "autoscaling",
    ),
    "incremental without gateway class": (
        [
            "serve.upgradeStrategy.type=NewClusterWithIncrementalUpgrade",
            "serve.autoscaling.enabled=true",
        ],
        "gatewayClassName",
    ),
    "incremental step above surge": (
        [
            "serve.upgradeStrategy.type=NewClusterWithIncrementalUpgrade",
            "serve.upgradeStrategy.gatewayClassName=istio",
            "serve.autoscaling.enabled=true",
            "serve.upgradeStrategy.stepSizePercent=80",
        ],
        "stepSizePercent 80 is greater than maxSurgePercent 50",
    ),
    "interval of zero": (["serve.upgradeStrategy.intervalSeconds=0"], "intervalSeconds"),
    "fault tolerance without Redis": (["serve.gcsFaultTolerance.enabled=true"], "redisAddress"),
    "Redis password in the environment": (
        ["extraEnv[0].name=REDIS_PASSWORD", "extraEnv[0].value=x"],
        "extraEnv",
    ),
    "Redis address in Serve's environment": (["serve.env.RAY_REDIS_ADDRESS=x"], "env"),
    "autoscaler version in the environment": (
        ["extraEnv[0].name=RAY_enable_autoscaler_v2", "extraEnv[0].value=1"],
        "extraEnv",
    ),
    "least above most": (
        ["serve.workerGroups.cpu.minReplicas=9"],
        "minReplicas 9 is greater than maxReplicas 2",
    ),
    "replicas out of range": (
        ["serve.workerGroups.cpu.replicas=9"],
        "replicas 9 is not between minReplicas 2 and maxReplicas 2",
    ),
    "token with an old Ray": (["ray.version=2.51.0"], "2.52.0"),
    "unknown auth mode": (["ray.auth=none"], "auth"),
    "Kueue with autoscaling": (
        ["jobDefaults.queueName=q", "jobDefaults.autoscaling=true"],
        "Kueue does not admit",
    ),
    "negative retries": (["jobDefaults.backoffLimit=-1"], "backoffLimit"),
    "deadline of zero": (["jobDefaults.activeDeadlineSeconds=0"], "activeDeadlineSeconds"),
    "autoscaling without a service account": (
        ["serviceAccount.create=false", "serve.autoscaling.enabled=true"],
        "service account",
    ),
    "percentage as a disruption budget": (
        ["serve.podDisruptionBudget.minAvailable=50%"],
        "minAvailable",
    ),
    "ingress without TLS": (["ingress.enabled=true", "ingress.host=a.example.com"], "tlsSecret"),
    "gateway without a class": (
        ["gateway.enabled=true", "gateway.host=a.example.com", "gateway.tlsSecret=tls"],
        "className",
    ),
    "operator peers empty": (["networkPolicy.operator=null"], "networkPolicy"),
    "peer that matches everyone": (
        ["networkPolicy.clients[0].namespaceSelectr.matchLabels.a=b"],
        "namespaceSelectr",
    ),
    "log format": (["logging.format=xml"], "format"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused_by_name(helm: Helm, case: str) -> None:
    settings, words = WRONG[case]
    index = () if any(s.startswith("index=") for s in settings) or not settings else INDEX
    message = helm.refuse(*index, *(part for s in settings for part in ("--set", s)))
    assert words in message


def test_the_same_command_without_the_mistake_renders(helm: Helm) -> None:
    assert helm.render(*INDEX, "--set", "global.anything.at=all")


def test_a_cluster_without_kuberay_is_refused_with_advice(helm: Helm) -> None:
    message = helm.refuse(*INDEX, apis=())
    assert "does not know ray.io/v1: install the KubeRay operator" in message


@pytest.mark.parametrize(
    ("switch", "api"),
    [
        ("metrics.podMonitor.enabled=true", "monitoring.coreos.com/v1"),
        ("metrics.prometheusRule.enabled=true", "monitoring.coreos.com/v1"),
    ],
)
def test_an_absent_api_is_named(helm: Helm, switch: str, api: str) -> None:
    message = helm.refuse(*INDEX, "--set", switch, apis=("ray.io/v1",))
    assert f"does not know {api}" in message


def test_a_release_that_cannot_be_a_service_name_is_refused(helm: Helm) -> None:
    assert "must start with a letter" in helm.refuse(*INDEX, release="1st")


def test_more_worker_groups_than_kueue_admits(helm: Helm) -> None:
    group = {"replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    resources = {"limits": {"cpu": "1", "memory": "1Gi"}}
    groups = {f"g{i}": {**group, "resources": resources} for i in range(7)}
    message = helm.refuse(
        *INDEX,
        "--set",
        "jobDefaults.queueName=q,jobs.train.enabled=true",
        "--set-json",
        f"jobs.train.workerGroups={json.dumps(groups)}",
    )
    assert "at most 7 worker groups, got 8" in message


def test_readme_documents_every_value() -> None:
    subprocess.run(
        [sys.executable, str(REPO / "deploy/helm/readme.py"), "--check", str(CHART)], check=True
    )


def test_every_combination_file_says_what_it_is_for() -> None:
    assert len(CI_VALUES) >= 5
    for path in CI_VALUES:
        assert path.read_text().startswith("# ")
