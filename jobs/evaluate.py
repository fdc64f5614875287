"""Measure a version of an index against exact search.

ray job submit --working-dir . -- python jobs/evaluate.py --config configs/cluster/evaluate.yaml
"""

import sys

from dq_cluster.cli import main

main(["evaluate", *sys.argv[1:]])
