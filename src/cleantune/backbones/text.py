"""Text checkpoints: pooling and limits of a sentence-transformers folder, and the tokenizer."""

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
"""Most tokens of a text, unless the user sets a limit or that of the model is lower."""


class SentenceTransformersConfig(NamedTuple):
    """Settings of a sentence-transformers folder; of a plain transformers folder, none."""

    root: Path
    """Folder of the network itself."""
    pooling: Pooling | None
    """Pooling of the tokens; None: that of the architecture."""
    max_length: int | None
    """Most tokens of a text."""
    lowercase: bool
    """True if texts are lowercased before the tokenizer."""


def read_sentence_transformers_config(folder: Path) -> SentenceTransformersConfig:
    """Read `modules.json`, the pooling's file and `sentence_bert_config.json` of a folder.

    Raises:
        UserError: They ask for an unknown module or pooling.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return _read_limits(folder, None)
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
        pooling = Pooling(_read_modes(kinds[1][1] / "config.json"), norm="l2" if len(kinds) > 2 else "none")
    return _read_limits(kinds[0][1], pooling)


def _read_limits(root: Path, pooling: Pooling | None) -> SentenceTransformersConfig:
    path = root / "sentence_bert_config.json"
    config = read_json(path) if path.is_file() else {}
    lowercase = bool(config.get("do_lower_case", False))
    return SentenceTransformersConfig(root, pooling, config.get("max_seq_length"), lowercase)


def _read_modes(path: Path) -> tuple[Mode, ...]:
    config = read_json(path)
    names = config.get("pooling_mode")  # newer files name the modes, older ones have a switch for each
    if names is not None:
        names = [names] if isinstance(names, str) else list(names)
        modes = {"mean_sqrt" if name == "mean_sqrt_len_tokens" else name for name in names}
    else:
        keys = {f"pooling_mode_{key}": mode for mode, key in POOLING_KEYS.items()}
        modes = {keys.get(k, k) for k, v in config.items() if k.startswith("pooling_mode") and v}
    unknown = sorted(modes - set(POOLING_KEYS))
    if unknown or not modes:
        raise UserError(
            f"{path} of the model asks for the pooling {', '.join(unknown) or 'of nothing'}, but supported are "
            f"{', '.join(POOLING_KEYS)}: pass the model from Python as a module"
        )
    return tuple(cast(Mode, mode) for mode in POOLING_KEYS if mode in modes)


def read_text_preprocess(
    hf: nn.Module, settings: SentenceTransformersConfig, max_length: int | None
) -> TextPreprocess:
    """Read the tokenizer of a folder.

    Args:
        hf: Network, whose configuration limits the tokens.
        settings: Settings of the folder.
        max_length: Most tokens of a text; None: the model's own limit, at most `DEFAULT_MAX_LENGTH`.

    Raises:
        UserError: There is no usable tokenizer, or the network takes fewer tokens than `max_length`.
    """
    folder = settings.root
    with quiet_transformers():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # missing and damaged files raise many classes of exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"the model folder {folder} has no usable tokenizer ({reason}): fetch it again") from error
    config: Any = hf.config
    limit = int(getattr(config, "max_position_embeddings", 512))
    if config.model_type in ("roberta", "xlm-roberta", "mpnet"):
        limit -= int(config.pad_token_id) + 1  # positions are counted from the padding index on
    limit = min(limit, int(tokenizer.model_max_length), settings.max_length or limit)
    if max_length is not None and max_length > limit:
        raise UserError(f"the model {folder} takes at most {limit} tokens, but max_length is {max_length}")
    return TextPreprocess(tokenizer, max_length or min(limit, DEFAULT_MAX_LENGTH), lowercase=settings.lowercase)
