"""Kill encoding at random, again and again, and count whether anything was lost or doubled.

    python -m benchmarks.chaos_encode [--kills 50] [--seed 0] [--images 2000]

SIGKILL of loading tasks, encoder actors, whole nodes, the driver, and the S3 server, and second
drivers on the same run, at random moments. After every run each input must be in the published
version exactly once or in its rejects exactly once; the first that is not ends the benchmark.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.encode_chaos import Arena
from tests.seaweed import S3Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=4000)
    arguments = parser.parse_args()
    started = time.monotonic()
    blows: Counter[str] = Counter()
    runs = 0
    with tempfile.TemporaryDirectory(prefix="dq-chaos-") as folder:
        server = S3Server(Path(folder) / "s3")
        server.start()
        os.environ.update(server.environment)
        arena = Arena(Path(folder), server, arguments.images, arguments.seed)
        try:
            while blows.total() < arguments.kills:
                blows += arena.storm(f"run-{runs}", arguments.kills - blows.total())
                runs += 1
        except BaseException:
            print((Path(folder) / "drivers.log").read_text()[-6000:])
            raise
        finally:
            arena.close()
            server.kill()
    result = {
        "kills": blows.total(),
        "blows": dict(blows),
        "drivers_that_gave_up": arena.gave_up,
        "runs": runs,
        "images_per_run": arguments.images,
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
