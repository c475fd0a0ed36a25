"""A pre-trained network as one thing: samples in, one feature vector of each out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.backbones.architectures import Architecture, Pooling, pool
from cleantune.backbones.preprocess import ImagePreprocess, Preprocess, TextPreprocess

_TEXT_WIDTH = 768
"""Width at which the table's learning rates for text hold; narrower networks take larger steps."""


class Backbone(nn.Module):
    """A network that turns inputs into features [B, width].

    Attributes:
        hf: The network itself: a model of transformers, or any module that returns [B, width].
        architecture: What is known of it.
        feature: What the feature is, in words.
        width: Length of a feature.
        preprocess: From samples to inputs; None where the inputs are ready as they come.
        source: Where it was opened, for messages and the run's summary.
    """

    _resting: str | None = None
    """The fingerprint, while the weights stay as they are."""

    def __init__(
        self,
        hf: nn.Module,
        architecture: Architecture,
        *,
        width: int,
        preprocess: Preprocess | None,
        source: str,
        pooling: Pooling | None = None,
        feature: str | None = None,
    ) -> None:
        super().__init__()
        self.hf = hf
        self.architecture = architecture
        self.width = width
        self.preprocess = preprocess
        self.source = source
        self.pooling = pooling
        self.feature = feature or architecture.feature

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Float[Tensor, "B D"]:
        """The feature of each sample."""
        if self.pooling is None:
            output = self.hf(inputs)
            return output if isinstance(output, Tensor) else self._refuse(output)
        if isinstance(inputs, Tensor):
            output, mask = self.hf(inputs), None
        else:
            output, mask = self.hf(**inputs), inputs.get("attention_mask")
        if self.pooling.modes == ("pooler",):
            return torch.flatten(output.pooler_output, 1)
        return pool(output.last_hidden_state, mask, self.pooling, getattr(self.hf.config, "norm_eps", 1e-5))

    def _refuse(self, output: object) -> Tensor:
        raise TypeError(f"the module must return a tensor [B, {self.width}], not {type(output).__name__}")

    @property
    def learning_rate(self) -> float:
        """Recommended for full fine-tuning by AdamW with warm-up, 64 samples a step; text: in inverse proportion to the
        width."""
        rate = self.architecture.learning_rate
        return rate * _TEXT_WIDTH / self.width if self.architecture.kind == "text" else rate

    @property
    def num_parameters(self) -> int:
        """Number of weights that learn in full fine-tuning."""
        return sum(p.numel() for p in self.parameters())

    @property
    def fingerprint(self) -> str:
        """sha256 over the weights as they are now, the feature and the configuration: what decides the features."""
        if self._resting is not None:
            return self._resting
        digest = hashlib.sha256(f"{self.architecture.model_type} {self.feature} {self.pooling}".encode())
        config = getattr(self.hf, "config", None)
        if config is not None:
            stated = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in _NOT_FUNCTION}
            digest.update(json.dumps(stated, sort_keys=True, default=str).encode())
        else:
            digest.update(repr(self.hf).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()

    @contextmanager
    def constant_weights(self) -> Iterator[None]:
        """Inside, nobody changes the weights: their fingerprint, seconds for a large network, is computed once."""
        before, self._resting = self._resting, self.fingerprint
        try:
            yield
        finally:
            self._resting = before

    def save(self, folder: Path) -> None:
        """Write a folder that `open_backbone` opens to the same function.

        A pooling other than the architecture's own is written as sentence-transformers writes it.
        """
        self.hf.save_pretrained(folder)  # type: ignore[operator]  # only models of transformers come here
        self.save_preprocess(folder)
        if self.pooling is not None and self.pooling != self.architecture.pooling:
            _write_sentence_transformer(folder, self.pooling, self.width // len(self.pooling.modes))

    def save_preprocess(self, folder: Path) -> None:
        """Write `preprocessor_config.json`, or the tokenizer with its length."""
        if isinstance(self.preprocess, ImagePreprocess):
            _write_json(folder / "preprocessor_config.json", self.preprocess.config())
        elif isinstance(self.preprocess, TextPreprocess):
            text = self.preprocess
            text.tokenizer.model_max_length = text.max_length
            text.tokenizer.save_pretrained(folder)
            stated = {"max_seq_length": text.max_length, "do_lower_case": text.lowercase}
            _write_json(folder / "sentence_bert_config.json", stated)


_NOT_FUNCTION = {"transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "num_labels"}
"""Entries of a configuration that do not change what the backbone computes."""


def _bytes(tensor: Tensor) -> memoryview:
    return np.asarray(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)).data


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_sentence_transformer(folder: Path, pooling: Pooling, width: int) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if pooling.norm == "l2":
        modules.append(("2_Normalize", "Normalize"))
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", rows)
    chosen = {f"pooling_mode_{key}": mode in pooling.modes for mode, key in POOLING_KEYS.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **chosen})


POOLING_KEYS = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt": "mean_sqrt_len_tokens"}
"""Our modes by the keys of sentence-transformers, in the order in which it concatenates."""
