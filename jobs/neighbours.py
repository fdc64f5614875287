"""Find the nearest codes of every image of a version, or of a set of features, with Ray Data.

ray job submit --working-dir . -- python jobs/neighbours.py index=s3://… output=s3://…
"""

import sys

from dq_cluster.cli import main

main(["neighbours", *sys.argv[1:]])
