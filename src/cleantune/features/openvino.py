"""Which program turns samples into features: torch, or OpenVINO where it is installed, agrees and pays on this machine.

The number format that suits torch is chosen first (`precision`), then the program; OpenVINO may gain by bfloat16 where
torch does not. It reads pixels as they lie, bytes with the channels last, and normalizes them itself; it computes
several batches at a time (streams).
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.backbones import Backbone, ImagePreprocess, quiet_transformers
from cleantune.errors import UserError, did_you_mean
from cleantune.features.precision import (
    Dtype,
    Precision,
    formats,
    handicap,
    probe_precision,
    question,
    seconds_a_sample,
)
from cleantune.methods.protocol import Inputs
from cleantune.storage.files import read_json, write_json

Key = TypeVar("Key")

BACKENDS = ("auto", "torch", "openvino")
MICRO_BATCH = 16
"""Images of one inference; batches are cut so, which keeps activations in the processor's cache."""
PAYS = 5.0
"""Seconds that torch must take for all samples before a conversion is tried; one takes two to four if small."""
_GAIN = 1.1
"""OpenVINO must be this much faster, after `_ALONE`."""
MAX_REL_ERROR = {"float32": 1e-4, "bfloat16": 1e-2}
"""Largest relative error of features beside torch's: the difference's length over the features' length."""
_TRUSTED = {"float32": 1e-3, "bfloat16": 0.05}
"""A network whose features differ by more was not converted rightly. Roundings in bfloat16 add up over the fifty
convolutions of a MobileNetV2 to two percent between the programs, and to 16 from float32 in either."""
_SECONDS_A_ROUND = 0.2
"""Of timing."""
_ALONE = 1.25
"""What passes on all cores as one, torch or a single stream, must be this much faster than a stream a core: what runs
beside it, decoding or another's program, holds up all of them."""
_KEPT = 4
"""Compiled networks that stay in memory."""
_compiled: OrderedDict[tuple[object, ...], OpenVINOEncoder] = OrderedDict()


def installed() -> bool:
    """Whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def openvino() -> Any:
    """The package, its telemetry off: without the module that sends, it takes a stub of its own."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as package

    return package


class OpenVINOEncoder:
    """A backbone as OpenVINO computes it."""

    def __init__(self, backbone: Backbone, example: Inputs, precision: Precision, model: Any = None) -> None:
        """Convert and compile.

        Args:
            backbone: In evaluation mode, on the CPU.
            example: A batch of uint8 pixels [B, 3, H, W], of ready inputs, or of tokens.
            precision: Format and number of streams.
            model: What `converted` made of both, where it is compiled more than once.
        """
        self.width = backbone.width
        self.image = isinstance(example, Tensor) and example.dim() == 4
        self.grain = MICRO_BATCH if isinstance(example, Tensor) else 0
        hint = {"float32": "f32", "bfloat16": "bf16"}[precision.dtype]
        threads = torch.get_num_threads()
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": str(precision.streams),
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        ov = openvino()
        self.network = ov.Core().compile_model(model or converted(backbone, example), "CPU", settings)
        self.queue = ov.AsyncInferQueue(self.network, precision.streams + 1)
        self.queue.set_callback(_keep)

    def stream(self, items: Iterable[tuple[Key, Inputs]]) -> Iterator[tuple[Key, Float[Tensor, "B D"]]]:
        """Features of batches, in their order; the next ones are computed while one is in use."""
        begun: deque[tuple[Key, np.ndarray, int, list[int]]] = deque()
        for key, x in items:
            out = np.empty((len(_rows(x)), self.width), np.float32)
            parts, kept = 0, []  # type: ignore[var-annotated]
            for start, feed in self._feeds(x, len(out)):
                self.queue.start_async(feed, (out, start, kept))
                parts += 1
            begun.append((key, out, parts, kept))
            while begun and len(begun[0][3]) == begun[0][2]:
                yield begun[0][0], torch.from_numpy(begun.popleft()[1])
        self.queue.wait_all()
        for key, out, _, _ in begun:
            yield key, torch.from_numpy(out)

    def _feeds(self, x: Inputs, count: int) -> Iterator[tuple[int, dict[Any, np.ndarray]]]:
        """What each inference gets, and from which row of the batch on; the last one is filled up with zeros."""
        if not isinstance(x, Tensor):
            yield 0, {name: np.ascontiguousarray(value.numpy()) for name, value in x.items()}
            return
        rows = np.ascontiguousarray((x.permute(0, 2, 3, 1) if self.image else x).numpy())
        for start in range(0, count, self.grain):
            part = rows[start : start + self.grain]
            if len(part) < self.grain:
                part = np.concatenate([part, np.zeros((self.grain - len(part), *part.shape[1:]), part.dtype)])
            yield start, {0: part}


def _keep(request: Any, place: tuple[np.ndarray, int, list[int]]) -> None:
    """Copy what an inference gave to its place, and note that it is there."""
    out, start, kept = place
    part = out[start:]
    found = request.get_output_tensor(0).data[: len(part)]
    part[: len(found)] = found
    kept.append(start)


class _Plain(nn.Module):
    """A backbone whose inputs are tensors, as a tracer wants them."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone


class _Pixels(_Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x).float()  # type: ignore[no-any-return]


class _Tokens(_Plain):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.backbone({"input_ids": input_ids, "attention_mask": attention_mask}).float()  # type: ignore[no-any-return]


def converted(backbone: Backbone, example: Inputs) -> Any:
    """The network in OpenVINO's form, for batches as they lie in memory; of `MICRO_BATCH` samples, or of any number of texts.

    Args:
        backbone: On the CPU; it is put into evaluation mode.
        example: As of `OpenVINOEncoder`.
    """
    model = _traced(backbone, example)
    if not isinstance(example, Tensor):
        return model
    model.reshape([MICRO_BATCH, *example.shape[1:]])
    if example.dim() != 4:
        return model
    return _reads_as_it_lies(model, backbone.preprocess if example.dtype == torch.uint8 else None)


def _traced(backbone: Backbone, example: Inputs) -> Any:
    """The network as it runs on two samples; tracing it again to compare takes half the time, and `_error` compares."""
    ov = openvino()
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    if isinstance(example, Tensor):
        module: nn.Module = _Pixels(backbone)
        given: Any = torch.zeros(2, *example.shape[1:])
    else:
        module = _Tokens(backbone)
        given = tuple(example[name][:2].clone() for name in ("input_ids", "attention_mask"))
    with quiet_transformers(), torch.no_grad():
        decoder = TorchScriptPythonDecoder(module.eval(), example_input=given, trace_kwargs={"check_trace": False})
        return ov.convert_model(decoder)


def _reads_as_it_lies(model: Any, preprocess: Any) -> Any:
    """The network with channels-last inputs; given a preprocessing, of bytes that it normalizes itself.

    A row of pixels is normalized as one vector of 3 W numbers: with the three channels innermost, as OpenVINO's own
    preprocessing has them, a vector instruction would do three.
    """
    ov = openvino()
    old = model.input(0).get_node()
    count, channels, height, width = old.get_output_shape(0)
    raw = isinstance(preprocess, ImagePreprocess)
    new = ov.op.Parameter(ov.Type.u8 if raw else ov.Type.f32, ov.Shape([count, height, width, channels]))
    x, ops = new, ov.opset13
    if raw:
        mean, std = (np.tile(np.float32(value) / np.float32(preprocess.scale), width)
                     for value in (preprocess.mean, preprocess.std))  # fmt: skip
        x = ops.convert(ops.reshape(x, np.array([count, height, width * channels]), False), np.float32)
        x = ops.multiply(ops.subtract(x, ops.constant(mean[None, None])), ops.constant(1 / std[None, None]))
        x = ops.reshape(x, np.array([count, height, width, channels]), False)
    x = ops.transpose(x, np.array([0, 3, 1, 2]))
    old.output(0).replace(x.output(0))
    model.add_parameters([new])
    model.remove_parameter(old)
    model.validate_nodes_and_infer_types()
    return model


def compiled(backbone: Backbone, example: Inputs, precision: Precision, model: Any = None) -> OpenVINOEncoder:
    """The backbone compiled for inputs of this form; the last few are remembered by their weights."""
    form = (str(example.dtype), tuple(example.shape[1:])) if isinstance(example, Tensor) else ("tokens",)
    threads = torch.get_num_threads()
    key = (backbone.fingerprint, form, precision.dtype, precision.streams, threads)
    if key not in _compiled:
        _compiled[key] = OpenVINOEncoder(backbone, example, precision, model)
    _compiled.move_to_end(key)
    while len(_compiled) > _KEPT:
        _compiled.popitem(last=False)
    return _compiled[key]


def select_backend(
    backbone: Backbone,
    inputs: Inputs,
    *,
    precision: str = "auto",
    backend: str = "auto",
    count: int = 0,
    memory: Path | None = None,
    pixels: Tensor | None = None,
) -> Precision:
    """Number format, program and streams for the features of a frozen backbone, by a short probe.

    Args:
        backbone: On the device where it will run.
        inputs: An example batch.
        precision: `auto`, `float32` or `bfloat16`.
        engine: `auto`, or a program to be taken as given.
        count: Samples whose features are wanted; few are not worth a conversion.
        memory: A folder where choices are kept; they are read from there ever after.
        pixels: The same batch as uint8 [B, 3, H, W], where there is one.

    Raises:
        UserError: An unknown setting; or OpenVINO was asked for and is not installed, cannot take the network, or the
            network is on a GPU.
    """
    if backend not in BACKENDS:
        raise UserError(f'unknown engine "{backend}"{did_you_mean(backend, BACKENDS)}')
    known_choice = remembered(backbone, inputs, precision, backend, count, memory)
    if known_choice is not None:
        return known_choice
    path = _path(backbone, inputs, precision, backend, memory)
    seconds = _remembered(path)[1]
    plain = probe_precision(backbone, inputs, precision, count=count or None, memory=memory)
    if backend == "torch":
        return plain
    device = next((p.device.type for p in backbone.parameters()), "cpu")
    reason = "OpenVINO computes on the CPU, the model is on a GPU" if device != "cpu" else ""
    if not reason and not installed():
        reason = "OpenVINO is not installed: pip install 'cleantune[cpu]'"
    if backend == "openvino" and reason:
        raise UserError(f"--backend openvino: {reason}; or leave --backend out")
    if reason:
        return plain
    few = PAYS / max(count, 1) if backend == "auto" else 0.0
    if not 0 < seconds <= few:
        seconds = seconds_a_sample(backbone, inputs, plain, few)
        if seconds <= few:
            _remember(path, None, seconds)
    if seconds <= few:
        return plain
    fed = inputs if pixels is None else pixels
    # Where bfloat16 pays for torch it does for OpenVINO; the converse does not hold.
    dtypes: list[Dtype] = formats(precision, device) if plain.dtype == "float32" else [plain.dtype]
    chosen = _raced(backbone, fed, inputs, plain, dtypes, backend == "openvino", seconds)
    _remember(path, chosen, seconds)
    return chosen


def remembered(
    backbone: Backbone, inputs: Inputs, precision: str, backend: str, count: int, memory: Path | None
) -> Precision | None:
    """What `select_backend` would take from its memory alone, if anything; of the inputs, one sample will do."""
    chosen, seconds = _remembered(_path(backbone, inputs, precision, backend, memory))
    return chosen if backend != "auto" or seconds * count > PAYS else None


def _remember(path: Path | None, chosen: Precision | None, seconds: float) -> None:
    if path is not None:
        told = None if chosen is None else asdict(chosen)
        write_json(path, {"torch_seconds": seconds, "threads": torch.get_num_threads(), "chosen": told})


def _path(backbone: Backbone, inputs: Inputs, precision: str, backend: str, memory: Path | None) -> Path | None:
    if memory is None or backend == "torch":
        return None
    name = question(backbone, inputs, f"{precision} {backend}", False)
    return memory / f"{name.replace('precision', 'engine')}.json"


def _remembered(path: Path | None) -> tuple[Precision | None, float]:
    """An earlier choice, if a conversion ever paid, and the seconds that torch took for a sample; 0.0: not known.

    Threads do not matter for what is chosen, so that a process and its workers, which share them, choose alike; as many
    streams as threads stay so.
    """
    if path is None or not path.is_file() or not installed():
        return None, 0.0
    stored = read_json(path)
    if stored["chosen"] is None:
        return None, stored["torch_seconds"]
    chosen = Precision(**stored["chosen"])
    if chosen.backend == "openvino" and chosen.streams == stored["threads"]:
        chosen = replace(chosen, streams=torch.get_num_threads())
    return chosen, stored["torch_seconds"]


def _raced(
    backbone: Backbone, fed: Inputs, inputs: Inputs, plain: Precision, dtypes: list[Dtype], forced: bool, torchs: float
) -> Precision:
    """OpenVINO in these formats beside torch in the one that suits it, by the seconds a sample.

    Raises:
        UserError: OpenVINO was asked for and cannot take the network.
    """
    cores = torch.get_num_threads()
    begun = time.perf_counter()
    some = _first(fed, MICRO_BATCH if isinstance(fed, Tensor) else 64)
    few = _first(inputs, len(_rows(some)))
    seconds: dict[Precision, float] = {}

    def tried(dtype: Dtype, streams: int) -> None:
        way = replace(plain, backend="openvino", dtype=dtype, streams=streams)
        network = compiled(backbone, some, way, model)
        error = _error(backbone, network, some, few, way)
        if error <= _TRUSTED[dtype]:
            seconds[way] = _timed(network, some, streams)
        elif dtype == dtypes[-1] and not seconds:
            raise ValueError(f"its features differ from torch's by {error:.1%}")

    def costs(way: Precision) -> float:
        return seconds.get(way, torchs) * handicap(False, way) * (_ALONE if way.streams == 1 else 1)

    try:
        model = converted(backbone, some)
        for dtype in dtypes:
            tried(dtype, cores)
        if cores > 1:
            several = min(seconds, key=costs)
            tried(several.dtype, 1)
            if min(seconds, key=costs).streams == 1:  # which the others may owe to a worse moment
                again = _timed(compiled(backbone, some, several, model), some, cores)
                seconds[several] = min(seconds[several], again)
    except UserError:
        raise
    except Exception as error:  # a network that the converter does not know fails in many ways
        words = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        if forced:
            raise UserError(
                f"--backend openvino: this network cannot be converted ({words}); use --backend torch"
            ) from None
        return replace(plain, why=f"{plain.why}; OpenVINO cannot take this network ({words})")
    best = min(seconds, key=costs)
    ratio = seconds[best] / torchs
    took = time.perf_counter() - begun
    words = f"OpenVINO in {best.dtype} with {best.streams} streams takes {ratio:.2f} of torch's time, found out in"
    pays = costs(best) * _GAIN < costs(plain)
    return replace(best if forced or pays else plain, why=f"{plain.why}; {words} {took:.0f} s")


def _error(backbone: Backbone, network: OpenVINOEncoder, fed: Inputs, inputs: Inputs, way: Precision) -> float:
    """How far two samples' features are from torch's in the same format, relative to their length."""
    [(_, ours)] = network.stream([(0, fed)])
    with torch.inference_mode(), way.autocast():
        theirs = backbone(_first(inputs, 2)).float()
    return float((ours[:2] - theirs).norm() / theirs.norm().clamp(min=1e-12))


def rate(backbone: Backbone, fed: Inputs, precision: Precision) -> float:
    """Samples a second of OpenVINO on this batch."""
    some = _first(fed, MICRO_BATCH if isinstance(fed, Tensor) else 64)
    return 1 / _timed(compiled(backbone, some, precision), some, precision.streams)


def _timed(network: OpenVINOEncoder, some: Inputs, streams: int) -> float:
    """The best seconds a sample of up to three rounds in which every stream is busy.

    An inference of a small network ends within milliseconds, which say more about the neighbors: its rounds are
    longer. That of a large one lasts a second, and says enough.
    """
    best, turns, begun = float("inf"), 1, time.perf_counter()
    for _ in range(3):
        start = time.perf_counter()
        for _ in network.stream([(k, some) for k in range(turns * streams)]):
            pass
        took = time.perf_counter() - start
        best = min(best, took / (turns * streams * len(_rows(some))))
        if time.perf_counter() - begun > 4 * _SECONDS_A_ROUND:
            break
        turns = max(turns, min(64, int(turns * _SECONDS_A_ROUND / took)))
    return best


def _rows(x: Inputs) -> Tensor:
    return x if isinstance(x, Tensor) else next(iter(x.values()))


def _first(x: Inputs, count: int) -> Inputs:
    return x[:count] if isinstance(x, Tensor) else {name: value[:count] for name, value in x.items()}
