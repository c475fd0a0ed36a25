"""Text checkpoints: what a sentence-transformers folder states beside the network, and the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from cleantune.backbones.architectures import Mode, Pooling
from cleantune.backbones.backbone import POOLING_KEYS
from cleantune.backbones.preprocess import TextPreprocess, read_json
from cleantune.backbones.transformers_logging import quiet_transformers
from cleantune.errors import UserError

DEFAULT_MAX_LENGTH = 128
"""Tokens of a text where neither the user nor a shorter limit of the model says otherwise."""


class SentenceTransformersConfig(NamedTuple):
    """What a folder says of its text network."""

    root: Path
    """Where the network itself is."""
    pooling: Pooling | None
    """None where nothing is said: then the architecture's own."""
    max_length: int | None
    lowercase: bool


def read_sentence_transformers_config(folder: Path) -> SentenceTransformersConfig:
    """What `modules.json`, the pooling's file and `sentence_bert_config.json` of a folder say.

    Raises:
        UserError: They ask for a module or a pooling that is not known here.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return _stated(folder, None)
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [(str(row["type"]).rsplit(".", 1)[-1], folder / str(row["path"])) for row in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} of the model cannot be read ({error!r}): fetch the model again") from error
    names = [name for name, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"], ["Transformer"]):
        raise UserError(
            f"{path} of the model lists {', '.join(names)}, but only Transformer, Pooling and Normalize can be opened: "
            "pass the model from Python as a module"
        )
    pooling = None
    if len(kinds) > 1:
        pooling = Pooling(_modes(kinds[1][1] / "config.json"), norm="l2" if len(kinds) > 2 else "none")
    return _stated(kinds[0][1], pooling)


def _stated(root: Path, pooling: Pooling | None) -> SentenceTransformersConfig:
    path = root / "sentence_bert_config.json"
    config = read_json(path) if path.is_file() else {}
    return SentenceTransformersConfig(
        root, pooling, config.get("max_seq_length"), bool(config.get("do_lower_case", False))
    )


def _modes(path: Path) -> tuple[Mode, ...]:
    config = read_json(path)
    named = config.get("pooling_mode")  # newer files name the modes, older ones switch each
    if named is not None:
        words = [named] if isinstance(named, str) else list(named)
        chosen = {"mean_sqrt" if w == "mean_sqrt_len_tokens" else w for w in words}
    else:
        keys = {f"pooling_mode_{key}": mode for mode, key in POOLING_KEYS.items()}
        chosen = {keys.get(k, k) for k, v in config.items() if k.startswith("pooling_mode") and v}
    unknown = sorted(chosen - set(POOLING_KEYS))
    if unknown or not chosen:
        raise UserError(
            f"{path} of the model asks for the pooling {', '.join(unknown) or 'of nothing'}, but known are "
            f"{', '.join(POOLING_KEYS)}: pass the model from Python as a module"
        )
    return tuple(cast(Mode, mode) for mode in POOLING_KEYS if mode in chosen)


def read_text_preprocess(hf: nn.Module, stated: SentenceTransformersConfig, max_length: int | None) -> TextPreprocess:
    """The tokenizer of a folder, cut at `max_length` or at what the folder says, 128 at most by default.

    Raises:
        UserError: No usable tokenizer, or more tokens asked for than the network takes.
    """
    folder = stated.root
    with quiet_transformers():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # a missing or damaged file shows in many classes of exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"the model folder {folder} has no usable tokenizer ({reason}): fetch it again") from error
    config: Any = hf.config
    limit = int(getattr(config, "max_position_embeddings", 512))
    if config.model_type in ("roberta", "xlm-roberta", "mpnet"):
        limit -= int(config.pad_token_id) + 1  # positions are counted from behind the padding index
    limit = min(limit, int(tokenizer.model_max_length), stated.max_length or limit)
    if max_length is not None and max_length > limit:
        raise UserError(f"the model {folder} takes at most {limit} tokens, but max_length is {max_length}")
    return TextPreprocess(tokenizer, max_length or min(limit, DEFAULT_MAX_LENGTH), lowercase=stated.lowercase)
