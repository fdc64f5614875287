"""Find groups of near-duplicates in a version, and delete all but one of each if asked.

ray job submit --working-dir . -- python jobs/duplicates.py index=s3://… output=s3://… within=…
"""

import sys

from dq_cluster.cli import main

main(["duplicates", *sys.argv[1:]])
