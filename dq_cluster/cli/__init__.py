"""The command line: `dq-cluster`, and the same workloads as scripts in `jobs/`."""

from dq_cluster.cli.main import main

__all__ = ["main"]
