from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from dq_cluster.config import load_settings
from dq_cluster.errors import ConfigError, InputError, IntegrityError
from dq_cluster.evaluate.exact import directions
from dq_cluster.evaluate.metrics import recall_at_k
from dq_cluster.evaluate.variants import search_codes
from dq_cluster.model.bundle import load_model, save_model
from dq_cluster.model.config import ModelSettings
from dq_cluster.model.deepquan import DeepQuan
from dq_cluster.model.fit import embed_all, fit, prepare, start
from dq_cluster.storage import Storage

SMALL = {"dim": 16, "bits": 32, "hidden": (32,), "components": 24, "batch_size": 128, "epochs": 8}


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """600 points of 6 clusters in 48 dimensions."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(6, 48))
    return (centres[np.arange(600) % 6] + 0.6 * generator.normal(size=(600, 48))).astype("f4")


@pytest.fixture(scope="module")
def network(features: np.ndarray) -> DeepQuan:
    return fit(features, ModelSettings(**SMALL), seed=1)


@pytest.mark.parametrize("nbits", [8, 4])
@pytest.mark.parametrize("objective", ["semantic", "neighbours"])
def test_codes_are_packed_as_faiss_packs_them(
    features: np.ndarray, nbits: int, objective: str
) -> None:
    changed = {"nbits": nbits, "objective": objective, "epochs": 1}
    network = fit(features, ModelSettings(**{**SMALL, **changed}), seed=0)
    geometry = network.geometry
    pq = faiss.ProductQuantizer(geometry.dim, geometry.m, nbits)
    faiss.copy_array_to_vector(network.codebooks.numpy().ravel(), pq.centroids)
    x = torch.from_numpy(features)
    codes = network.encode(x)
    assert codes.dtype == torch.uint8
    assert codes.shape == (600, geometry.code_size)
    embedding = network.embed(x).detach()
    np.testing.assert_array_equal(pq.decode(codes.numpy()), network.quantize(embedding).numpy())
    nearest = pq.compute_codes(embedding.numpy())
    assert (objective == "neighbours") == np.array_equal(codes.numpy(), nearest)


def test_equal_arguments_give_equal_networks(features: np.ndarray, network: DeepQuan) -> None:
    again = fit(features, ModelSettings(**SMALL), seed=1)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=0, rtol=0, msg=name)


def test_seeds_and_code_lengths_share_what_is_prepared(
    features: np.ndarray, network: DeepQuan
) -> None:
    prepared = prepare(features, ModelSettings(**{**SMALL, "bits": 64, "nbits": 4, "epochs": 1}))
    again = fit(features, ModelSettings(**SMALL), seed=1, prepared=prepared)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=0, rtol=0, msg=name)


def test_the_rotation_moves_the_embedding_and_not_the_reconstruction(
    features: np.ndarray, network: DeepQuan
) -> None:
    copy = DeepQuan(network.settings, network.feature_dim)
    copy.load_state_dict(network.state_dict())
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    copy.rotation.copy_(network.rotation @ turn)
    x = torch.from_numpy(features)
    torch.testing.assert_close(copy.embed(x), network.embed(x) @ turn, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        copy.reconstruct(copy.embed(x)), network.reconstruct(network.embed(x)), atol=1e-4, rtol=0
    )


def test_views_teach_the_front_which_differences_do_not_matter() -> None:
    """Half of the variance is what views of one image differ by; the front must drop it."""
    generator = np.random.default_rng(0)
    identity = generator.normal(size=(800, 8)).astype("f4")

    def look() -> np.ndarray:
        return np.hstack([identity, 3 * generator.normal(size=(800, 8)).astype("f4")])

    settings = ModelSettings(**{**SMALL, "components": 6, "neighbours": 5})

    def nuisance(views: tuple[np.ndarray, np.ndarray] | None) -> float:
        network = DeepQuan(settings, 16)
        start(network, torch.from_numpy(look()), views)
        strength = network.components.square().sum(1)
        return float(strength[8:].sum() / strength.sum())

    assert nuisance(None) > 0.9
    assert nuisance((look(), look())) < 0.1


def test_features_of_another_dimension_are_refused(network: DeepQuan) -> None:
    with pytest.raises(InputError, match=r"\(n, 48\), found \(2, 47\)"):
        network.embed(torch.zeros(2, 47))


def test_saved_and_loaded_network_encodes_alike(
    tmp_path: Path, features: np.ndarray, network: DeepQuan
) -> None:
    storage = Storage(str(tmp_path))
    card = save_model(
        storage, network, preprocessing={"backbone": "none"}, training={}, evaluation={"map": 0.5}
    )
    loaded, found = load_model(storage, card.digest[:10])
    assert found == card
    assert loaded.settings == network.settings
    x = torch.from_numpy(features)
    assert torch.equal(loaded.encode(x), network.encode(x))

    name = f"models/{card.digest}/model.safetensors"
    storage.write(name, storage.read(name)[:-4] + b"\0\0\1\0")
    with pytest.raises(IntegrityError, match="hashes to"):
        load_model(storage, card.digest)


def test_training_reports_every_epoch(features: np.ndarray) -> None:
    summaries: list[dict[str, float]] = []
    settings = ModelSettings(**{**SMALL, "epochs": 3})
    network = fit(features, settings, 0, lambda epoch, summary: summaries.append(summary))
    assert len(summaries) == 3
    assert summaries[-1]["perplexity"] > 8
    z = embed_all(network, torch.from_numpy(features))
    assert summaries[-1]["variance"] == pytest.approx(float(z.var(0, correction=0).sum()), abs=1e-3)


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="multiple of nbits 8"):
        load_settings(ModelSettings, overrides=["bits=12"])
    with pytest.raises(ConfigError, match="m 3 is odd"):
        load_settings(ModelSettings, overrides=["bits=12", "nbits=4", "dim=48"])


def test_an_objective_sets_weights_that_explicit_ones_override() -> None:
    plain = ModelSettings(objective="neighbours")
    assert plain.distillation_weight == 1
    assert plain.triplet_weight == 0
    assert ModelSettings(objective="neighbours", triplet_weight=2).triplet_weight == 2
    assert plain.dim == 32
    second = ModelSettings(objective="neighbours", refine_bits=256)
    assert (second.dim, second.distillation_weight) == (64, 1)
    assert ModelSettings(objective="neighbours", refine_bits=256, dim=128).dim == 128


def test_views_do_not_change_what_the_neighbours_objective_keeps(features: np.ndarray) -> None:
    settings = ModelSettings(**{**SMALL, "objective": "neighbours", "hidden": (), "epochs": 1})
    views = features, features[::-1].copy()
    plain, shown = (prepare(features, settings, given) for given in (None, views))
    assert torch.equal(plain.components, shown.components)


def test_codes_of_the_neighbours_objective_find_more_neighbours_than_opq() -> None:
    generator = np.random.default_rng(5)
    latent = generator.normal(size=(2100, 16)) @ generator.normal(size=(16, 96))
    noisy = (latent + 2 * generator.normal(size=latent.shape)).astype("f4")
    features, queries = noisy[:2000], noisy[2000:]
    mean = features.mean(0)
    sought, asked = directions(features, mean), directions(queries, mean)
    exact = faiss.knn(asked, sought, 10, metric=faiss.METRIC_INNER_PRODUCT)[1]
    settings = ModelSettings(
        objective="neighbours",
        bits=32,
        nbits=4,
        components=64,
        neighbours=20,
        batch_size=100,
        epochs=20,
        learning_rate=2e-3,
    )
    found = search_codes(fit(features, settings, 0), features, queries, 10)
    opq = faiss.index_factory(96, "OPQ8_32,PQ8x4")
    opq.train(sought)
    opq.add(sought)
    baseline = recall_at_k(opq.search(asked, 10)[1], exact)
    assert recall_at_k(found, exact) > baseline + 0.02  # 0.52 and 0.46 when this was written


@pytest.mark.parametrize("batch_size", [600, 60])
def test_training_may_be_as_short_as_one_step(features: np.ndarray, batch_size: int) -> None:
    settings = ModelSettings(**{**SMALL, "epochs": 1, "batch_size": batch_size})
    assert torch.isfinite(fit(features, settings, 0).codebooks).all()


def test_too_few_features_to_have_neighbours(features: np.ndarray) -> None:
    with pytest.raises(InputError, match="more than 50 images"):
        fit(features[:50], ModelSettings(**SMALL), seed=0)
