"""Train DeepQuan on features with Ray Train and publish the model in the index.

ray job submit --working-dir . -- python jobs/train.py --config configs/cluster/train.yaml
"""

import sys

from dq_cluster.cli import main

main(["train", *sys.argv[1:]])
