"""A pre-trained network that turns inputs into feature vectors."""

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
"""Width at which the table's learning rates for text apply; narrower networks take larger steps."""


class Backbone(nn.Module):
    """A network that turns inputs into features [B, width].

    Attributes:
        hf: Model of transformers, or any module that returns features [B, width].
        architecture: Its entry in the table of architectures.
        feature: Description of the feature.
        width: Dimensions of a feature.
        preprocess: Preprocessing of samples; None if the inputs are ready.
        source: Folder, hub id or class, for messages and the run's summary.
    """

    _cached_fingerprint: str | None = None
    """Fingerprint inside `constant_weights`."""

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
        """Return the feature of each sample."""
        if self.pooling is None:
            output = self.hf(inputs)
            return output if isinstance(output, Tensor) else self._refuse_output(output)
        if isinstance(inputs, Tensor):
            output, mask = self.hf(inputs), None
        else:
            output, mask = self.hf(**inputs), inputs.get("attention_mask")
        if self.pooling.modes == ("pooler",):
            return torch.flatten(output.pooler_output, 1)
        return pool(output.last_hidden_state, mask, self.pooling, getattr(self.hf.config, "norm_eps", 1e-5))

    def _refuse_output(self, output: object) -> Tensor:
        raise TypeError(f"the module must return a tensor [B, {self.width}], not {type(output).__name__}")

    @property
    def learning_rate(self) -> float:
        """Recommended learning rate of full fine-tuning by AdamW with warm-up, in batches of 64.

        For text it is inversely proportional to the width.
        """
        rate = self.architecture.learning_rate
        return rate * _TEXT_WIDTH / self.width if self.architecture.kind == "text" else rate

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the current weights, the feature and the configuration."""
        if self._cached_fingerprint is not None:
            return self._cached_fingerprint
        digest = hashlib.sha256(f"{self.architecture.model_type} {self.feature} {self.pooling}".encode())
        config = getattr(self.hf, "config", None)
        if config is not None:
            items = config.to_dict().items()
            settings = {k: v for k, v in items if not k.startswith("_") and k not in _IGNORED_KEYS}
            digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        else:
            digest.update(repr(self.hf).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()

    @contextmanager
    def constant_weights(self) -> Iterator[None]:
        """Compute the fingerprint once for the block, inside which the weights must not change.

        It takes seconds for a large network.
        """
        before, self._cached_fingerprint = self._cached_fingerprint, self.fingerprint
        try:
            yield
        finally:
            self._cached_fingerprint = before

    def save(self, folder: Path) -> None:
        """Write a folder that `open_backbone` opens as the same function.

        A pooling other than the architecture's own is written in the form of sentence-transformers.
        """
        self.hf.save_pretrained(folder)  # type: ignore[operator]  # only models of transformers come here
        self.save_preprocess(folder)
        if self.pooling is not None and self.pooling != self.architecture.pooling:
            _write_sentence_transformer(folder, self.pooling, self.width // len(self.pooling.modes))

    def save_preprocess(self, folder: Path) -> None:
        """Write `preprocessor_config.json`, or the tokenizer with its length."""
        if isinstance(self.preprocess, ImagePreprocess):
            _write_json(folder / "preprocessor_config.json", self.preprocess.to_config())
        elif isinstance(self.preprocess, TextPreprocess):
            text = self.preprocess
            text.tokenizer.model_max_length = text.max_length
            text.tokenizer.save_pretrained(folder)
            limits = {"max_seq_length": text.max_length, "do_lower_case": text.lowercase}
            _write_json(folder / "sentence_bert_config.json", limits)


_IGNORED_KEYS = {"transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "num_labels"}
"""Entries of a configuration that do not change the function."""


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
"""Keys of sentence-transformers by our modes, in its order of concatenation."""
