"""The report of a run: what it says, what it survives, and that it needs nothing but the run folder."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folder import CLASSES, change_summary, make_run

from cleantune.errors import UserError
from cleantune.report import build, figures, svg, tables, words
from cleantune.storage.readers import class_name, finite
from cleantune.storage.run_dir import RunDir
from cleantune.utils import format as fmt

VOID = {"meta", "br", "img", "link", "input", "hr"}
OPEN_ENDED = {"tr", "td"}  # HTML lets these end by themselves
HOSTILE = (
    "<script>alert(1)</script>",
    "a & b \"c\" 'd'",
    "$x_1^{$ \u8a9e",
    "</svg></style><img src=x onerror=alert(1)>",
    "]]>--><b>\x07{{ 7 * 7 }}",
)
NAMES = CLASSES[:3]
SIXTY = tuple(f"intent {i:02}" for i in range(60))


class Page(HTMLParser):
    """Elements of a page with their attributes and text, and a check that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.style = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len({key for key, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID | OPEN_ENDED:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in OPEN_ENDED:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data + " "

    @property
    def words(self) -> str:
        """The text with every run of white space as one blank; narrow no-break spaces stay."""
        return re.sub(r"[ \t\r\n]+", " ", self.text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def render_page(run: Path) -> Page:
    return Page(build(run).read_text("utf-8"))


def without_losses(run: Path) -> Path:
    """The run without the evidence whose figures take longest, for tests of something else."""
    (run / "artifacts" / "losses.parquet").unlink()
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "x", names=NAMES)


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return render_page(made)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Iterator[Path]:
    return shutil.copytree(made, tmp_path / "x")


# The page as a document.


def test_elements_nest_and_ids_are_unique(page: Page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_reference_inside_the_page_has_its_target(page: Page):
    ids = {attributes.get("id") for _, attributes in page.elements}
    links = [value for _, a in page.elements for key, value in a.items() if key in ("href", "aria-labelledby")]
    clips = re.findall(r"url\(#([^)]+)\)", " ".join(str(v) for _, a in page.elements for v in a.values()))
    assert {link.removeprefix("#") for link in links if link} | set(clips) <= ids


def test_nothing_is_loaded_from_outside_and_nothing_runs(page: Page):
    assert not page.all("script")
    assert not page.all("link")
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert not re.search(r"http|@import|url\(", page.style)
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_pictures_plots_and_tables_can_be_read_without_eyes(page: Page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    assert all(plot.get("role") == "img" and plot.get("aria-label") for plot in page.all("svg"))
    assert all(header.get("scope") for header in page.all("th"))
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(page.all("svg"))


def test_every_plot_names_its_axes(page: Page):
    assert page.words.count("loss (nats)") == 2 * (1 + len(NAMES))
    for axis in ("noise rate (% of the class's given labels)", "accuracy (%)", "epoch, counted over all phases"):
        assert axis in page.words


def contrast(one: str, other: str) -> float:
    """Ratio of luminances as WCAG 2 defines it."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_contrast_in_light_dark_and_print(page: Page):
    palettes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", page.style, re.S)
    ]
    assert len(palettes) == 3
    for colors in palettes:
        for name in ("ink", "muted", "first", "second", "third", "wrong", "right", "warn"):
            assert contrast(colors[name], colors["paper"]) >= 4.5, (name, colors)


def test_figures_use_no_color_but_the_pages(page: Page):
    styles = " ".join(a.get("style") or "" for name, a in page.elements if name in ("path", "text", "use", "g"))
    assert not re.findall(r"#\w{6}", styles)
    assert "DejaVu" not in styles


def test_equal_folders_give_equal_bytes(made: Path, tmp_path: Path):
    first = build(shutil.copytree(made, tmp_path / "a" / "x")).read_bytes()
    assert build(shutil.copytree(made, tmp_path / "b" / "x")).read_bytes() == first


def test_the_page_is_small_with_sixty_classes_and_many_suspects(tmp_path: Path):
    run = make_run(tmp_path / "x", names=SIXTY, size=12_000)
    path = build(run)
    assert path == run / "report.html"
    assert path.stat().st_size < 2_000_000
    page = Page(path.read_text("utf-8"))
    assert "The 30 noisiest of 60 classes are shown." in page.words
    assert "The 12 noisiest of 60 classes are shown." in page.words
    assert "60 classes are too many for a matrix" in page.words
    assert "2,000 worst of" in page.words


def test_pictures_beyond_the_budget_are_left_out_and_counted(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "PICTURE_BYTES", 10_000)
    without_losses(copy)
    page = render_page(copy)
    left = 60 - len(page.all("img"))
    assert 0 < left < 60
    assert f"{left} pictures are left out" in page.words


# Values of the data.


def test_markup_in_names_ids_and_texts_stays_text(tmp_path: Path):
    run = make_run(tmp_path / "x", names=HOSTILE, kind="text", text="<b onclick=x>{}</b></blockquote><script>")
    hostile = "<img src=x onerror=alert(1)></title>"
    change_summary(
        run, notes=[hostile], warnings=[hostile], method=hostile, command=hostile, versions={hostile: hostile}
    )
    (run / "artifacts" / "unreadable_samples.csv").write_text(f"id,place,reason\n{hostile},{hostile},{hostile}\n")
    labels = pd.read_parquet(run / "labels.parquet")
    labels.assign(id=hostile + labels["id"]).to_parquet(run / "labels.parquet")
    gallery = json.loads((run / "artifacts" / "gallery.json").read_text())
    for entry in gallery:
        entry["id"] = hostile
        entry["thumbnail"] = 'data:image/jpeg;base64,AA==" onerror="alert(1)'
    (run / "artifacts" / "gallery.json").write_text(json.dumps(gallery))
    page = render_page(run)
    assert page.open == []
    assert {tag for tag, _ in page.elements} & {"script", "b", "img"} <= {"b"}
    assert not [a for tag, a in page.elements if tag == "b" and a]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in page.words
    assert "$x_1^{$ \u8a9e" in page.words
    assert "{{ 7 * 7 }}" in page.words
    assert "\x07" not in page.text
    assert hostile in page.words


@pytest.mark.parametrize(("low", "high", "labels"), [
    (0.4, 2.5, {"0.5", "1", "2"}), (0.001, 0.6, {"0.001", "0.003", "0.01", "0.03", "0.1", "0.3"}),
])  # fmt: skip
def test_logarithms_are_labeled_by_plain_numbers(low: float, high: float, labels: set[str]):
    with svg.canvas(300, 200) as figure:
        axes = figure.add_subplot()
        axes.set_yscale("log")
        axes.set_xticks([])
        axes.plot([0, 1], [low, high])
        svg.label_log_axis(axes.yaxis, low, high)
        drawn = svg.inline(figure, "logs", "a line")
    assert set(re.findall(r"<text[^>]*>([^<]*)</text>", drawn)) == labels


@settings(max_examples=5, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=4, unique=True))
def test_any_class_name_survives_inside_svg(names: list[str]):
    classes = [figures.ClassNoise(name, 0.1 * i, None, 5) for i, name in enumerate(names)]
    drawn = figures.noise_by_class(classes, 0.2, names[0])
    parsed = Page(drawn)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.elements} <= {
        "svg",
        "g",
        "path",
        "text",
        "use",
        "defs",
        "clippath",
        "rect",
        "tspan",
    }


def test_labels_that_are_numbers_are_matched_with_their_classes(tmp_path: Path):
    run = make_run(tmp_path / "x", names=("0", "1", "2"))
    for path in (run / "labels.parquet", run / "artifacts" / "losses.parquet"):
        table = pd.read_parquet(path)
        columns = [c for c in ("given_label", "suggested_label", "true_label") if c in table]
        table[columns] = table[columns].astype(float)
        table.to_parquet(path)
    found = RunDir.read(run)
    assert tables.confusion(found).sum() == len(found.labels)
    assert [class_name(v) for v in (3, 3.0, np.int64(3), "3", True, 2.5)] == ["3", "3", "3", "3", "True", "2.5"]


# What is missing.


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "summary.json", "labels.parquet"])
def test_a_missing_required_file_is_named_with_the_remedy(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(name)} is missing.*--resume"):
        build(copy)


FILLED = (
    "summary.json",
    "labels.parquet",
    "artifacts/losses.parquet",
    "artifacts/mixtures.json",
    "artifacts/gallery.json",
)
BROKEN = [(name, b"{[\xff\x00") for name in (*FILLED, "config.toml", "metrics.jsonl")] + [
    (name, b"") for name in FILLED
]


@pytest.mark.parametrize(("name", "content"), BROKEN)
def test_a_broken_file_is_one_sentence_that_names_it(copy: Path, name: str, content: bytes):
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        build(copy)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_and_a_summary_without_a_key_are_refused(copy: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no run folder"):
        build(tmp_path / "nowhere")
    change_summary(copy, samples={})
    with pytest.raises(UserError, match=r"lacks samples\.train"):
        build(copy)


def test_a_failed_build_leaves_the_earlier_report(copy: Path):
    before = b"an earlier report"
    (copy / "report.html").write_bytes(before)
    (copy / "summary.json").write_text("{")
    with pytest.raises(UserError):
        build(copy)
    assert (copy / "report.html").read_bytes() == before
    assert not list(copy.glob(".report*"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("losses.parquet", "The run kept no losses"),
        ("mixtures.json", "No mixtures were kept"),
        ("gallery.json", "The run kept no gallery"),
    ],
)
def test_missing_evidence_costs_its_section_and_is_said(copy: Path, page: Page, name: str, said: str):
    (copy / "artifacts" / name).unlink()
    assert said in render_page(copy).words
    assert said not in page.words


def test_a_bare_summary_still_makes_a_page(copy: Path):
    shutil.rmtree(copy / "artifacts")
    (copy / "summary.json").write_text(
        json.dumps({"method": "ce", "class_names": list(NAMES), "samples": {"train": 360}, "accuracy": None})
    )
    (copy / "metrics.jsonl").write_text("")
    (copy / "config.toml").write_text("")
    page = render_page(copy)
    assert "CE ran to its end, but there was neither a test nor a validation split" in page.words
    assert "No epoch was measured" in page.words


def test_losses_that_are_not_finite_zero_or_constant_are_drawn_or_counted(copy: Path):
    path = copy / "artifacts" / "losses.parquet"
    losses = pd.read_parquet(path)
    losses["loss_first"] = 0.0
    losses.loc[losses.index[losses["split"] == "train"][:3], "loss_last"] = [math.nan, math.inf, -math.inf]
    losses.to_parquet(path)
    mixtures = json.loads((copy / "artifacts" / "mixtures.json").read_text())
    mixtures["last"][NAMES[1]] = None
    mixtures["last"][NAMES[2]]["high"] = None
    mixtures["first"] = {name: {"low": {"mean": 0.0, "std": 0.0, "weight": 1.0}} for name in NAMES}
    (copy / "artifacts" / "mixtures.json").write_text(json.dumps(mixtures))
    assert "3 losses of the last look are not finite and left out." in render_page(copy).words


def test_skipped_samples_are_listed(copy: Path):
    (copy / "artifacts" / "unreadable_samples.csv").write_text(
        "id,place,reason\ncat/1.jpg,photos/cat/1.jpg,truncated\n"
    )
    page = render_page(without_losses(copy))
    assert "1 sample could not be read" in page.words
    assert "photos/cat/1.jpg truncated" in page.words


@pytest.mark.parametrize("kind", ["text", "features"])
def test_texts_and_features_have_their_gallery(tmp_path: Path, kind: str):
    page = render_page(without_losses(make_run(tmp_path / "x", names=NAMES, kind=kind, truth=False)))
    assert not page.all("img")
    assert len(page.all("blockquote")) == (60 if kind == "text" else 0)
    assert page.words.count("0 is surely wrong") == 1
    assert "True labels are known" not in page.words


# What it says.


def test_the_verdict_compares_with_the_probe_on_the_same_features(page: Page):
    assert "TURN reaches 66.2\u202f% on the test split, 19.3 ± 0.7 points above a plain CE linear probe" in page.words
    assert "Delivered in model/ is the fine-tuned model." in page.words
    for heading in ("What was done", "Noise:", "Losses:", "Curves", "Confusion:", "suspicious", "Cost", "How to go on"):
        assert heading in page.words


def test_do_no_harm_is_said_when_the_probe_was_delivered(tmp_path: Path):
    run = RunDir.read(make_run(tmp_path / "x", harm=True, delivered="probe"))
    first, second = words.verdict(run)
    assert first.startswith("TURN reaches 52.1")
    assert second.startswith(
        "Do no harm: delivered in model/ is the probe on frozen features, not the fine-tuned model"
    )
    assert "42.0" in second


def test_the_best_epoch_is_named_and_is_no_harm(copy: Path):
    change_summary(copy, selected_model="best", selection_reason="it was best on the validation split")
    said = words.verdict(RunDir.read(copy))[1]
    assert said == (
        "Delivered in model/ is the model of the best epoch on validation. It was best on the validation split."
    )


def test_a_run_without_suspects_says_so(copy: Path):
    labels = pd.read_parquet(copy / "labels.parquet")
    labels.assign(is_label_issue=False).to_parquet(copy / "labels.parquet")
    (copy / "artifacts" / "gallery.json").write_text("[]")
    said = render_page(without_losses(copy)).words
    assert "No label is listed as an issue." in said
    assert "kept no gallery" not in said


def test_noise_that_was_put_in_is_named(copy: Path):
    noise = {"estimated_rate": None, "injected": {"noise": "symmetric:0.6", "seed": 3, "rate": 0.6}}
    change_summary(copy, noise=noise, command=None)
    said = render_page(without_losses(copy)).words
    assert "symmetric:0.6, seed 3" in said
    assert "The run estimated no noise rate." in said
    assert "cleantune fit --config x/config.toml --out x --resume" in said


def test_without_a_test_split_validation_is_named_for_what_it_is(tmp_path: Path):
    run = RunDir.read(make_run(tmp_path / "x", test=False, truth=False))
    said = words.verdict(run)[0]
    assert said.startswith("There is no labeled test split. TURN reaches 44.0")
    assert "Validation labels are given labels" in said
    assert words.tiles(run)[0].name == "validation accuracy"


@pytest.mark.parametrize(
    ("ours", "said"), [(0.475, "no clear difference"), (0.60, "points above"), (0.30, "the plain probe is the better")]
)
def test_the_verdict_follows_the_standard_error(copy: Path, ours: float, said: str):
    accuracy = {"test": ours, "by_phase": {"tune": {"test": ours}}}
    change_summary(copy, accuracy=accuracy, selected_model="tune", selection_reason=None)
    run = RunDir.read(copy)
    assert said in words.verdict(run)[0]
    gain = words.gain(run, "test")
    assert gain is not None
    assert gain.standard_error == pytest.approx(math.hypot(*(math.sqrt(p * (1 - p) / 10_000) for p in (ours, 0.469))))


def test_issues_are_each_named_once_in_the_list(made: Path, page: Page):
    labels = pd.read_parquet(made / "labels.parquet")
    listed = page.words[page.words.index("suspected labels") : page.words.index("How to go on", 2000)]
    for name in labels.loc[labels["is_label_issue"], "id"]:
        assert listed.count(f"{name} ") == 1


def test_commands_name_the_folder_and_survive_a_blank_in_it(made: Path, tmp_path: Path):
    run = shutil.copytree(made, tmp_path / "my run's")
    said = render_page(without_losses(run)).words
    assert """cleantune predict 'my run'"'"'s' DATA""" in said
    assert """cleantune.load("my run's")""" in said
    assert "--out runs/x --resume" in said
    assert str(tmp_path) not in said


# The arithmetic.


def test_confusion_and_pairs_equal_a_count_by_hand(made: Path):
    run = RunDir.read(made)
    by_hand = np.zeros((len(NAMES), len(NAMES)), dtype=int)
    for given_label, suggested in zip(run.labels["given_label"], run.labels["suggested_label"], strict=True):
        by_hand[NAMES.index(given_label), NAMES.index(suggested)] += 1
    counts = tables.confusion(run)
    assert (counts == by_hand).all()
    for pair in tables.top_pairs(list(NAMES), counts):
        row = by_hand[NAMES.index(pair.given)]
        assert pair.samples == row[NAMES.index(pair.suggested)]
        assert pair.share == pytest.approx(pair.samples / row.sum())
    shades = [cell.shade for row in tables.heatmap(counts) for cell in row if not cell.agrees]
    assert max(shades) == 1.0


def test_expected_counts_are_the_mixture_integrated_over_bins():
    edges = np.linspace(0, 4, 9)
    normal = {"mean": 1.5, "std": 0.4, "weight": 0.3}
    found = figures.expected_counts([(200, {"low": normal})], "low", edges)
    fine = np.linspace(-3, 8, 110_001)
    density = np.exp(-0.5 * ((fine - 1.5) / 0.4) ** 2) / (0.4 * math.sqrt(2 * math.pi)) * 0.3 * 200
    step = fine[1] - fine[0]
    by_hand = [density[(fine >= a) & (fine < b)].sum() * step for a, b in pairwise(edges)]
    assert found == pytest.approx(by_hand, abs=0.02)
    assert figures.expected_counts([(200, {"low": normal | {"mean": 1.6, "std": 0.0}})], "low", edges)[
        3
    ] == pytest.approx(60)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.01, 0.2))
def test_spread_keeps_the_order_the_gap_and_the_mean(heights: list[float], gap: float):
    moved = figures.spread(heights, gap)
    ranked = [moved[i] for i in sorted(range(len(heights)), key=lambda i: heights[i])]
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(ranked))
    assert sum(moved) == pytest.approx(sum(heights))
    if all(abs(a - b) >= gap for i, a in enumerate(heights) for b in heights[:i]):
        assert moved == pytest.approx(heights)


@given(st.lists(st.floats(-1, 50), max_size=200))
def test_bins_rise_and_hold_all_but_the_farthest_losses(values: list[float]):
    edges = figures.bin_edges(np.array(values))
    assert (np.diff(edges) > 0).all()
    assert sum(value > edges[-1] + 1e-9 for value in values) <= max(1, 0.005 * len(values))


def test_curves_begin_with_the_phase_that_was_measured():
    phases = ["probe"] * 3 + ["tune"] * 3 + ["end"]
    assert figures.measured_phases([[None] * 4 + [1.0, None, None]], phases) == (3, 6)
    assert figures.measured_phases([[1.0] * 7], phases) == (0, 7)


def test_numbers_read_as_a_person_writes_them():
    thin = "\u202f"
    assert fmt.percent(0.7034) == f"70.3{thin}%"
    assert fmt.percent(None) == "–"
    assert [fmt.points(v) for v in (0.0321, -0.005, 0.0001, -0.0001)] == ["+3.2", "\u22120.5", "0.0", "0.0"]
    assert fmt.count(10000) == "10,000"
    seconds = (0.44, 48.3, 59.7, 192, 3600, 3899)
    said = ["0.4 s", "48 s", "1 min 00 s", "3 min 12 s", "1 h 00 min", "1 h 05 min"]
    assert [fmt.duration(v).replace(thin, " ") for v in seconds] == said
    assert fmt.memory(1_310_000_000) == f"1.3{thin}GB"
    assert [finite(v) for v in (1, True, math.nan, "1", None)] == [1.0, None, None, None, None]
    assert [tables.score(v) for v in (0, 0.0001, 0.25, None)] == ["0.000", "< 0.001", "0.250", "–"]


def test_a_label_that_is_missing_is_no_class(tmp_path: Path):
    run = make_run(tmp_path / "x", names=NAMES)
    labels = pd.read_parquet(run / "labels.parquet")
    labels.loc[labels.index[:2], ["suggested_label", "true_label"]] = None
    labels.to_parquet(run / "labels.parquet")
    found = RunDir.read(run)
    assert list(found.labels["true_label"].head(2)) == [None, None]
    assert tables.confusion(found).sum() == len(labels) - 2
    assert tables.issues(found)[0].truth is None


@given(st.floats(1, 1e7))
def test_ticks_of_a_root_axis_have_one_digit_and_stand_apart(top: float) -> None:
    ticks = figures.root_ticks(top)
    assert ticks[0] == 0
    assert all(float(f"{tick:.0e}") == tick <= top for tick in ticks)
    heights = [math.sqrt(tick / top) for tick in ticks]
    assert all(b - a >= 0.1 for a, b in pairwise(heights))
    assert heights[-1] > 0.7
