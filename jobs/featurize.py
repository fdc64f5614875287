"""Turn images into backbone features with Ray Data.

ray job submit --working-dir . -- python jobs/featurize.py --config configs/cluster/featurize.yaml
"""

import sys

from dq_cluster.cli import main

main(["featurize", *sys.argv[1:]])
