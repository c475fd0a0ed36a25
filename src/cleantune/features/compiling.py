"""torch.compile for a backbone that learns on a GPU: measured there, and taken where it pays for what it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from cleantune.backbones import Backbone
from cleantune.data.model_inputs import to_device
from cleantune.features.benchmark import race
from cleantune.features.precision import Precision, _count, question
from cleantune.methods.protocol import Inputs
from cleantune.storage.files import read_json, write_json

BACKEND = "inductor"
"""Of torch.compile."""
WORTH = 60.0
"""Seconds of an epoch from which on it is tried: compiling takes a minute or so, and its gain is a part of training."""
GAIN = 1.1
"""Compiled, a pass must be this much faster: other shapes, as of a last batch, are compiled anew."""


def compiled_where_it_pays(
    backbone: Backbone, inputs: Inputs, precision: Precision, samples: int, memory: Path | None = None
) -> Precision:
    """The same precision, compiled where a pass forward and backward is faster so by a timing.

    What cannot be compiled here (no C compiler, an operator that is not known) stays as it is, and `why` says so.

    Args:
        backbone: On its device; it is put into the precision's layout, else left as it was.
        inputs: An example batch on the CPU or there.
        precision: In which it will learn.
        samples: Of an epoch.
        memory: A folder where the answer is kept, as those of `probe_precision`.
    """
    inputs = to_device(inputs, next(p.device for p in backbone.parameters()))
    if precision.channels_last and isinstance(inputs, Tensor):
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    eager = _pass(backbone, backbone, inputs, precision)
    seconds = race({None: eager}, rounds=2)[None]
    if seconds / _count(inputs) * samples < WORTH:
        return precision  # whatever pays for longer epochs
    path = None
    if memory is not None:
        path = memory / f"{question(backbone, inputs, f'compiled {precision.fingerprint}', True)}.json"
        if path.is_file():
            return Precision(**read_json(path))
    chosen = _timed(backbone, inputs, precision, eager)
    if path is not None:
        write_json(path, asdict(chosen))
    return chosen


def _timed(backbone: Backbone, inputs: Inputs, precision: Precision, eager: Callable[[], object]) -> Precision:
    start = time.perf_counter()
    try:
        compiled = _pass(torch.compile(backbone, backend=BACKEND), backbone, inputs, precision)
        compiled()
    except Exception as error:  # of the compiler, the driver, a missing tool: each has a class of its own
        reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__  # who failed, and how
        return replace(precision, why=f"{precision.why}; not compiled ({reason})")
    took = time.perf_counter() - start
    seconds = race({"eager": eager, "compiled": compiled})
    share = seconds["compiled"] / seconds["eager"]
    words = f"{precision.why}; compiled it takes {share:.2f} of that, found out in {took:.0f} s"
    return replace(precision, compiled=share * GAIN < 1, why=words)


def _pass(
    run: Callable[[Inputs], Tensor], backbone: Backbone, inputs: Inputs, precision: Precision
) -> Callable[[], object]:
    """One pass forward and backward, which leaves no gradient behind."""
    weights = [p for p in backbone.parameters() if p.requires_grad]
    device = weights[0].device.type

    def once() -> object:
        with torch.enable_grad(), precision.autocast(device):
            f = run(inputs)
        return torch.autograd.grad(f.float().sum(), weights, allow_unused=True)

    return once
