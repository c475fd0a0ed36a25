"""Which number format and memory layout the network computes in: measured on this machine, never assumed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cleantune.data.model_inputs import to_device
from cleantune.errors import UserError, did_you_mean
from cleantune.features.benchmark import matmul_gain, race
from cleantune.storage.files import read_json, write_json
from cleantune.utils import cpu

Dtype = Literal["float32", "bfloat16"]
SETTINGS = ("auto", "float32", "bfloat16")

_BFLOAT16_GAIN = {False: 1.25, True: 1.05}
"""bfloat16 costs digits: it must be this much faster to be chosen; less so in training, whose noise is far larger."""
_LAYOUT_GAIN = 1.05
"""The layout costs nothing, but a tie shall fall to the same side every time."""
_SECONDS_A_PASS = {False: 0.1, True: 0.25}
"""The probe's batch is cut so that one pass takes about this long; of training longer, since with few samples the casts
of the weights hide what bfloat16 gains."""
_ROWS_A_STEP = 64
"""Training is timed with no more samples than learn at a time: more would show a gain that they do not have."""
_SHARE = 0.05
"""Of the time of all samples, which rounds of timing may take."""


@dataclass(frozen=True)
class Precision:
    """A number format for the backbone and a memory layout for images."""

    dtype: Dtype = "float32"
    channels_last: bool = False
    why: str = "not measured"
    """The reason in words, for the run's summary."""
    backend: Literal["torch", "openvino"] = "torch"
    """The program that makes features; what learns is always torch."""
    streams: int = 1
    """Batches that OpenVINO computes at a time."""
    compiled: bool = False
    """Whether torch compiles the backbone when it first learns (`compiling`)."""

    def autocast(self, device: str = "cpu") -> contextlib.AbstractContextManager[object]:
        """A context in which the backbone computes in this format."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16)

    @property
    def words(self) -> str:
        """For the console."""
        layout = ", channels last" if self.channels_last and self.backend == "torch" else ""
        return f"by {self.backend} in {self.dtype}{layout}{', compiled' if self.compiled else ''}"

    @property
    def fingerprint(self) -> str:
        """What of it decides the bits of a feature."""
        if self.backend == "openvino":
            return f"{self.dtype} openvino"
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{self.dtype} {layout}{' compiled' if self.compiled else ''}"


def probe_precision(
    backbone: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    setting: str = "auto",
    *,
    training: bool = False,
    layout: bool | None = None,
    count: int | None = None,
    memory: Path | None = None,
) -> Precision:
    """The fastest precision for a backbone on its device, by a timing of one or two seconds.

    Timings waver. So what is slower or about as fast as plain float32 is never chosen, and a choice that was
    written to `memory` is read from there ever after: the same machine then gives the same bits.

    Args:
        backbone: In the layout and on the device in which it will run; it is left as it was.
        inputs: An example batch, on the CPU or there; a part of it is used where the machine is slow.
        setting: `auto`, or a format to be taken as given, for which only the layout is measured.
        training: Time forward and backward in place of forward alone.
        layout: Whether channels come last, where that is settled; None: it is measured.
        count: Samples that will pass at least: timing ends early where it would take more than a twentieth of their
            time in plain float32. None: they are many.
        memory: A folder where choices are kept, by processor, network and input shape.

    Raises:
        UserError: An unknown setting.
    """
    if setting not in SETTINGS:
        raise UserError(f'unknown precision "{setting}"{did_you_mean(setting, SETTINGS)}')
    asked = setting if layout is None else f"{setting} {layout}"
    path = memory / f"{question(backbone, inputs, asked, training)}.json" if memory is not None else None
    if path is not None and path.is_file():
        return Precision(**read_json(path))
    chosen = _measured(backbone, inputs, setting, training, layout, count)
    if path is not None:
        write_json(path, asdict(chosen))
    return chosen


def _measured(
    backbone: nn.Module,
    inputs: Tensor | Mapping[str, Tensor],
    setting: str,
    training: bool,
    layout: bool | None,
    count: int | None,
) -> Precision:
    where = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    inputs = _head(inputs, _ROWS_A_STEP) if training else inputs
    inputs, device = _part(backbone, to_device(inputs, where), training), where.type
    dtypes = formats(setting, device)
    slow = ""
    if setting == "auto" and "bfloat16" not in dtypes:
        slow = f"bfloat16 matmul runs at {matmul_gain(device):.2g} of float32's speed on this processor"
    image = isinstance(inputs, Tensor) and inputs.dim() == 4
    layouts = (False,) if not image else (False, True) if layout is None else (layout,)
    candidates = [Precision(d, last, "") for last in layouts for d in dtypes]
    handicapped = partial(handicap, training)
    share = math.inf if count is None else _SHARE * _SECONDS_A_PASS[training] * count / _count(inputs)
    runs = {c: _pass(backbone, inputs, c, training) for c in candidates}
    seconds = race(runs, handicap=handicapped, seconds=share)
    best = min(seconds, key=lambda p: seconds[p] * handicapped(p))
    plain = candidates[0]
    words = f"{best.fingerprint} takes {seconds[best] / seconds[plain]:.2f} of the time of {plain.fingerprint}"
    given = "as set; " if setting != "auto" else ""
    return Precision(best.dtype, best.channels_last, given + (slow + "; " if slow else "") + words)


def seconds_a_sample(
    backbone: nn.Module, inputs: Tensor | Mapping[str, Tensor], precision: Precision, few: float = 0.0
) -> float:
    """What torch takes for the features of one sample, by passes that grow to a tenth of a second.

    With few samples, what a pass costs whatever it carries hides what a sample costs; so it is no more than a small
    pass says, and where that is no more than `few`, which is all that is asked, no larger one follows.
    """
    total = _count(inputs)
    for count in (*(n for n in (2, 32) if n < total), total):
        run = _pass(backbone, _head(inputs, count), precision, False)
        seconds = race({None: run}, rounds=1)[None]
        if seconds > _SECONDS_A_PASS[False] or seconds <= few * count:
            break
    return seconds / count


def formats(setting: str, device: str) -> list[Dtype]:
    """The number formats that a setting leaves to be timed on a device; bfloat16 only where it multiplies as fast."""
    if setting == "auto":
        return ["float32", "bfloat16"] if matmul_gain(device) >= 1 else ["float32"]
    return ["bfloat16"] if setting == "bfloat16" else ["float32"]


def handicap(training: bool, precision: Precision) -> float:
    """What the seconds of a precision are multiplied by before they are compared."""
    gain = _BFLOAT16_GAIN[training] if precision.dtype == "bfloat16" else 1.0
    return gain * (_LAYOUT_GAIN if precision.channels_last else 1)


def _pass(
    backbone: nn.Module, inputs: Tensor | Mapping[str, Tensor], precision: Precision, training: bool
) -> Callable[[], object]:
    """One pass through the backbone in a precision, for timing."""
    layout = torch.channels_last if precision.channels_last else torch.contiguous_format
    x = inputs.contiguous(memory_format=layout) if isinstance(inputs, Tensor) and inputs.dim() == 4 else inputs
    device = next((p.device.type for p in backbone.parameters()), "cpu")
    weights = {
        name: (p.detach().contiguous(memory_format=layout) if p.dim() == 4 else p.detach()).requires_grad_(training)
        for name, p in backbone.named_parameters()
    }

    def once() -> object:
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training), precision.autocast(device):
            f = torch.func.functional_call(backbone, weights, (x,))
            return torch.autograd.grad(f.float().sum(), list(weights.values()), allow_unused=True) if training else f

    return once


def _part(backbone: nn.Module, inputs: Tensor | Mapping[str, Tensor], training: bool) -> Tensor | Mapping[str, Tensor]:
    """As many of the samples as plain float32 carries in the time of one pass, by the slope between two small passes.

    What a pass takes whatever it carries would else leave few samples, with which bfloat16 hardly gains.
    """
    few, total, wanted = min(2, _count(inputs)), _count(inputs), _SECONDS_A_PASS[training]
    more = min(4 * few, total)
    runs = {n: _pass(backbone, _head(inputs, n), Precision(), training) for n in (few, more)}
    seconds = race({few: runs[few]}, rounds=1)
    if seconds[few] >= wanted or more == few:
        return _head(inputs, max(1, min(total, int(few * wanted / seconds[few]))))
    seconds |= race({more: runs[more]}, rounds=1)
    slope = (seconds[more] - seconds[few]) / (more - few)
    start = max(seconds[more] - more * slope, 0.0)
    most = 4 * more * wanted / seconds[more]  # whatever the slope says: small passes waver
    return _head(inputs, max(1, min(total, int(min((wanted - start) / slope if slope > 0 else most, most)))))


def _count(inputs: Tensor | Mapping[str, Tensor]) -> int:
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def _head(inputs: Tensor | Mapping[str, Tensor], count: int) -> Tensor | Mapping[str, Tensor]:
    return inputs[:count] if isinstance(inputs, Tensor) else {name: value[:count] for name, value in inputs.items()}


def question(backbone: nn.Module, inputs: Tensor | Mapping[str, Tensor], setting: str, training: bool) -> str:
    """What the choice depends on, as a name. Not the number of threads: one process and its workers choose alike."""
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ("tokens",)
    weights = [(name, tuple(p.shape), str(p.device)) for name, p in backbone.named_parameters()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu.cpu_name()
    text = f"5 {device} {torch.__version__} {shape} {setting} {training} {weights}"
    return f"precision-{sha256(text.encode()).hexdigest()[:32]}"
