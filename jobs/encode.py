"""Encode images or features into a new version of the index with Ray Data.

ray job submit --working-dir . -- python jobs/encode.py --config configs/cluster/encode.yaml
"""

import sys

from dq_cluster.cli import main

main(["encode", *sys.argv[1:]])
