"""Sentence embeddings as sentence-transformers' encode makes them on a CPU.

If the package is installed, its own `encode` runs, otherwise the same steps: texts sorted by their number of
characters, longest first, batches of 32, padded to the longest, float32, mean over the real tokens, unit length.
"""

import torch


def encode(folder, texts):
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return _encode(folder, texts)
    return SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)


@torch.no_grad()
def _encode(folder, texts, batch_size=32):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    out = [None] * len(texts)
    for start in range(0, len(texts), batch_size):
        rows = order[start : start + batch_size]
        inputs = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=256, return_tensors="pt")
        tokens = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        sentences = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        for i, vector in zip(rows, torch.nn.functional.normalize(sentences, dim=1), strict=True):
            out[i] = vector
    return torch.stack(out)


def name():
    """Return the name of the implementation that `encode` uses."""
    try:
        from sentence_transformers import __version__
    except ImportError:
        return "the same steps without the package"
    return f"sentence-transformers {__version__}"
