"""Pre-train the small backbone of `cleantune demo` on glyphs from fonts, and evaluate it on digits, which it never saw.

    python tools/pretrain_demo_backbone.py                # writes src/cleantune/demo/assets/demo_backbone/
    python tools/pretrain_demo_backbone.py --evaluate     # measures the existing folder

The backbone learns to tell letters and signs of the fonts that ship with matplotlib. No glyph is a digit, and nothing
of scikit-learn's digits is read before the measuring at the end. Every glyph is distorted, thickened, blurred, noised
and brought down to about 8x8 pixels and up again to 32, which is how the demo's images look.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "src" / "cleantune" / "demo" / "assets" / "demo_backbone"
ALPHABET = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz"
    "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθικλμξπρστφχψω"
    "БДЖЗИЛУЦЧШЩЪЫЬЭЮЯбгджзлцчшщъыэюя"
    "?!&@#%$§¶()[]{}<>*+=~/"
)
LEFT_OUT = ("LastResort", "STIXSiz", "STIXNonUni", "cmex", "cmsy")  # fonts whose codes are not the characters they draw
CANVAS, GLYPH, SIDE = 48, 36, 32  # pixels: of a stored glyph's square, of the glyph in it, of the backbone's input
MEAN, STD = 0.3, 0.35


def fonts() -> list[Path]:
    """Return the fonts that ship with matplotlib, except symbol fonts."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [path for path in sorted(folder.glob("*.ttf")) if not path.name.startswith(LEFT_OUT)]


def glyphs() -> tuple[Tensor, Tensor]:
    """Draw every character of the alphabet in every font that has it.

    Returns:
        Ink [G, 1, CANVAS, CANVAS] in 0..1, cut to the glyph's box and scaled to GLYPH; the character's number [G].
    """
    from fontTools.ttLib import TTFont
    from PIL import Image, ImageDraw, ImageFont

    assert not any(character.isnumeric() for character in ALPHABET), "the alphabet must not hold a digit"
    assert len(set(ALPHABET)) == len(ALPHABET), "a character stands in the alphabet twice"
    ink, label = [], []
    for path in fonts():
        known = TTFont(path).getBestCmap() or {}
        greek = not path.name.startswith("cm")  # Computer Modern keeps other signs at the codes above ASCII
        font = ImageFont.truetype(str(path), 64)
        for number, character in enumerate(ALPHABET):
            if ord(character) not in known or (not greek and not (character.isascii() and character.isalpha())):
                continue
            picture = Image.new("L", (160, 160))
            ImageDraw.Draw(picture).text((40, 30), character, fill=255, font=font)
            if (box := picture.getbbox()) is None:
                continue
            picture = picture.crop(box)
            scale = GLYPH / max(picture.size)
            picture = picture.resize([max(3, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
            square = Image.new("L", (CANVAS, CANVAS))
            square.paste(picture, ((CANVAS - picture.width) // 2, (CANVAS - picture.height) // 2))
            ink.append(np.asarray(square, dtype=np.float32) / 255)
            label.append(number)
    return torch.from_numpy(np.stack(ink))[:, None], torch.tensor(label)


def uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=rng) * (high - low) + low


def warp(ink: Tensor, rng: torch.Generator) -> Tensor:
    """Apply a random affine and elastic distortion: [B, 1, CANVAS, CANVAS] to [B, 1, SIDE, SIDE]."""
    n = len(ink)
    angle, shear = uniform(rng, -0.3, 0.3, n), uniform(rng, -0.35, 0.35, n)
    height, width = uniform(rng, 0.72, 1.0, n), uniform(rng, 0.62, 1.2, n)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cos * width, -sin + shear, uniform(rng, -0.12, 0.12, n)], -1),
            torch.stack([sin, cos * height, uniform(rng, -0.12, 0.12, n)], -1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [n, 1, SIDE, SIDE], align_corners=False)
    bumps = torch.randn(n, 2, 4, 4, generator=rng) * uniform(rng, 0.0, 0.11, n, 1, 1, 1)
    bumps = F.interpolate(bumps, size=SIDE, mode="bicubic", align_corners=False)
    return F.grid_sample(ink, grid + bumps.permute(0, 2, 3, 1), align_corners=False)


def thicken(ink: Tensor, rng: torch.Generator) -> Tensor:
    """Make the strokes of a third of the samples thinner, and of a third thicker."""
    thick = F.max_pool2d(ink, 3, stride=1, padding=1)
    thin = -F.max_pool2d(-ink, 3, stride=1, padding=1)
    kind = torch.randint(3, (len(ink), 1, 1, 1), generator=rng)
    thin = torch.where(thin.amax((1, 2, 3), keepdim=True) > 0.5, thin, ink)  # a hair-line must not vanish
    return torch.where(kind == 0, thin, torch.where(kind == 1, ink, thick))


def coarsen(ink: Tensor, rng: torch.Generator) -> Tensor:
    """Downsample to 8x8 (one batch in five: 16x16) with contrast, noise and 17 gray levels, and upsample to SIDE."""
    side = 16 if torch.rand((), generator=rng) < 0.2 else 8
    n = len(ink)
    small = F.adaptive_avg_pool2d(ink, side) * uniform(rng, 0.8, 1.6, n, 1, 1, 1)
    small = small + torch.randn(small.shape, generator=rng) * uniform(rng, 0.0, 0.08, n, 1, 1, 1)
    small = (small.clamp(0, 1) * 16).round() / 16
    return F.interpolate(small, size=SIDE, mode="bilinear", align_corners=False)


def draw(ink: Tensor, rng: torch.Generator) -> Tensor:
    """Return a distorted, normalized image of each glyph: [B, 1, CANVAS, CANVAS] to [B, 3, SIDE, SIDE]."""
    return ((coarsen(thicken(warp(ink, rng), rng), rng) - MEAN) / STD).expand(-1, 3, -1, -1)


def new_backbone() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(
        ResNetConfig(
            num_channels=3, embedding_size=24, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic"
        )
    )


def pretrain(steps: int, batch: int, seed: int) -> nn.Module:
    """Train a backbone to classify the characters of the alphabet."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    ink, label = glyphs()
    print(f"{len(ink)} glyphs of {len(ALPHABET)} characters from {len(fonts())} fonts, none of them a digit")
    backbone = new_backbone().train()
    head = nn.Linear(backbone.config.hidden_sizes[-1], len(ALPHABET))
    weights = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.15)
    started, right = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        index = torch.randint(len(ink), (batch,), generator=rng)
        logits = head(backbone(draw(ink[index], rng)).pooler_output.flatten(1))
        loss = F.cross_entropy(logits, label[index], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right += 0.01 * ((logits.argmax(1) == label[index]).float().mean().item() - right)
        if step % 200 == 0 or step == steps:
            seconds = time.perf_counter() - started
            print(f"step {step}/{steps}  loss {loss.item():.3f}  glyphs right {right:.1%}  {seconds:.0f} s", flush=True)
    settle(backbone, ink, rng)
    return backbone.eval()


@torch.no_grad()
def settle(backbone: nn.Module, ink: Tensor, rng: torch.Generator) -> None:
    """Set BatchNorm's statistics to the mean over 100 batches; the moving average covers too few steps."""
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for _ in range(100):
        backbone(draw(ink[torch.randint(len(ink), (256,), generator=rng)], rng))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def save(backbone: nn.Module, folder: Path) -> None:
    """Write a folder for `transformers.AutoModel.from_pretrained`, with the preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_pretrained(folder)
    preprocessor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [MEAN] * 3,
        "image_processor_type": "ViTImageProcessor",
        "image_std": [STD] * 3,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"wrote {folder} ({size / 1e6:.2f} MB)")


# ---------------------------------------------------------------- measuring


def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits as inputs of the backbone: pixels [1797, 3, SIDE, SIDE], labels [1797]."""
    from sklearn.datasets import load_digits

    table = load_digits()
    small = torch.from_numpy(table.images).float()[:, None] / 16
    large = F.interpolate(small, size=SIDE, mode="bilinear", align_corners=False)
    return ((large - MEAN) / STD).expand(-1, 3, -1, -1), torch.from_numpy(table.target)


@torch.no_grad()
def features(backbone: nn.Module, pixels: Tensor) -> np.ndarray:
    backbone.eval()
    return torch.cat([backbone(part).pooler_output.flatten(1) for part in pixels.split(256)]).numpy()


def probe(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, y_test: np.ndarray | None = None) -> float:
    """Return the accuracy of a logistic regression on standardized features; `y_test` replaces the test labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x[train], y[train])
    return float(model.score(x[test], (y if y_test is None else y_test)[test]))


def gce_probe(x: Tensor, y: Tensor, epochs: int = 20, q: float = 0.7) -> nn.Linear:
    head = nn.Linear(x.shape[1], 10)
    nn.init.zeros_(head.bias)
    nn.init.normal_(head.weight, std=0.02)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            p = (q * F.log_softmax(head(x[index]), 1).gather(1, y[index, None])).exp()
            optimizer.zero_grad()
            ((1 - p) / q).mean().backward()
            optimizer.step()
    return head


def rehearse(backbone: nn.Module, pixels: Tensor, y: Tensor, test: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Run a minimal TURN: GCE probe, then four rounds of selecting low-loss samples by class and fine-tuning on them.

    Returns:
        Accuracy on the test part of the GCE probe and after fine-tuning.
    """
    from sklearn.mixture import GaussianMixture

    backbone = copy.deepcopy(backbone)
    raw = torch.from_numpy(features(backbone, pixels))
    mean, std = raw.mean(0), raw.std(0).clamp_min(1e-4)
    head = gce_probe((raw - mean) / std, y)

    def logits(part: Tensor) -> Tensor:
        return head((backbone(part).pooler_output.flatten(1) - mean) / std)

    @torch.no_grad()
    def accuracy() -> float:
        return (logits(test[0]).argmax(1) == test[1]).float().mean().item()

    backbone.eval()  # BatchNorm keeps its statistics
    first, passes = accuracy(), 2
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-3, weight_decay=1e-4)
    for _ in range(4):
        with torch.no_grad():
            loss = F.cross_entropy(logits(pixels), y, reduction="none").numpy().astype(np.float64)
        kept = []
        for c in range(10):
            rows = np.flatnonzero(y.numpy() == c)
            mixture = GaussianMixture(2, reg_covar=5e-4, random_state=0).fit(loss[rows, None])
            clean = mixture.predict_proba(loss[rows, None])[:, mixture.means_.argmin()]
            kept.append(rows[clean > 0.6])
        kept = torch.from_numpy(np.concatenate(kept))
        for _ in range(passes):
            for index in kept[torch.randperm(len(kept))].split(64):
                optimizer.zero_grad()
                F.cross_entropy(logits(pixels[index]), y[index]).backward()
                optimizer.step()
    return first, accuracy()


def evaluate(folder: Path, seeds: int = 3) -> None:
    """Print the accuracy of the backbone on digits, with clean labels and with 60 % random labels."""
    from sklearn.model_selection import train_test_split
    from transformers import AutoModel

    backbone = AutoModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    untrained = new_backbone().eval()
    pixels, labels = digits()
    y = labels.numpy()
    x, x_untrained = features(backbone, pixels), features(untrained, pixels)
    rows: dict[str, list[float]] = {}
    for seed in range(seeds):
        train, test = train_test_split(np.arange(len(y)), test_size=497, stratify=y, random_state=seed)
        rng = np.random.default_rng(seed)
        noisy = np.where(rng.random(len(y)) < 0.6, rng.integers(10, size=len(y)), y)
        few, _ = train_test_split(train, train_size=100, stratify=y[train], random_state=seed)
        torch.manual_seed(seed)
        held = (pixels[test], labels[test])
        gce, turn = rehearse(backbone, pixels[train], torch.from_numpy(noisy[train]), held)
        for name, value in (
            ("clean labels, features of random weights", probe(x_untrained, y, train, test)),
            ("clean labels, features of this backbone", probe(x, y, train, test)),
            ("100 clean labels, features of random weights", probe(x_untrained, y, few, test)),
            ("100 clean labels, features of this backbone", probe(x, y, few, test)),
            ("symmetric 0.6, CE probe", probe(x, noisy, train, test, y)),
            ("symmetric 0.6, GCE probe", gce),
            ("symmetric 0.6, GCE probe, then four rounds of TURN", turn),
        ):
            rows.setdefault(name, []).append(value)
    print(f"accuracy on 497 digits, mean and standard deviation over {seeds} splits")
    for name, values in rows.items():
        print(f"  {name:<48} {np.mean(values):.1%} ± {np.std(values):.1%}")


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write or to measure (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2400, help="steps of pre-training (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="glyphs a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and glyphs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--evaluate", action="store_true", help="measure the folder instead of writing it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    if not args.evaluate:
        save(pretrain(args.steps, args.batch, args.seed), args.out)
    evaluate(args.out)


if __name__ == "__main__":
    main()
