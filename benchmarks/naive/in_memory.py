"""Upper bound of inference speed on this machine: batches in memory, without reading, decoding or writing."""

import contextlib
import sys
import time

import torch


def ways(model, pixels, dtypes, batch_size=16):
    """Return a function per backend and number format, warmed up: torch (channels last) and OpenVINO.

    Args:
        model: Network from pixels [B, 3, H, W] to one tensor.
        pixels: Pixels in float32 [N, 3, H, W].
        dtypes: Number formats: "float32", "bfloat16".
    """
    batches = [b.contiguous(memory_format=torch.channels_last) for b in pixels.split(batch_size)]
    model = model.eval().to(memory_format=torch.channels_last)
    out = {}
    for dtype in dtypes:
        _torch(model, batches[:1], dtype)
        out[f"torch {dtype}"] = lambda dtype=dtype: _torch(model, batches, dtype)
        with contextlib.suppress(ImportError):
            out[f"openvino {dtype}"] = _openvino(model, pixels, batch_size, dtype)
            out[f"openvino {dtype}"]()
    return out


def rate(run, count):
    """Return images/s of one run over this many images."""
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


@torch.inference_mode()
def _torch(model, batches, dtype):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        for batch in batches:
            model(batch)


def _openvino(model, pixels, batch_size, dtype):
    sys.modules.setdefault("openvino_telemetry", None)  # convert_model sends telemetry unless this is missing
    import openvino as ov

    with torch.no_grad():
        network = ov.convert_model(model, example_input=torch.zeros(2, *pixels.shape[1:]))
    network.reshape([batch_size, *pixels.shape[1:]])
    hint = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    compiled = ov.Core().compile_model(
        network, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
    )
    queue = ov.AsyncInferQueue(compiled)
    arrays = [b.numpy() for b in pixels.split(batch_size)]

    def run():
        for array in arrays:
            queue.start_async({0: array})
        queue.wait_all()

    return run
