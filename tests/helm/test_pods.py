"""What is in the pods: rights, images, secrets, places, ports, probes."""

from pathlib import Path

import pytest

from tests.helm.conftest import CI, CI_VALUES, INDEX, Helm, environment, of_kind, only, pods


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
def test_only_the_autoscaler_gets_a_kubernetes_token(helm4: Helm, values: Path) -> None:
    documents = helm4.render("-f", str(values))
    for name, template in pods(documents).items():
        head_scales = values.name.startswith("autoscaling") and name.endswith("/head")
        assert template["spec"]["automountServiceAccountToken"] is head_scales, name
    for account in of_kind(documents, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


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
    rules = "metrics.prometheusRule"
    labelled = helm.render(*INDEX, "--set", f"{rules}.enabled=true,{rules}.labels.team=images")
    assert only(labelled, "PrometheusRule")["metadata"]["labels"]["team"] == "images"
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "50Gi"}} in worker["volumes"]


def test_ports_are_named_as_kuberay_and_the_monitor_look_for_them(helm: Helm) -> None:
    watched = {"metrics": 8080, "dq-metrics": 8081}
    serving = {"serve": 8000, **watched}
    heading = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, **watched}
    expected = {
        "RayService/rel-dq-cluster/head": serving | heading,
        "RayService/rel-dq-cluster/cpu": serving,
    }
    documents = helm.render(*INDEX, "--set", "jobs.train.enabled=true")
    job = f"RayJob/{only(documents, 'RayJob')['metadata']['name']}"
    expected |= {f"{job}/head": heading, f"{job}/cpu": watched}
    templates = pods(documents)
    for name, ports in expected.items():
        container = templates[name]["spec"]["containers"][0]
        assert {p["name"]: p["containerPort"] for p in container["ports"]} == ports, name
        assert all(len(port) <= 15 for port in ports)  # what Kubernetes allows
        assert environment(templates[name])["DQ_METRICS_PORT"] == str(ports["dq-metrics"])


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
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_switches_turn_the_token_off_and_traces_on(helm: Helm) -> None:
    documents = helm.render("-f", CI["switches"])
    variables = environment(pods(documents)["RayService/rel-dq-cluster/cpu"])
    assert variables["RAY_AUTH_MODE"] == "disabled"
    assert variables["OTEL_TRACES_EXPORTER"] == "otlp"
    assert (variables["DQ_LOG_FORMAT"], variables["DQ_LOG_LEVEL"]) == ("text", "DEBUG")
    assert variables["OMP_NUM_THREADS"] == "2"
