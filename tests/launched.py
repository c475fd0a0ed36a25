"""Start several gloo processes on this machine, as torchrun does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def launched(args: Sequence[str], count: int = 2, timeout: float = 300) -> list[subprocess.CompletedProcess[str]]:
    """Run Python with these arguments in several processes of one group, and wait for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = str(Path(__file__).resolve().parents[1] / "src")
    common = os.environ | {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": source,
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *args], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(list(args), process.returncode, out, error)
        for process, (out, error) in zip(processes, outputs, strict=True)
    ]
