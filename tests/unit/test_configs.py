"""Every configuration file that ships validates against the settings it is for."""

from pathlib import Path

import pytest

from dq_cluster.config import Settings, load_settings
from dq_cluster.encode.config import EncodeSettings, FeaturizeSettings
from dq_cluster.evaluate.config import EvaluateSettings
from dq_cluster.serve.config import ServeSettings
from dq_cluster.train.config import TrainSettings

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS: dict[str, type[Settings]] = {
    "featurize": FeaturizeSettings,
    "train": TrainSettings,
    "encode": EncodeSettings,
    "serve": ServeSettings,
    "evaluate": EvaluateSettings,
}


@pytest.mark.parametrize("size", ["laptop", "cluster"])
@pytest.mark.parametrize("workload", KINDS)
def test_shipped_configuration(size: str, workload: str) -> None:
    # The model is the one thing that a file cannot know.
    overrides = ["model=abc"] if workload == "encode" else []
    load_settings(KINDS[workload], CONFIGS / size / f"{workload}.yaml", overrides)


def test_there_are_no_others() -> None:
    assert {path.stem for path in CONFIGS.rglob("*.yaml")} == set(KINDS)
