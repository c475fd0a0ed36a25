"""Wrong labels upstream and downstream at once: study 3 of docs/results-nmtune.md.

    python benchmarks/both_noises.py --upstream runs/upstream --out runs/both_noises

The backbone that `upstream_noise.py` pre-trained with 20 % wrong labels, and the clean one beside it; 40 % of the
labels of the tasks are wrong as well. Plain NMTune, probes that are made for wrong labels, and the combinations.
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
    """Run what is missing, on the backbones that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, default=Path("runs/upstream"))
    parser.add_argument("--out", type=Path, default=Path("runs/both_noises"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    said = parser.parse_args()
    wanted = [Upstream("clean", rate, 0) for rate in (0.2, 0.0)]
    done = [one for one in wanted if (said.upstream / one.name / "summary.json").is_file()]
    if not done:
        raise SystemExit(f"{said.upstream} holds no finished backbone: run benchmarks/upstream_noise.py first")
    run(downstream(done, said.upstream, said.shared, "Wrong labels upstream and downstream", TUNINGS, NOISE), said.out)


if __name__ == "__main__":
    main()
