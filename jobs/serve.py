"""Serve the query API of an index with Ray Serve, until interrupted.

ray job submit --working-dir . -- python jobs/serve.py --config configs/cluster/serve.yaml
"""

import sys

from dq_cluster.cli import main

main(["serve", *sys.argv[1:]])
