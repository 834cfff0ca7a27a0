"""The tokenizer, and the training sentences as a table of token ids on the device."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from . import grammar
from .edits import EDITS

START, END = "<|startoftext|>", "<|endoftext|>"
STOPS = ("", ".", "!")


def train_tokenizer(vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE, lower case) trained on the grammar's training sentences.

    Every byte is in the vocabulary, so any text can be encoded. The result does not depend on chance.
    """
    reference = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=END))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = reference.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(alphabet) - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(_corpus()), trainer)
    return _as_clip(bpe, alphabet, max_tokens)


def _corpus() -> set[str]:
    return {item.text + stop for item in grammar.split(False) for stop in STOPS}


def _as_clip(bpe: Tokenizer, alphabet: list[str], max_tokens: int) -> CLIPTokenizer:
    """CLIP's vocabulary order: bytes, bytes at a word's end, merges, the two marks."""
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = alphabet + [byte + "</w>" for byte in alphabet] + ["".join(pair) for pair in merges]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids ``[n, model_max_length]`` int64, padded and cut as the diffusers pipeline does."""
    batch = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(batch["input_ids"])


@dataclass(frozen=True)
class PhraseTable:
    """All training sentences, grouped by edit and language, ready to be drawn on the device."""

    ids: Tensor  # [sentences, tokens] int64
    starts: Tensor  # [edits, languages] first row of a group
    sizes: Tensor  # [edits, languages] rows of a group
    empty: Tensor  # [tokens] the empty instruction

    @classmethod
    def build(cls, tokenizer: CLIPTokenizer, device: torch.device) -> PhraseTable:
        """Tokenize the training split, each sentence with and without final punctuation."""
        texts: list[str] = []
        starts, sizes = [], []
        for edit in EDITS:
            for language in grammar.LANGUAGES:
                known = [i.text for i in grammar.instructions(edit.name, language) if not i.is_held_out]
                group = [text + stop for text in known for stop in STOPS]
                starts.append(len(texts))
                sizes.append(len(group))
                texts += group
        shape = (len(EDITS), len(grammar.LANGUAGES))
        return cls(
            ids=encode(tokenizer, texts).to(device),
            starts=torch.tensor(starts, device=device).view(shape),
            sizes=torch.tensor(sizes, device=device).view(shape),
            empty=encode(tokenizer, [""])[0].to(device),
        )

    def draw(self, edits: Tensor) -> Tensor:
        """A random sentence for each edit id (``[n]``), either language: ``[n, tokens]``."""
        language = torch.randint(self.starts.shape[1], edits.shape, device=edits.device)
        sizes = self.sizes[edits, language]
        offset = (torch.rand(edits.shape, device=edits.device) * sizes).long().clamp_max(sizes - 1)
        return self.ids[self.starts[edits, language] + offset]
