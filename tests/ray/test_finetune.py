"""A backbone trained from pixels on Ray, with a worker killed in the middle of an epoch."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dq_cluster.building.pixels import train_from
from dq_cluster.config import load_settings
from dq_cluster.encoding.config import EncodeSettings
from dq_cluster.encoding.run import encode
from dq_cluster.images.config import SourceSettings
from dq_cluster.storage import Storage
from dq_cluster.training.checkpoint import checkpoint_epochs, latest_checkpoint
from dq_cluster.training.config import TrainSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IMAGES, EVERY = 160, 2


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        values = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(values).resize((40, 40)).save(folder / f"{number:03}.png")
    (folder / "broken.png").write_bytes((folder / "000.png").read_bytes()[:60])
    return folder


def kill_a_worker(checkpoints: Storage, after: int) -> int:
    """SIGKILL a worker once `after` steps are kept; the step of the newest checkpoint then."""
    import psutil  # type: ignore[import-untyped]  # Ray brings it along

    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        kept = max(checkpoint_epochs(checkpoints), default=0)
        if kept >= after:
            # Only children of this process: other Rays may run on the machine.
            for process in psutil.Process().children(recursive=True):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RayTrainWorker"):
                    process.send_signal(signal.SIGKILL)
                    return kept
        time.sleep(0.01)
    raise TimeoutError(f"no worker to kill after {after} steps")


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(
    ray_cluster: None, pictures: Path, tmp_path: Path
) -> None:
    index = str(tmp_path / "index")
    given = (
        f"index={index} features={tmp_path}/features workers=2 max_failures=1 model.bits=32 "
        "model.nbits=4 model.dim=16 model.components=16 model.neighbours=10 model.epochs=1 "
        f"finetune.source.kind=folder finetune.source.uri={pictures} finetune.blocks=1 "
        "finetune.backbone.image_size=32 finetune.epochs=3 finetune.batch_size=16 "
        f"finetune.shuffle=32 finetune.checkpoint_every={EVERY}"
    )
    config = load_settings(TrainSettings, None, given.split())
    checkpoints = Storage(f"{config.run_uri}/pixels/checkpoints")
    with ThreadPoolExecutor(1) as pool:
        kill = pool.submit(kill_a_worker, checkpoints, 3 * EVERY)
        card = train_from(config)
        kept = kill.result()
    assert kept < 10, "it was to be killed within the first epoch"
    newest = latest_checkpoint(checkpoints)
    assert newest is not None
    # Each step is in the history once: none that was kept was done again, none is missing.
    assert [entry["step"] for entry in newest.history] == list(range(EVERY, 31, EVERY))
    finished = [entry["finished"] for entry in newest.history]
    assert finished == sorted(finished)

    assert Storage(index).exists(f"backbones/{card.preprocessing['sha256']}.safetensors")
    source = SourceSettings(kind="folder", uri=str(pictures))
    made = encode(EncodeSettings(index=index, model=card.digest, source=source))
    assert (made["rows"], made["rejected"]) == (IMAGES, 1)
    assert train_from(config).digest == card.digest
