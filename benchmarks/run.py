"""Measure the speed of cleantune as ratios, both sides in the same run.

    python benchmarks/run.py --quick --json bench.json          # 8 to 16 minutes on two cores, 24 on busy ones
    python benchmarks/run.py                                    # with the 2.4 million rows
    python benchmarks/run.py --only extract.minilm --resume --json bench.json

The JSON is one flat object and is written after every measurement; --resume keeps its contents. A table goes to
benchmarks/results/<date>-<processor>.md. The naive sides are in benchmarks/naive/, ours in benchmarks/ours.py, the
measurements in benchmarks/sections.py. The data and models are in --shared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import gpu  # noqa: E402
import psutil  # noqa: E402
import sections  # noqa: E402
import torch  # noqa: E402

from cleantune.features.precision import has_native_bfloat16  # noqa: E402
from cleantune.pipeline.record import versions  # noqa: E402
from cleantune.utils import cpu  # noqa: E402
from cleantune.utils.malloc import keep_pages  # noqa: E402

TARGETS: dict[str, tuple[str, float, float]] = {
    "extract.vit_b16.vs_best": (">=", 0.75, 0.75),
    "extract.vit_b16.vs_naive": (">=", 3.5, 1.0),
    "extract.mobilenet.vs_naive": (">=", 8, 4),
    "extract.minilm.vs_sentence_transformers": (">=", 2, 1.3),
    "tune.vs_naive": (">=", 1.5, 1.2),
    "probe.vs_dataloader": (">=", 1.8, 1.8),
    "gmm.vs_sklearn": (">=", 10, 10),
    "robust.vs_ce_fft": ("<=", 1.1, 1.1),
    "turn_paper.vs_ce_fft": ("<=", 0.8, 0.8),
    "robust.vs_unicon_fft": ("<=", 0.25, 0.25),
    "scale.probe_2_4m.peak_gb": ("<=", 6, 6),
    "scale.exponent": ("<=", 1.1, 1.1),
}
"""Sign and target of each ratio, on processors with and without native bfloat16."""
DISTURBED = 0.05
"""Largest fraction of the processor time of a round that other guests of the host may take."""
MORE = 1
"""Extra rounds if some are disturbed."""


class Bench:
    """Results so far, and how they are timed."""

    def __init__(self, path: Path | None, shared: Path, temp: Path, repeats: int, size: float, keep: bool) -> None:
        self.path, self.shared, self.temp, self.repeats, self.size = path, shared, temp, repeats, size
        self._usual = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        there = keep and path is not None and path.is_file()
        self.found: dict[str, Any] = json.loads(path.read_text()) if there and path is not None else {}

    def scaled(self, count: int, least: int = 64) -> int:
        """Return this number of samples, times --size."""
        return max(least, round(count * self.size))

    def note(self, **values: Any) -> None:
        """Record results, with double underscores for dots, and write all of them."""
        for name, value in values.items():
            key = name.replace("__", ".")
            self.found[key] = float(f"{value:.4g}") if isinstance(value, float) else value
            print(f"  {key:<44} {self.found[key]}", flush=True)
        if self.path is not None:
            draft = self.path.with_suffix(".tmp")
            draft.write_text(json.dumps(self.found, indent=1) + "\n")
            draft.replace(self.path)

    def usual(self, side: Callable[..., float], *args: Any) -> Callable[[], float]:
        """Return a naive side that runs and is timed in a process of its own, as a script would be.

        Our settings of the allocator apply to this process only.
        """
        return lambda: self._usual.submit(side, *args).result()

    def rounds(self, theirs: Callable[[], float], *ours: Callable[[], Any]) -> list[tuple[float, ...]]:
        """Return the seconds of every side in each round; the naive side runs last and returns its own.

        A round of which other guests of the host took more than `DISTURBED` is followed by another, at most `MORE`. It
        counts only if there are too few undisturbed rounds.
        """
        calm: list[tuple[float, ...]] = []
        made: list[tuple[float, ...]] = []
        while len(calm) < self.repeats and len(made) < self.repeats + MORE:
            before = stolen()
            made.append((*(sections.taken(side) for side in ours), theirs()))
            taken, passed = (now - then for now, then in zip(stolen(), before, strict=True))
            if taken <= DISTURBED * passed:
                calm.append(made[-1])
        return calm if len(calm) == self.repeats else made

    def race(self, ours: Callable[[], Any], theirs: Callable[[], float]) -> tuple[float, float]:
        """Return the seconds of both sides in the round with the median ratio."""
        rounds = sorted(self.rounds(theirs, ours), key=lambda pair: pair[1] / pair[0])
        mine, other = rounds[(len(rounds) - 1) // 2]
        return mine, other


def stolen() -> tuple[float, float]:
    """Return the processor seconds that other guests of the host have taken, and all processor seconds."""
    times = psutil.cpu_times()
    return getattr(times, "steal", 0.0), times.idle + times.user + times.system + getattr(times, "steal", 0.0)


def products() -> dict[str, float]:
    """Return GFLOP/s of matrix products of 1,024 rows by number format; other guests of a host share these units."""
    dtypes = (torch.float32, torch.bfloat16) if has_native_bfloat16() else (torch.float32,)
    return {str(d).removeprefix("torch."): gpu.ceiling(torch.device("cpu"), 1024, d) / 1e9 for d in dtypes}


def table(found: dict[str, Any], native: bool) -> list[str]:
    """Return the results as Markdown."""
    kind = "with" if native else "without"
    out = [
        f"# Speed on {cpu.cpu_name()}, {datetime.date.today()}", "",
        f"Made by `python benchmarks/run.py`; a processor {kind} native bfloat16, {os.cpu_count()} cores;"
        f" load at the start {found.get('load', '?')}. A ratio is the median of the other side over ours, in seconds"
        " per sample, one right after the other; another round follows if others took more than a twentieth of one."
        " The other side runs in a process of its own, as a script would."
        " `robust…`, `turn_paper…` is ours over the other's. `….stolen` is the share of the processors'"
        " time that other guests of the host took meanwhile; `….gflops_…` is the speed of matrix products, the mean of"
        " before and after.", "",
        "| key | value | target | |", "|---|---:|---:|---|",
    ]  # fmt: skip
    for key, value in found.items():
        if key in TARGETS:
            sign, fast, slow = TARGETS[key]
            want = fast if native else slow
            good = value >= want if sign == ">=" else value <= want
            short = "" if good else f"short by {abs(value / want - 1):.0%}"
            out.append(f"| `{key}` | {value} | {sign} {want:g} | {short} |")
    out += ["", "| other measurements | |", "|---|---|"]
    out += [f"| `{key}` | {value} |" for key, value in found.items() if key not in TARGETS]
    out += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items() if k != "processor") + "."]
    return out


def main() -> None:
    """Run the sections one after the other; one that fails is noted and the next one runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the run on 2.4 million rows")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--only", default="", help="prefix of the names of the sections to run")
    parser.add_argument("--resume", action="store_true", help="keep the results in the JSON file and measure the rest")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=float, default=1.0, help="fraction of the samples, for a trial run")
    parser.add_argument("--shared", type=Path, help="data and models (default: next to the project)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the table")
    args = parser.parse_args()
    keep_pages()
    failed = []
    with tempfile.TemporaryDirectory() as temp:
        bench = Bench(args.json, sections.shared(args.shared), Path(temp), args.repeats, args.size, args.resume)
        bench.found.setdefault("load", round(os.getloadavg()[0], 2))
        for name, run in sections.ALL.items():
            if not name.startswith(args.only) or (args.quick and name in sections.LONG):
                continue
            if args.resume and any(key.startswith(name) for key in bench.found):
                continue
            print(name, flush=True)
            speed = products()
            start, before = time.perf_counter(), stolen()
            try:
                run(bench)
                taken, passed = (now - then for now, then in zip(stolen(), before, strict=True))
                bench.note(**{f"{name}__stolen": taken / passed})
                after = products()
                bench.note(**{f"{name}__gflops_{dtype}": (speed[dtype] + after[dtype]) / 2 for dtype in speed})
            except Exception:
                traceback.print_exc()
                failed.append(name)
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)
        native = has_native_bfloat16()
        args.results.mkdir(parents=True, exist_ok=True)
        place = re.sub(r"[^A-Za-z0-9]+", "-", cpu.cpu_name()).strip("-").lower()
        path = args.results / f"{datetime.date.today()}-{place}.md"
        if not args.only and args.size == 1:
            path.write_text("\n".join(table(bench.found, native)) + "\n")
            print(path)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
