"""Time and memory of planning: what 100,000,000 images cost the driver.

    python benchmarks/plan.py [--images 100000000] [--output FILE]

Plans a generated listing, no images needed, in processes of growing size, and reads fragments
back as an encoder does. Peak memory must not grow with the plan.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dq_cluster.encoding.plan import PlanReader, make_plan
from dq_cluster.images.units import Unit
from dq_cluster.index.sizing import FRAGMENT_ROWS
from dq_cluster.storage import Storage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", action="store_true", help="plan --images only, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_plan(arguments.images)))
        return
    results = []
    for count in (arguments.images // 100, arguments.images // 10, arguments.images):
        command = [sys.executable, __file__, "--one", "--images", str(count)]
        results.append(json.loads(subprocess.check_output(command)))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def _plan(images: int) -> dict[str, float]:
    # Sizes and times as they scatter: what they cost on disk is part of the answer.
    units = (
        Unit(
            f"pictures/{n // 10_000:06d}/{n:012d}.jpg",
            size=20_000 + n * 7919 % 80_000,
            stamp=1_700_000_000_000_000_000 + n * 6_700_417 % (1 << 50),
        )
        for n in range(images)
    )
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        before = _peak_mib()
        started = time.perf_counter()
        plan = make_plan(storage, "run", units, fragment_rows=FRAGMENT_ROWS)
        planned = time.perf_counter()
        reader = PlanReader(storage, plan)
        for fragment in (0, plan.fragments // 2, plan.fragments - 1):
            assert reader.fragment(fragment)[0].path.endswith(
                f"{fragment * FRAGMENT_ROWS:012d}.jpg"
            )
        return {
            "images": images,
            "fragments": plan.fragments,
            "seconds": planned - started,
            "read_three_fragments_seconds": time.perf_counter() - planned,
            "peak_mib_over_start": _peak_mib() - before,
            "plan_bytes_per_image": storage.size(plan.path) / images,
        }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
