"""Make an index of a pile of images: features of a sample, training, codes, quality.

ray job submit --working-dir . -- python jobs/build.py s3://my-bucket/images s3://my-bucket/index
"""

import sys

from dq_cluster.cli import main

main(["build", *sys.argv[1:]])
