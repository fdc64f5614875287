"""Towers that turn words into features: of the same network as the images, or of sentences alone.

`OnnxText` is a graph with a `tokenizer.json`; `images.torch_backbone` has those of libraries.
"""

import hashlib
import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dq_cluster.errors import ConfigError, InputError
from dq_cluster.images.weights import required

_NEEDS = "pip install 'dq-cluster[words]'"


class TextTower(Protocol):
    """Words to features of unit length.

    max_tokens: how much of a text the network reads, with the marks of its beginning and end.
    """

    max_tokens: int

    def features(self, texts: Sequence[str], *, cut: bool = False) -> np.ndarray:
        """(n, dim) float32. Raises InputError for a text of more tokens, unless it is to be cut."""

    def tokens(self, text: str) -> int:
        """How many tokens a text has, with the marks."""


def clean(text: str) -> str:
    """A text as a tower reads it: composed characters (NFC), no control characters.

    What is not a character of its own but joins others (in emoji, in right-to-left text) stays.
    Raises InputError for a text without a word, and for halves of characters.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text: character {error.start} is half a character (a lone surrogate); send UTF-8"
        ) from None
    kept = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    kept = " ".join(unicodedata.normalize("NFC", kept).split())
    if not any(unicodedata.category(c)[0] in "LNSPM" for c in kept):
        raise InputError("text is empty: say in words what to look for")
    return kept


def check_length(texts: Sequence[str], counts: Sequence[int], most: int) -> None:
    """Raise InputError for the first text that is longer than the network reads."""
    for text, count in zip(texts, counts, strict=True):
        if count > most:
            raise InputError(
                f"the text of {len(text):,} characters is {count:,} tokens, and this model reads "
                f"{most}; shorten it"
            )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) scaled to length one; a zero stays."""
    vectors = vectors.astype(np.float32, copy=False)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


class OnnxText:
    """A text network as an ONNX graph, with the `tokenizer.json` of the library tokenizers.

    Outputs of tokens are averaged over the text; the output `text_embeds`, or the first of two
    dimensions, is taken as it is.
    """

    def __init__(
        self, graph: Path, tokenizer: Path, *, max_tokens: int | None = None, threads: int = 0
    ) -> None:
        import onnxruntime as ort

        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigError(f"text needs the package tokenizers: {_NEEDS}") from None
        words = required(tokenizer, "the file of the tokenizer that belongs to the text network")
        required(graph, "the ONNX file of the text network")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._tokenizer = Tokenizer.from_file(str(words))
        except Exception as error:
            raise InputError(f"{words} is not a tokenizer.json: {error}") from None
        try:
            self._session = ort.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InputError(f"{graph} is not a usable ONNX file: {error}") from None
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        unknown = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise InputError(
                f"{graph} wants {', '.join(sorted(unknown))}; a text has no such thing"
            )
        length = self._inputs["input_ids"].shape[1]
        fixed = length if isinstance(length, int) else None
        cut = (self._tokenizer.truncation or {}).get("max_length")
        padding = self._tokenizer.padding or {}
        self.max_tokens = max_tokens or fixed or cut or padding.get("length") or 77
        # Without a mask, the network was trained on texts that are all padded to one length.
        masked = "attention_mask" in self._inputs
        self._fixed = fixed or (None if masked else padding.get("length") or self.max_tokens)
        self._pad = padding.get("pad_id", 0)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._output = _output_of(self._session, "text_embeds")
        self.sha256 = hashlib.sha256(graph.read_bytes() + words.read_bytes()).hexdigest()

    def tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)

    def features(self, texts: Sequence[str], *, cut: bool = False) -> np.ndarray:
        rows = [each.ids for each in self._tokenizer.encode_batch(list(texts))]
        if not cut:
            check_length(texts, [len(row) for row in rows], self.max_tokens)
        # What ends a text is its last token: it stays when the text is cut.
        rows = [
            row if len(row) <= self.max_tokens else [*row[: self.max_tokens - 1], row[-1]]
            for row in rows
        ]
        width = self._fixed or max(map(len, rows))
        ids = np.full((len(rows), width), self._pad, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds = {
            name: given[name].astype(np.int32) if "int32" in entry.type else given[name]
            for name, entry in self._inputs.items()
        }
        (output,) = self._session.run([self._output], feeds)
        if output.ndim == 3:
            weight = mask[:, :, None].astype(np.float32)
            output = (output * weight).sum(1) / weight.sum(1)
        return unit(output)


def _output_of(session: Any, preferred: str) -> str:
    names = [entry.name for entry in session.get_outputs()]
    return preferred if preferred in names else names[0]


class TokenizerLock:
    """Tokenizers of transformers change themselves while they work: one thread at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._lock = tokenizer, threading.Lock()

    def __call__(self, texts: Sequence[str], **options: Any) -> Any:
        with self._lock:
            return self._tokenizer(list(texts), **options)
