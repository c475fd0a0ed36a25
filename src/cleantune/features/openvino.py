"""A frozen backbone as OpenVINO computes it on the CPU.

It reads pixels as bytes with the channels last, normalizes them inside the network, and computes several batches at a
time (streams).
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cleantune.backbones import Backbone, ImagePreprocess, quiet_transformers
from cleantune.features.precision import Dtype
from cleantune.methods.protocol import Inputs
from cleantune.utils.telemetry import import_openvino

Key = TypeVar("Key")

MICRO_BATCH = 16
"""Images of one inference; batches are split so, which keeps activations in the processor's cache."""
MAX_REL_ERROR = {"float32": 1e-3, "bfloat16": 0.25}
"""Largest relative L2 error of features against torch in float32, by number format.

Rounding in bfloat16 adds up over the fifty convolutions of a MobileNetV2 to 0.16, in torch as in OpenVINO; a wrong
conversion is farther off.
"""
TOKEN_INPUTS = ("input_ids", "attention_mask")
"""Inputs of a text network, in the order of its converted form."""
CACHE_SIZE = 4
"""Compiled networks that stay in memory."""
_encoders: OrderedDict[tuple[object, ...], OpenVINOEncoder] = OrderedDict()


class ConversionError(Exception):
    """A network that OpenVINO cannot convert, or converts to another function."""


def is_installed() -> bool:
    """Return whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


@dataclass
class _Batch:
    """A batch whose inferences are under way."""

    key: Any
    features: Float[np.ndarray, "B D"]
    num_inferences: int = 0
    finished: list[int] = field(default_factory=list)
    """First rows of the inferences that are done."""


class OpenVINOEncoder:
    """A backbone compiled by OpenVINO."""

    def __init__(self, backbone: Backbone, example: Inputs, dtype: Dtype, num_streams: int) -> None:
        """Convert and compile a backbone.

        Args:
            backbone: On the CPU; it is put into evaluation mode.
            example: A batch of uint8 pixels [B, 3, H, W], of ready inputs, or of tokens.
            dtype: Number format of the products.
            num_streams: Inferences that are computed at a time.

        Raises:
            ConversionError: OpenVINO does not support an operation of the network.
        """
        openvino = import_openvino()
        self.width = backbone.width
        self.is_image = isinstance(example, Tensor) and example.dim() == 4
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
            "NUM_STREAMS": str(num_streams),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        try:
            network = openvino.Core().compile_model(convert(backbone, example), "CPU", settings)
        except Exception as error:  # the converter fails in many ways at a network that it does not know
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            raise ConversionError(f"OpenVINO cannot convert this network ({reason})") from error
        self._queue = openvino.AsyncInferQueue(network, num_streams + 1)
        self._queue.set_callback(_store)

    def stream(self, items: Iterable[tuple[Key, Inputs]]) -> Iterator[tuple[Key, Float[Tensor, "B D"]]]:
        """Yield the features of batches in order; the next batches are computed while the caller uses one.

        Args:
            items: Batches, each with a key that is returned with its features.
        """
        pending: deque[_Batch] = deque()
        for key, x in items:
            batch = _Batch(key, np.empty((_num_rows(x), self.width), np.float32))
            for start, feed in self._split(x):
                self._queue.start_async(feed, (batch, start))
                batch.num_inferences += 1
            pending.append(batch)
            while pending and len(pending[0].finished) == pending[0].num_inferences:
                done = pending.popleft()
                yield done.key, torch.from_numpy(done.features)
        self._queue.wait_all()
        for batch in pending:
            yield batch.key, torch.from_numpy(batch.features)

    def _split(self, x: Inputs) -> Iterator[tuple[int, dict[Any, np.ndarray]]]:
        """Yield the input of each inference with its first row; the last one is padded with zeros."""
        if not isinstance(x, Tensor):
            yield 0, {i: np.ascontiguousarray(x[name].numpy()) for i, name in enumerate(TOKEN_INPUTS)}
            return
        rows = np.ascontiguousarray((x.permute(0, 2, 3, 1) if self.is_image else x).numpy())
        for start in range(0, len(rows), MICRO_BATCH):
            part = rows[start : start + MICRO_BATCH]
            if len(part) < MICRO_BATCH:
                part = np.concatenate([part, np.zeros((MICRO_BATCH - len(part), *part.shape[1:]), part.dtype)])
            yield start, {0: part}


def _store(request: Any, place: tuple[_Batch, int]) -> None:
    """Copy the output of an inference into the features of its batch."""
    batch, start = place
    rows = batch.features[start:]
    output = request.get_output_tensor(0).data[: len(rows)]
    rows[: len(output)] = output
    batch.finished.append(start)


def get_encoder(backbone: Backbone, example: Inputs, dtype: Dtype, num_streams: int) -> OpenVINOEncoder:
    """Return the backbone compiled for inputs of this shape; the last few are cached by their weights.

    Raises:
        ConversionError: OpenVINO does not support an operation of the network.
    """
    shape = (str(example.dtype), tuple(example.shape[1:])) if isinstance(example, Tensor) else ("tokens",)
    preprocess = backbone.preprocess.fingerprint if backbone.preprocess is not None else ""
    key = (backbone.fingerprint, preprocess, shape, dtype, num_streams, torch.get_num_threads())
    if key not in _encoders:
        _encoders[key] = OpenVINOEncoder(backbone, example, dtype, num_streams)
    _encoders.move_to_end(key)
    while len(_encoders) > CACHE_SIZE:
        _encoders.popitem(last=False)
    return _encoders[key]


def check_agreement(backbone: Backbone, example: Inputs, dtype: Dtype, num_streams: int) -> None:
    """Check that OpenVINO's features of two samples are those of torch in float32, but for rounding.

    Raises:
        ConversionError: The relative L2 error exceeds `MAX_REL_ERROR`, or OpenVINO cannot convert the network.
    """
    pair = example[:2] if isinstance(example, Tensor) else {name: value[:2] for name, value in example.items()}
    [(_, features)] = get_encoder(backbone, example, dtype, num_streams).stream([(0, pair)])
    if isinstance(pair, Tensor) and pair.dtype == torch.uint8 and isinstance(backbone.preprocess, ImagePreprocess):
        pair = backbone.preprocess.normalize(pair)
    with torch.inference_mode():
        expected = backbone(pair).float()
    error = float((features - expected).norm() / expected.norm().clamp(min=1e-12))
    if not error <= MAX_REL_ERROR[dtype]:  # nor a number that is not finite
        raise ConversionError(f"OpenVINO's features of this network differ from those of torch by {error:.1%}")


def convert(backbone: Backbone, example: Inputs) -> Any:
    """Return the network as a model of OpenVINO, for images in batches of `MICRO_BATCH`, or for any number of texts.

    Args:
        backbone: On the CPU; it is put into evaluation mode.
        example: As of `OpenVINOEncoder`.
    """
    model = _trace(backbone, example)
    if not isinstance(example, Tensor):
        return model
    model.reshape([MICRO_BATCH, *example.shape[1:]])
    if example.dim() != 4:
        return model
    preprocess = backbone.preprocess if example.dtype == torch.uint8 else None
    return _with_channels_last(model, preprocess if isinstance(preprocess, ImagePreprocess) else None)


class _TensorOutput(nn.Module):
    """A backbone whose inputs and output are tensors, for the tracer."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        inputs = x if attention_mask is None else dict(zip(TOKEN_INPUTS, (x, attention_mask), strict=True))
        return self.backbone(inputs).float()  # type: ignore[no-any-return]


def _trace(backbone: Backbone, example: Inputs) -> Any:
    """Trace the network on two samples and convert it.

    The frontend is called directly: `openvino.convert_model`, which wraps it, sends telemetry.
    """
    import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    if isinstance(example, Tensor):
        inputs: Any = torch.zeros(2, *example.shape[1:])
    else:
        inputs = tuple(example[name][:2].clone() for name in TOKEN_INPUTS)
    frontend = FrontEndManager().load_by_framework("pytorch")
    with quiet_transformers(), torch.no_grad():
        module = _TensorOutput(backbone).eval()
        decoder = TorchScriptPythonDecoder(
            module,
            example_input=inputs,
            shared_memory=False,  # else training in place would change the compiled network
            trace_kwargs={"check_trace": False},
        )
        return frontend.convert(frontend.load(decoder))


def _with_channels_last(model: Any, preprocess: ImagePreprocess | None) -> Any:
    """Return the network with channels-last inputs, which are bytes that it normalizes where a preprocessing is given.

    A row of pixels is normalized as one vector of 3 W values: over the three channels alone, as OpenVINO's own
    preprocessing does it, vector instructions would compute three values at a time.
    """
    openvino = import_openvino()
    old = model.input(0).get_node()
    count, channels, height, width = old.get_output_shape(0)
    dtype = openvino.Type.f32 if preprocess is None else openvino.Type.u8
    new = openvino.op.Parameter(dtype, openvino.Shape([count, height, width, channels]))
    x, ops = new, openvino.opset13
    if preprocess is not None:
        mean = np.tile(np.array(preprocess.mean, np.float32) / np.float32(preprocess.scale), width)
        std = np.tile(np.array(preprocess.std, np.float32) / np.float32(preprocess.scale), width)
        x = ops.convert(ops.reshape(x, np.array([count, height, width * channels]), False), np.float32)
        x = ops.multiply(ops.subtract(x, ops.constant(mean[None, None])), ops.constant(1 / std[None, None]))
        x = ops.reshape(x, np.array([count, height, width, channels]), False)
    x = ops.transpose(x, np.array([0, 3, 1, 2]))
    old.output(0).replace(x.output(0))
    model.add_parameters([new])
    model.remove_parameter(old)
    model.validate_nodes_and_infer_types()
    return model


def _num_rows(x: Inputs) -> int:
    return len(x if isinstance(x, Tensor) else next(iter(x.values())))
