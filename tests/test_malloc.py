"""Memory of the process."""

from __future__ import annotations

import platform
import subprocess
import sys

from cleantune.utils.cpu import cpu_name
from cleantune.utils.malloc import keep_pages, peak_bytes

MEBIBYTE = 2**20


def test_keep_pages_takes_effect_with_glibc() -> None:
    assert keep_pages() == (platform.libc_ver()[0] == "glibc")


def test_peak_bytes_grows_with_an_allocation() -> None:
    code = (
        "from cleantune.utils.malloc import peak_bytes\n"
        "before = peak_bytes()\nblock = b'x' * (64 * 2**20)\nprint(before, peak_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1 * MEBIBYTE < before < after
    assert after - before > 48 * MEBIBYTE
    assert peak_bytes() > 10 * MEBIBYTE


def test_cpu_name_is_not_empty() -> None:
    assert cpu_name()
