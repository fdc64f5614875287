"""Small networks for words, as ONNX files, and models that are asked in words."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tokenizers
import torch
from onnx import TensorProto, helper, numpy_helper

from dq_cluster.images.sentences import Sentences, SentenceSettings
from dq_cluster.model.words import WordsNetwork

WORDS = ("?", "cat", "dog", "boat", "red", "blue", "🐱", "کشتی")


def text_graph(path: Path, tokens: int, dim: int = 3, seed: int = 3) -> None:
    """An ONNX file that looks up a vector of `dim` numbers for each token."""
    table = np.random.default_rng(seed).normal(size=(tokens, dim)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "words",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n", "t"]),
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "t", dim])],
        [numpy_helper.from_array(table, "table")],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def save_tokenizer(path: Path, words: tuple[str, ...] = WORDS) -> None:
    """A `tokenizer.json` with a token for each word; the first stands for all others."""
    vocabulary = {word: number for number, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=words[0]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(path))


def sentence_settings(folder: Path) -> SentenceSettings:
    """A sentence encoder of `WORDS` in `folder`, which reads 12 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    text_graph(folder / "sentences.onnx", len(WORDS), 6)
    save_tokenizer(folder / "tokenizer.json")
    return SentenceSettings(kind="onnx", path=str(folder / "sentences.onnx"), max_tokens=12)


def make_words(folder: Path, dim: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """How a model reads words, for `save_model`: a network of random weights."""
    torch.manual_seed(2)
    network = WordsNetwork(6, dim, width=8)
    about = {
        "kind": "captions",
        "network": network.about,
        "sentences": Sentences(sentence_settings(folder)).about,
    }
    return about, {name: tensor.numpy() for name, tensor in network.state_dict().items()}
