"""Run study 3 of docs/results-nmtune.md: wrong labels upstream and downstream.

    python benchmarks/both_noises.py --upstream runs/upstream --out runs/both_noises

The backbones are those that `upstream_noise.py` pre-trained with 20 % wrong labels and with clean ones; 40 % of the
labels of the tasks are wrong as well. The tunings are plain NMTune, robust probes, and their combinations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from upstream_noise import Upstream, downstream

from cleantune.studies.transfer import run

NOISE = "symmetric:0.4,include_self=false"
TUNINGS = [
    {"name": "LP", "method": "ce"},
    {"name": "LP, GCE", "method": "gce"},
    {"name": "Robust, linear head", "method": "robust"},
    {"name": "MLP", "method": "mlp"},
    {"name": "NMTune", "method": "nmtune"},
    {"name": "NMTune, GCE", "method": "nmtune", "settings": {"loss": "gce"}},
    {"name": "NMTune, ELR", "method": "nmtune", "settings": {"loss": "elr"}},
    {"name": "Robust, NMTune head", "method": "robust", "settings": {"head": "nmtune"}},
]


def main() -> None:
    """Run the missing cells on the finished backbones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, default=Path("runs/upstream"))
    parser.add_argument("--out", type=Path, default=Path("runs/both_noises"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    args = parser.parse_args()
    wanted = [Upstream("clean", rate, 0) for rate in (0.2, 0.0)]
    done = [one for one in wanted if (args.upstream / one.name / "summary.json").is_file()]
    if not done:
        raise SystemExit(f"{args.upstream} has no finished backbone: run benchmarks/upstream_noise.py first")
    run(downstream(done, args.upstream, args.shared, "Wrong labels upstream and downstream", TUNINGS, NOISE), args.out)


if __name__ == "__main__":
    main()
