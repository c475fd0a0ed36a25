"""torch.compile for a backbone that is fine-tuned, where the user asks for it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from cleantune.backbones import Backbone
from cleantune.data.model_inputs import to_device
from cleantune.errors import UserError
from cleantune.features.openvino import MAX_REL_ERROR
from cleantune.features.precision import Precision
from cleantune.methods.protocol import Inputs


def check_compiles(backbone: Backbone, inputs: Inputs, precision: Precision, backend: str = "inductor") -> None:
    """Check that the compiled backbone gives the features of the plain one in float32, but for rounding.

    Args:
        backbone: On its device; it is left as it is.
        inputs: Some samples.
        precision: Precision of fine-tuning.
        backend: Backend of torch.compile.

    Raises:
        UserError: The backbone cannot be compiled here, or its features differ.
    """
    device = next(p.device for p in backbone.parameters())
    x = to_device(inputs, device)
    compiled = copy.deepcopy(backbone)
    try:
        compiled.compile(backend=backend)
        with torch.enable_grad(), precision.autocast(device.type):
            features: Tensor = compiled(x)
    except Exception as error:  # each compiler, driver or missing tool has an exception of its own
        reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__
        raise UserError(f"--compile: the backbone cannot be compiled here ({reason}); leave --compile out") from error
    with torch.no_grad():
        expected = backbone(x).float()
    difference = float((features.detach().float() - expected).norm() / expected.norm().clamp(min=1e-12))
    if not difference <= MAX_REL_ERROR[precision.dtype]:
        raise UserError(f"--compile: features of the compiled backbone differ by {difference:.1%}; leave --compile out")
