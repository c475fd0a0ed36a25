"""Products of matrices in float32 on a CPU, by the library that uses all of the processor.

torch leaves them to MKL, which keeps its AVX-512 code for Intel's processors. On others that have AVX-512, oneDNN,
which comes with torch too, takes half the time (`dev/LOG.md`). Which of them it is follows from the processor alone, so
that every process on it gets the same bits.
"""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from cleantune.utils import cpu


def product(a: Float[Tensor, "N K"], b: Float[Tensor, "K M"]) -> Float[Tensor, "N M"]:
    """`a @ b` where nothing is to be differentiated; b is copied if neither its rows nor its columns lie together."""
    if a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and left_to_onednn():
        return _by_onednn(a, b)
    return a @ b


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    """By the operator that torch's compiler takes for a linear layer on a CPU."""
    turned = b.t()
    if not (b.is_contiguous() or turned.is_contiguous()):
        turned = turned.contiguous()  # columns cut out of a wider matrix take some thousand times as long
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(a, turned, None, "none", [], ""))


@cache
def left_to_onednn() -> bool:
    """Whether this processor has AVX-512, is not Intel's, and this torch has oneDNN with the operator."""
    known = cpu.cpu_info()
    if known.get("vendor_id", "GenuineIntel") == "GenuineIntel" or "avx512f" not in known.get("flags", "").split():
        return False
    try:
        return bool(_by_onednn(torch.ones(1, 2), torch.ones(2, 1)) == 2)
    except (AttributeError, RuntimeError):  # a torch without oneDNN, or with another form of the operator
        return False
