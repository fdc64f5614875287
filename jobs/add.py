"""Append to an index the images of a pile whose ids it does not have.

ray job submit --working-dir . -- python jobs/add.py s3://my-bucket/images s3://my-bucket/index
"""

import sys

from dq_cluster.cli import main

main(["add", *sys.argv[1:]])
