"""What the chart makes of its values, on both Helms."""

import json
import re
from pathlib import Path

import pytest
import yaml

from dq_cluster.config import validate_settings
from dq_cluster.serve.config import ServeSettings
from tests.helm.conftest import (
    CHART,
    CI,
    CI_VALUES,
    INDEX,
    REPO,
    Helm,
    environment,
    of_kind,
    only,
    pods,
)


@pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.name)
def test_lint_is_strict_about_every_combination(helm: Helm, values: Path) -> None:
    done = helm.run("lint", "--strict", str(CHART), "-f", str(values), "--kube-version", "1.33.0")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.name)
def test_every_resource_is_labelled_and_none_collide(helm4: Helm, values: Path) -> None:
    documents = helm4.render("-f", str(values))
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)
    for document in documents:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "dq-cluster"
        assert labels["app.kubernetes.io/instance"] == "rel"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["helm.sh/chart"] == "dq-cluster-0.1.0"


def test_the_default_is_a_served_index(helm: Helm) -> None:
    documents = helm.render(*INDEX)
    kinds = sorted(document["kind"] for document in documents)
    assert kinds == ["Pod", "PodDisruptionBudget", "RayService", "ServiceAccount"]
    service = only(documents, "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert application["args"] == {"index": "s3://images/index"}
    assert application["route_prefix"] == "/"
    assert config["proxy_location"] == "EveryNode"
    options = config["http_options"]
    assert (options["host"], options["port"], options["request_timeout_s"]) == ("0.0.0.0", 8000, 60)
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={cluster['rayVersion']}" in (REPO / "constraints.txt").read_text().split()
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    environments = [environment(t) for n, t in pods(documents).items() if n.startswith("RayS")]
    assert len(environments) == 2
    for variables in environments:
        assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert "RAY_AUTH_MODE" not in variables
        assert "DQ_API_KEYS_FILE" not in variables


@pytest.mark.parametrize("name", CI)
def test_ray_and_the_query_api_accept_the_serve_config(helm4: Helm, name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    services = of_kind(helm4.render("-f", CI[name]), "RayService")
    if name == "jobs":
        assert services == []
        return
    config = yaml.safe_load(services[0]["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    assert schema.applications[0].import_path == "dq_cluster.serve.app:build"
    settings = validate_settings(ServeSettings, schema.applications[0].args, name)
    assert settings.index == yaml.safe_load(Path(CI[name]).read_text())["index"]


def test_settings_reach_the_query_api_with_their_types(helm: Helm) -> None:
    service = only(helm.render("-f", CI["production"]), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert config["applications"][0]["args"] == {
        "index": "s3://images/index",
        "shards": 4,
        "replicas": 2,
    }


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("rel", "", "rel-dq-cluster"),
        ("my-dq-cluster", "", "my-dq-cluster"),
        ("rel", ",nameOverride=images", "rel-images"),
        ("rel", ",fullnameOverride=images", "images"),
    ],
)
def test_names(helm: Helm, release: str, values: str, name: str) -> None:
    documents = helm.render("--set", f"index=s3://images/index{values}", release=release)
    assert only(documents, "RayService")["metadata"]["name"] == name
    assert only(documents, "ServiceAccount")["metadata"]["name"] == name
    assert only(documents, "PodDisruptionBudget")["metadata"]["name"] == f"{name}-serve"


def test_autoscaling(helm: Helm) -> None:
    documents = helm.render("-f", CI["autoscaling"])
    cluster = only(documents, "RayService")["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    context = cluster["autoscalerOptions"]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert cluster["autoscalerOptions"]["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    worker = cluster["workerGroupSpecs"][0]
    assert (worker["minReplicas"], worker["maxReplicas"]) == (2, 8)
    for template in pods(documents).values():
        assert template["spec"].get("restartPolicy", "Never") == "Never"


def test_upgrade_strategies(helm: Helm) -> None:
    plain = only(helm.render(*INDEX), "RayService")["spec"]["upgradeStrategy"]
    assert plain == {"type": "NewCluster"}
    steps = only(helm.render("-f", CI["autoscaling"]), "RayService")["spec"]["upgradeStrategy"]
    assert steps == {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": "istio",
            "intervalSeconds": 60,
            "maxSurgePercent": 50,
            "stepSizePercent": 10,
        },
    }


def test_gcs_fault_tolerance(helm: Helm) -> None:
    spec = only(helm.render("-f", CI["production"]), "RayService")["spec"]["rayClusterConfig"]
    assert spec["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {
            "valueFrom": {"secretKeyRef": {"name": "redis", "key": "redis-password"}}
        },
    }
    plain = only(helm.render(*INDEX), "RayService")["spec"]["rayClusterConfig"]
    assert "gcsFaultToleranceOptions" not in plain


@pytest.mark.parametrize(("replicas", "least"), [(1, 0), (3, 2)])
def test_a_drain_takes_one_worker_at_a_time(helm: Helm, replicas: int, least: int) -> None:
    keys = ("replicas", "minReplicas", "maxReplicas")
    groups = [p for k in keys for p in ("--set", f"serve.workerGroups.cpu.{k}={replicas}")]
    budget = only(helm.render(*INDEX, *groups), "PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == least
    assert budget["selector"]["matchLabels"]["ray.io/node-type"] == "worker"
    explicit = helm.render(*INDEX, "--set", "serve.podDisruptionBudget.minAvailable=0")
    assert only(explicit, "PodDisruptionBudget")["spec"]["minAvailable"] == 0


def test_network_policy_opens_each_port_to_whom_it_concerns(helm: Helm) -> None:
    policy = only(helm.render("-f", CI["production"]), "NetworkPolicy")["spec"]
    nodes = {
        "app.kubernetes.io/name": "dq-cluster",
        "app.kubernetes.io/instance": "rel",
        "ray.io/is-ray-node": "yes",
    }
    assert policy["podSelector"] == {"matchLabels": nodes}
    among, *rest = policy["ingress"]
    assert among == {"from": [{"podSelector": {"matchLabels": nodes}}]}
    opened: dict[int, list[str]] = {}
    for rule in rest:
        for port in rule["ports"]:
            opened.setdefault(port["port"], []).append(json.dumps(rule["from"]))
    assert opened.keys() == {8265, 8000, 8080, 8081}
    assert len(opened[8265]) == 2
    assert "submitter" in opened[8265][0]
    assert "kuberay-system" in opened[8265][1]
    assert "ingress-nginx" in opened[8000][1]
    assert '"test"' in opened[8000][1]
    assert "monitoring" in opened[8080][0]
    assert opened[8081] == opened[8080]

    anyone = only(helm.render(*INDEX, "--set", "networkPolicy.enabled=true"), "NetworkPolicy")
    (rule,) = [r for r in anyone["spec"]["ingress"] if "from" not in r]
    assert [p["port"] for p in rule["ports"]] == [8000]


def test_ingress_and_gateway_terminate_tls(helm: Helm) -> None:
    ingress = only(helm.render("-f", CI["production"]), "Ingress")["spec"]
    assert ingress["tls"] == [{"hosts": ["images.example.com"], "secretName": "images-tls"}]
    backend = ingress["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "rel-dq-cluster-serve-svc", "port": {"number": 8000}}

    own = helm.render("-f", CI["switches"])
    (listener,) = only(own, "Gateway")["spec"]["listeners"]
    assert (listener["protocol"], listener["tls"]["mode"]) == ("HTTPS", "Terminate")
    assert listener["tls"]["certificateRefs"] == [{"name": "images-tls"}]
    assert only(own, "HTTPRoute")["spec"]["parentRefs"] == [{"name": "rel-dq-cluster"}]

    existing = helm.render("-f", CI["autoscaling"])
    assert of_kind(existing, "Gateway") == []
    route = only(existing, "HTTPRoute")["spec"]
    assert route["parentRefs"][0]["name"] == "public"
    assert route["rules"][0]["backendRefs"] == [{"name": "rel-dq-cluster-serve-svc", "port": 8000}]


def test_monitor_selects_ray_pods_and_names_the_release(helm: Helm) -> None:
    documents = helm.render("-f", CI["production"])
    monitor = only(documents, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    of_ray, ours = monitor["spec"]["podMetricsEndpoints"]
    ports = {
        port["name"]: port["containerPort"]
        for name, template in pods(documents).items()
        if name.startswith("RayService")
        for port in template["spec"]["containers"][0]["ports"]
    }
    assert (ports[of_ray["port"]], ports[ours["port"]]) == (8080, 8081)
    *labels, keep = ours["relabelings"]
    assert labels == of_ray["relabelings"]
    assert "release" in {rule["targetLabel"] for rule in labels}
    # Our port is asked only where something of ours answers.
    assert keep["sourceLabels"] == ["component", "node_type"]
    asked = re.compile(keep["regex"])
    for pod in ("serve;worker", "train;worker", "encode;head", "featurize;head", "add;head"):
        assert asked.fullmatch(pod)
    for pod in ("serve;head", "train;head", "encode;worker", "evaluate;head"):
        assert not asked.fullmatch(pod)


def test_the_helm_test_asks_the_service_that_kuberay_makes(helm: Helm) -> None:
    pod = only(helm.render(*INDEX), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"
    (script,) = pod["spec"]["containers"][0]["args"]
    compile(script, "query.py", "exec")
    assert "http://rel-dq-cluster-serve-svc:8000" in script
    assert "/readyz" in script
