"""What the chart makes of its values, on both Helms."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dq_cluster.config import Settings, load_settings, validate_settings
from dq_cluster.encode.config import EncodeSettings, FeaturizeSettings
from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.serve.config import ServeSettings
from dq_cluster.train.config import TrainSettings
from tests.helm.conftest import CHART, CI_VALUES, REPO, Helm, of_kind, only, pods

INDEX = ("--set", "index=s3://images/index")
CI = {path.name.removesuffix("-values.yaml"): str(path) for path in CI_VALUES}

RULES = ("--set", "metrics.prometheusRule.enabled=true")
KINDS: dict[str, type[Settings]] = {
    "featurize": FeaturizeSettings,
    "train": TrainSettings,
    "encode": EncodeSettings,
    "evaluate": EvaluateSettings,
}


def environment(template: dict[str, Any]) -> dict[str, Any]:
    container = template["spec"]["containers"][0]
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


@pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.name)
def test_lint_is_strict_about_every_combination(helm: Helm, values: Path) -> None:
    done = helm.run("lint", "--strict", str(CHART), "-f", str(values), "--kube-version", "1.33.0")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.name)
def test_every_pod_is_restricted(helm4: Helm, values: Path) -> None:
    """The rules of PodSecurity's `restricted` profile, on every pod that can come of a release."""
    templates = pods(helm4.render("-f", str(values)))
    assert templates
    for name, template in templates.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "csi"}
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["readOnlyRootFilesystem"] is True, name
            if "RayS" in name or "RayJob" in name:
                assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], name
                assert {"name": "HOME", "value": "/tmp"} in container["env"], name
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert container["imagePullPolicy"] == "IfNotPresent", name
            assert not any("hostPort" in port for port in container.get("ports", [])), name


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


@pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.name)
def test_only_the_autoscaler_gets_a_kubernetes_token(helm4: Helm, values: Path) -> None:
    documents = helm4.render("-f", str(values))
    for name, template in pods(documents).items():
        head_scales = values.name.startswith("autoscaling") and name.endswith("/head")
        assert template["spec"]["automountServiceAccountToken"] is head_scales, name
    for account in of_kind(documents, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


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
    assert settings.index == "s3://images/index"


def test_settings_reach_the_query_api_with_their_types(helm: Helm) -> None:
    service = only(helm.render("-f", CI["production"]), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert config["applications"][0]["args"] == {
        "index": "s3://images/index",
        "shards": 4,
        "replicas": 2,
    }


def test_keys_and_credentials_come_from_secrets(helm: Helm) -> None:
    templates = pods(helm.render("-f", CI["production"]))
    worker = templates["RayService/rel-dq-cluster/cpu"]
    assert environment(worker)["DQ_API_KEYS_FILE"] == "/etc/dq-cluster/keys/keys"
    mounts = {m["name"]: m["mountPath"] for m in worker["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["api-keys"] == "/etc/dq-cluster/keys"
    (volume,) = [v for v in worker["spec"]["volumes"] if v["name"] == "api-keys"]
    assert volume["secret"]["secretName"] == "dq-keys"
    assert "AWS_ACCESS_KEY_ID" not in environment(worker)

    variables = environment(pods(helm.render("-f", CI["default"]))["RayService/rel-dq-cluster/cpu"])
    assert variables["AWS_ENDPOINT_URL"] == "https://s3.example.com"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert variables[name] == {"secretKeyRef": {"name": "object-store", "key": name}}


def test_a_running_cluster_outlives_a_new_chart(helm: Helm) -> None:
    """KubeRay replaces a cluster whose pod template changes, so no version may be in it."""
    for name, template in pods(helm.render(*INDEX)).items():
        if name.startswith("RayService"):
            assert template["metadata"]["labels"].keys() == {
                "app.kubernetes.io/name",
                "app.kubernetes.io/instance",
                "app.kubernetes.io/component",
            }


def test_what_production_asks_for_arrives(helm: Helm) -> None:
    documents = helm.render("-f", CI["production"])
    annotations = only(documents, "ServiceAccount")["metadata"]["annotations"]
    assert annotations == {
        "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/images",
    }
    worker = pods(documents)["RayService/rel-dq-cluster/cpu"]["spec"]
    assert worker["serviceAccountName"] == "rel-dq-cluster"
    assert worker["priorityClassName"] == "serving"
    assert worker["nodeSelector"] == {"pool": "memory"}
    assert worker["tolerations"][0]["value"] == "memory"
    assert worker["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone"
    assert worker["terminationGracePeriodSeconds"] == 60
    labelled = helm.render(*INDEX, *RULES, "--set", "metrics.prometheusRule.labels.team=images")
    assert only(labelled, "PrometheusRule")["metadata"]["labels"]["team"] == "images"
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "50Gi"}} in worker["volumes"]


def test_ports_are_named_as_kuberay_and_the_monitor_look_for_them(helm: Helm) -> None:
    serving = {"serve": 8000, "metrics": 8080}
    heading = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
    expected = {
        "RayService/rel-dq-cluster/head": serving | heading,
        "RayService/rel-dq-cluster/cpu": serving,
    }
    documents = helm.render(*INDEX, "--set", "jobs.train.enabled=true")
    job = f"RayJob/{only(documents, 'RayJob')['metadata']['name']}"
    expected |= {f"{job}/head": heading, f"{job}/cpu": {"metrics": 8080}}
    templates = pods(documents)
    for name, ports in expected.items():
        container = templates[name]["spec"]["containers"][0]
        assert {p["name"]: p["containerPort"] for p in container["ports"]} == ports, name


def test_a_service_account_of_ones_own(helm: Helm) -> None:
    for name, expected in (("", "default"), ("images", "images")):
        values = f"serviceAccount.create=false,serviceAccount.name={name}"
        documents = helm.render(*INDEX, "--set", values)
        assert of_kind(documents, "ServiceAccount") == []
        worker = pods(documents)["RayService/rel-dq-cluster/cpu"]
        assert worker["spec"]["serviceAccountName"] == expected


def test_own_probes_replace_those_of_kuberay(helm: Helm) -> None:
    probe = "serve.workerGroups.cpu.readinessProbe.httpGet"
    given = helm.render(*INDEX, "--set", f"{probe}.path=/readyz,{probe}.port=8000")
    container = pods(given)["RayService/rel-dq-cluster/cpu"]["spec"]["containers"][0]
    assert container["readinessProbe"] == {"httpGet": {"path": "/readyz", "port": 8000}}
    assert "livenessProbe" not in container


def test_images_by_tag_digest_and_gpu(helm: Helm) -> None:
    images = {
        name: template["spec"]["containers"][0]["image"]
        for name, template in pods(helm.render("-f", CI["gpu"])).items()
    }
    assert images["RayService/rel-dq-cluster/head"] == "dq-cluster:0.1.0"
    assert images["RayService/rel-dq-cluster/cpu"] == "dq-cluster:0.1.0"
    assert images["RayService/rel-dq-cluster/gpu"] == "dq-cluster:0.1.0-cuda"
    service = pods(helm.render("-f", CI["production"]))["RayService/rel-dq-cluster/head"]
    image = service["spec"]["containers"][0]["image"]
    assert image.startswith("registry.example.com/dq-cluster@sha256:0123")
    assert service["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_placement_of_a_gpu_group(helm: Helm) -> None:
    spec = pods(helm.render("-f", CI["gpu"]))["RayService/rel-dq-cluster/gpu"]["spec"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_job_runs_its_workload_with_its_own_file(helm: Helm, tmp_path: Path) -> None:
    documents = helm.render("-f", CI["gpu"])
    jobs = {
        job["metadata"]["labels"]["app.kubernetes.io/component"]: job
        for job in of_kind(documents, "RayJob")
    }
    assert jobs.keys() == KINDS.keys()
    for workload in KINDS:
        job = jobs[workload]
        name = job["metadata"]["name"]
        assert job["spec"]["entrypoint"] == (
            f"python /opt/dq-cluster/jobs/{workload}.py "
            f"--config /etc/dq-cluster/job/{workload}.yaml"
        )
        (config,) = [c for c in of_kind(documents, "ConfigMap") if c["metadata"]["name"] == name]
        path = tmp_path / f"{workload}.yaml"
        path.write_text(config["data"][path.name])
        settings = load_settings(KINDS[workload], path)
        assert getattr(settings, "index", "s3://images/index") == "s3://images/index"
        head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        assert {"name": "job", "configMap": {"name": name}} in head["volumes"]
    groups = [g["groupName"] for g in jobs["train"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert groups == ["gpu"]
    assert "workerGroupSpecs" not in jobs["evaluate"]["spec"]["rayClusterSpec"]


def test_other_settings_or_another_run_make_another_job(helm: Helm) -> None:
    def name(*arguments: str) -> str:
        done = helm.render(*INDEX, "--set", "jobs.train.enabled=true", *arguments)
        return str(only(done, "RayJob")["metadata"]["name"])

    first = name()
    assert name() == first
    assert name("--set", "image.tag=v2") == first
    others = {name("--set", "jobs.train.attempt=2"), name("--set", "jobs.train.settings.epochs=3")}
    assert len(others | {first}) == 3


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


def test_names_keep_their_suffixes_within_47_characters(helm: Helm) -> None:
    release = "a-release-name-that-is-as-long-as-helm-allows-it-53"
    enabled = [part for job in KINDS for part in ("--set", f"jobs.{job}.enabled=true")]
    documents = helm.render(*INDEX, *enabled, release=release)
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)
    for kind, name in names:
        assert len(name) <= 47, (kind, name)
    assert sum(kind == "RayJob" for kind, _ in names) == 4


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
    assert opened.keys() == {8265, 8000, 8080}
    assert len(opened[8265]) == 2
    assert "submitter" in opened[8265][0]
    assert "kuberay-system" in opened[8265][1]
    assert "ingress-nginx" in opened[8000][1]
    assert '"test"' in opened[8000][1]
    assert "monitoring" in opened[8080][0]

    anyone = only(helm.render(*INDEX, "--set", "networkPolicy.enabled=true"), "NetworkPolicy")
    (rule,) = [r for r in anyone["spec"]["ingress"] if "from" not in r]
    assert [p["port"] for p in rule["ports"]] == [8000]


def test_ingress_and_gateway_terminate_tls(helm: Helm) -> None:
    ingress = only(helm.render("-f", CI["production"]), "Ingress")["spec"]
    assert ingress["tls"] == [{"hosts": ["images.example.com"], "secretName": "images-tls"}]
    backend = ingress["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "rel-dq-cluster-serve-svc", "port": {"number": 8000}}

    own = helm.render("-f", CI["laptop"])
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
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ports = {
        port["name"]: port["containerPort"]
        for name, template in pods(documents).items()
        if name.startswith("RayService")
        for port in template["spec"]["containers"][0]["ports"]
    }
    assert ports[endpoint["port"]] == 8080
    assert "release" in {rule["targetLabel"] for rule in endpoint["relabelings"]}


def test_kueue_gets_a_queue_name_and_no_autoscaling(helm: Helm) -> None:
    job = only(helm.render("-f", CI["jobs"]), "RayJob")
    assert job["spec"]["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "batch"
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert (job["spec"]["activeDeadlineSeconds"], job["spec"]["backoffLimit"]) == (259200, 0)


def test_the_laptop_file_turns_the_token_off_and_traces_on(helm: Helm) -> None:
    documents = helm.render("-f", CI["laptop"])
    variables = environment(pods(documents)["RayService/rel-dq-cluster/cpu"])
    assert variables["RAY_AUTH_MODE"] == "disabled"
    assert variables["OTEL_TRACES_EXPORTER"] == "otlp"
    assert (variables["DQ_LOG_FORMAT"], variables["DQ_LOG_LEVEL"]) == ("text", "DEBUG")
    assert variables["OMP_NUM_THREADS"] == "2"


def test_the_helm_test_asks_the_service_that_kuberay_makes(helm: Helm) -> None:
    pod = only(helm.render(*INDEX), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["restartPolicy"] == "Never"
    (script,) = pod["spec"]["containers"][0]["args"]
    compile(script, "query.py", "exec")
    assert "http://rel-dq-cluster-serve-svc:8000" in script
    assert "/readyz" in script
