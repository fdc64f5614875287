"""The jobs: each a RayJob with a cluster and a settings file of its own."""

from pathlib import Path

from dq_cluster.building.config import AddSettings, BuildSettings
from dq_cluster.config import Settings, load_settings
from dq_cluster.encoding.config import EncodeSettings, FeaturizeSettings
from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.knn.config import DuplicatesSettings, NeighboursSettings
from dq_cluster.training.config import TrainSettings
from tests.helm.conftest import CI, INDEX, REPO, Helm, of_kind, only

KINDS: dict[str, type[Settings]] = {
    "featurize": FeaturizeSettings,
    "train": TrainSettings,
    "encode": EncodeSettings,
    "evaluate": EvaluateSettings,
    "neighbours": NeighboursSettings,
    "duplicates": DuplicatesSettings,
    "build": BuildSettings,
    "add": AddSettings,
}


def test_a_job_runs_its_workload_with_its_own_file(helm: Helm, tmp_path: Path) -> None:
    documents = helm.render("-f", CI["jobs"])
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
        assert (REPO / f"jobs/{workload}.py").exists()
        (config,) = [c for c in of_kind(documents, "ConfigMap") if c["metadata"]["name"] == name]
        path = tmp_path / f"{workload}.yaml"
        path.write_text(config["data"][path.name])
        settings = load_settings(KINDS[workload], path)
        assert getattr(settings, "index", "s3://images/index") == "s3://images/index"
        head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        assert {"name": "job", "configMap": {"name": name}} in head["volumes"]
    assert "workerGroupSpecs" not in jobs["evaluate"]["spec"]["rayClusterSpec"]


def test_a_group_is_taken_away_and_another_put_there(helm: Helm) -> None:
    names = {
        job["metadata"]["labels"]["app.kubernetes.io/component"]: [
            group["groupName"]
            for group in job["spec"]["rayClusterSpec"].get("workerGroupSpecs", [])
        ]
        for job in of_kind(helm.render("-f", CI["gpu"]), "RayJob")
    }
    assert names == {
        "featurize": ["cpu", "gpu"], "train": ["gpu"], "encode": ["cpu", "gpu"], "evaluate": [],
    }  # fmt: skip


def test_other_settings_or_another_run_make_another_job(helm: Helm) -> None:
    def name(*arguments: str) -> str:
        done = helm.render(*INDEX, "--set", "jobs.train.enabled=true", *arguments)
        return str(only(done, "RayJob")["metadata"]["name"])

    first = name()
    assert name() == first
    assert name("--set", "image.tag=v2") == first
    others = {name("--set", "jobs.train.attempt=2"), name("--set", "jobs.train.settings.epochs=3")}
    assert len(others | {first}) == 3


def test_names_keep_their_suffixes_within_47_characters(helm: Helm) -> None:
    release = "a-release-name-that-is-as-long-as-helm-allows-it-53"
    enabled = [part for job in KINDS for part in ("--set", f"jobs.{job}.enabled=true")]
    documents = helm.render(*INDEX, *enabled, release=release)
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)
    for kind, name in names:
        assert len(name) <= 47, (kind, name)
    assert sum(kind == "RayJob" for kind, _ in names) == len(KINDS)


def test_kueue_gets_a_queue_name_and_no_autoscaling(helm: Helm) -> None:
    for job in of_kind(helm.render("-f", CI["jobs"]), "RayJob"):
        assert job["spec"]["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "batch"
        assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
        assert job["spec"]["shutdownAfterJobFinishes"] is True
        assert (job["spec"]["activeDeadlineSeconds"], job["spec"]["backoffLimit"]) == (259200, 0)
