"""DeepQuan against the classical codes, on the features of your own pile.

    python benchmarks/compare.py DATABASE QUERIES [--bits 16 32 64] [--seeds 0 1 2]

DATABASE and QUERIES are features as `dq-cluster featurize` writes them, with a column `label`;
the pairs of views in DATABASE shape DeepQuan's front. Prints a Markdown table, and every row as
soon as it is known on standard error.
"""

import argparse
import sys

import numpy as np

from dq_cluster.errors import InputError
from dq_cluster.evaluate.compare import METHODS, compare, to_markdown
from dq_cluster.images.features import open_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database")
    parser.add_argument("queries")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--max-queries", type=int, default=2000)
    parser.add_argument("--k", type=int, default=1000)
    arguments = parser.parse_args()

    database, queries = open_features(arguments.database), open_features(arguments.queries)
    if not (database.labelled and queries.labelled):
        raise InputError("a comparison needs a column 'label' in both feature sets")
    features = database.read(0, database.rows).astype(np.float32)
    views = None
    if database.viewed:
        chosen, other = database.views(0, database.rows)
        views = features[chosen], other.astype(np.float32)
    picked = np.random.default_rng(0).permutation(queries.rows)[: arguments.max_queries]
    rows = compare(
        features,
        database.labels(0, database.rows),
        queries.read(0, queries.rows)[picked].astype(np.float32),
        queries.labels(0, queries.rows)[picked],
        methods=arguments.methods,
        bits=arguments.bits,
        seeds=arguments.seeds,
        views=views,
        k=arguments.k,
        on_row=lambda row: print(row, file=sys.stderr, flush=True),
    )
    print(to_markdown(rows, arguments.k))


if __name__ == "__main__":
    main()
