"""What an encoder writes, without Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dq_cluster.encoding.outputs import CodeOutput
from dq_cluster.index.codefile import code_matrix, open_code_file
from dq_cluster.model import quantizer
from dq_cluster.model.bundle import load_model
from dq_cluster.storage import Storage
from tests.support import FEATURE_DIM, make_model, make_vectors


def test_both_codes_of_a_row_are_written(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    card = make_model(str(tmp_path), refine_bits=64)
    output = CodeOutput(storage, card.digest, "data/run", False, (), 64, 1)
    features = make_vectors(50, FEATURE_DIM)
    encoder = output.open()
    entry = encoder.write(0, pa.table({"id": np.arange(50)}), encoder(features))
    with open_code_file(storage, entry, model=card.digest, geometry=card.geometry) as file:
        table = file.read().combine_chunks()
    assert table.column_names == ["id", "code", "refine_code"]
    network, _ = load_model(storage, card.digest)
    embedding = network.embed(torch.from_numpy(features))
    second = card.geometry.refine
    assert second is not None
    for name, geometry, expected in (
        ("code", card.geometry, network.assign(embedding)),
        ("refine_code", second, quantizer.assign(embedding, network.refine_codebooks)),
    ):
        codes = code_matrix(table.column(name).combine_chunks(), geometry.code_size)
        np.testing.assert_array_equal(codes, expected.numpy())
