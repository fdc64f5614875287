"""Show what is in a version: its cells as coarse groups, with sizes and samples.

ray job submit --working-dir . -- python jobs/groups.py index=s3://… output=s3://…
"""

import sys

from dq_cluster.cli import main

main(["groups", *sys.argv[1:]])
