"""Review of suspected labels: decisions, page, cleaned data and exports."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_audit import embeddings
from tiny import save_tiny

import cleantune
from cleantune.errors import UserError
from cleantune.review.apply import apply_decisions
from cleantune.review.decisions import Decision, Decisions
from cleantune.review.server import ReviewServer
from cleantune.review.session import ReviewSession

MARKUP = '<img src=x onerror="window.harmed = 1"><script>window.harmed = 1</script>'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of embeddings."""
    folder = tmp_path_factory.mktemp("audit")
    data, _, _ = embeddings(folder)
    cleantune.audit(data, out=folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of texts, one of them with markup, whose suspects are made known by hand."""
    folder = tmp_path_factory.mktemp("texts")
    save_tiny("bert", folder / "bert")
    words = {"a": "the cat sat on the mat", "b": "send money to the bank now"}
    rows = [(f"t{i}", f"{words['ab'[i % 2]]} {i}", "ab"[i % 2]) for i in range(120)]
    rows[4] = ("t4", MARKUP, "a")
    pd.DataFrame(rows, columns=["id", "text", "label"]).to_csv(folder / "t.csv", index=False)
    cleantune.audit(folder / "t.csv", model=folder / "bert", out=folder / "run", quiet=True)
    frame = pd.read_parquet(folder / "run" / "labels.parquet")
    frame["is_label_issue"] = frame["id"].isin([f"t{i}" for i in range(70)])
    frame["label_score"] = np.where(frame["id"] == "t4", 0.0, frame["label_score"].clip(lower=0.01))
    frame.sort_values("label_score").to_parquet(folder / "run" / "labels.parquet", index=False)
    return folder / "run"


def decide(path: Path, said: list[tuple[Any, str, str]]) -> None:
    kept = Decisions(path)
    for id_, decision, label in said:
        kept.add(Decision(str(id_), "train", "?", decision, label))


def test_probabilities_in_a_file_are_audited_and_cleaned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3) * 0.2, 500).astype("f4")
    y = p.argmax(1)
    y[:50] = (y[:50] + 1) % 3
    np.savez(tmp_path / "p.npz", pred_probs=p, label=y)
    found = cleantune.audit(tmp_path / "p.npz", out=tmp_path / "run", quiet=True)
    worst = int(found.labels["id"].iloc[0])
    decide(tmp_path / "run" / "decisions.csv", [(worst, "relabel", "2"), (int(found.labels["id"].iloc[1]), "drop", "")])
    apply_decisions(tmp_path / "run", None, tmp_path / "clean.npz")
    with np.load(tmp_path / "clean.npz") as file:
        assert len(file["label"]) == len(file["pred_probs"]) == 499
    whole = cleantune.audit(tmp_path / "p.npz", out=tmp_path / "run", overwrite=True, quiet=True)
    assert len(whole.labels) == 500


def test_apply_changes_only_the_decided_rows(run: Path, tmp_path: Path) -> None:
    decide(
        tmp_path / "d.csv",
        [(3, "relabel", "cat"), (4, "drop", ""), (5, "keep", ""), (6, "unsure", ""), (7, "drop", ""), (7, "undo", "")],
    )
    apply_decisions(run, tmp_path / "d.csv", tmp_path / "clean.npz")
    with np.load(run.parent / "e.npz") as before, np.load(tmp_path / "clean.npz") as after:
        keep = np.arange(600) != 4
        want = before["label"].astype("U3")
        want[3] = "cat"
        assert (after["label"] == want[keep]).all()
        np.testing.assert_array_equal(after["features"], before["features"][keep])
    decide(tmp_path / "e.csv", [(3, "relabel", "dgo")])
    decide(tmp_path / "f.csv", [(9999, "drop", "")])
    with pytest.raises(UserError, match="no class"):
        apply_decisions(run, tmp_path / "e.csv", tmp_path / "x.npz")
    with pytest.raises(UserError, match='no row "9999"'):
        apply_decisions(run, tmp_path / "f.csv", tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def test_retraining_keeps_every_decision(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    worst = pd.read_parquet(mine / "labels.parquet").head(4)
    ids = worst["id"].tolist()
    decide(
        mine / "decisions.csv",
        [(ids[0], "keep", ""), (ids[1], "relabel", worst["suggested_label"].iloc[1]), (ids[2], "drop", "")],
    )
    before = (mine / "decisions.csv").read_bytes()
    told = apply_decisions(mine, None, None, retrain=True)
    assert "ranked again" in told[0]
    after = pd.read_parquet(mine / "labels.parquet").set_index("id")
    assert not after.loc[ids[0], "is_label_issue"]
    assert after.loc[ids[0], "given_label"] == worst["given_label"].iloc[0]
    assert after.loc[ids[1], "given_label"] == worst["suggested_label"].iloc[1]
    assert ids[2] not in after.index
    assert (mine / "decisions.csv").read_bytes() == before


def test_retraining_leaves_a_training_run_alone(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    (mine / "config.toml").write_text('[method]\nname = "gce"\n')
    decide(mine / "decisions.csv", [(0, "keep", "")])
    with pytest.raises(UserError, match="is a training run"):
        apply_decisions(mine, None, None, retrain=True)


def test_decisions_survive_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    decide(path, [(1, "keep", ""), (2, "drop", "")])
    with path.open("ab") as file:
        file.write(b"2026-01-01,3,train,a,re")
    kept = Decisions(path)
    assert [d.id for d in kept.history] == ["1", "2"]
    kept.add(Decision("4", "train", "a", "relabel", 'b, "quoted"\nline'))
    assert [(d.id, d.label) for d in Decisions(path).history] == [("1", ""), ("2", ""), ("4", 'b, "quoted"\nline')]


def test_stopping_is_suggested_when_few_were_wrong(tmp_path: Path) -> None:
    kept = Decisions(tmp_path / "d.csv")
    for i in range(49):
        kept.add(Decision(str(i), "train", "a", "keep", ""))
    assert not kept.progress()["stop"]
    kept.add(Decision("49", "train", "a", "drop", ""))
    assert "1 were wrong" in kept.progress()["stop"]
    assert kept.progress()["precision"] == pytest.approx(1 / 50)


@pytest.mark.parametrize("form", ["csv", "parquet", "cleanlab", "fiftyone", "label-studio", "argilla"])
def test_exports_contain_every_label_once(texts: Path, tmp_path: Path, form: str) -> None:
    end = {"csv": ".csv", "cleanlab": ".csv", "parquet": ".parquet"}.get(form, ".json")
    apply_decisions(texts, None, tmp_path / f"out{end}", export=form)
    if end == ".json":
        rows = json.loads((tmp_path / "out.json").read_text())
        ids = [row["id"] if form != "label-studio" else row["data"]["id"] for row in rows]
        if form == "argilla":
            assert rows[0]["fields"]["text"] == MARKUP
            assert set(rows[0]["suggestions"]["label"]) == {"value", "score", "agent"}
        if form == "label-studio":
            assert rows[0]["predictions"][0]["result"][0]["value"]["choices"][0] in ("a", "b")
    else:
        ids = list((pd.read_csv if end == ".csv" else pd.read_parquet)(tmp_path / f"out{end}")["id"])
    assert sorted(ids) == sorted(f"t{i}" for i in range(120))
    with pytest.raises(UserError, match="written as"):
        apply_decisions(texts, None, tmp_path / "out.xyz", export=form)


class Client:
    """Asks a running review."""

    def __init__(self, server: ReviewServer) -> None:
        self.address, self.token = f"http://127.0.0.1:{server.server_address[1]}", server.token

    def __call__(self, path: str, body: Any = None, **headers: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.address + path, data, {"X-Token": self.token} | headers)
        with urllib.request.urlopen(asked) as answer:
            return json.loads(answer.read())


@pytest.fixture
def served(texts: Path, tmp_path: Path) -> Iterator[ReviewServer]:
    server = ReviewServer(ReviewSession(texts, tmp_path / "decisions.csv"))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_need_the_token_and_the_local_host(served: ReviewServer) -> None:
    ask = Client(served)
    assert ask("/state")["suspects"] == 70
    for headers in ({"X-Token": "guess"}, {"Host": "evil.example:80"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            ask("/state", **headers)
    assert served.server_address[0] == "127.0.0.1"


def test_the_server_pages_filters_and_refuses(served: ReviewServer) -> None:
    ask = Client(served)
    assert [len(ask(f"/suspects?offset={o}&limit=60")["rows"]) for o in (0, 60)] == [60, 10]
    assert all(row["given"] == "a" for row in ask("/suspects?given=a")["rows"])
    assert ask("/suspects?low=0&high=0.005")["total"] == 1
    ask("/decide", {"row": 0, "decision": "drop"})
    assert ask("/suspects?open=1")["total"] == 69
    for bad in (
        {"row": 700, "decision": "drop"},
        {"row": 0, "decision": "eat"},
        {"row": 0, "decision": "relabel", "label": "zebra"},
    ):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask("/decide", bad)
    assert ask("/undo", {})["decided"] == 0


def test_pages_of_many_suspects_read_only_what_they_show(texts: Path, tmp_path: Path) -> None:
    session = ReviewSession(texts, tmp_path / "d.csv")
    session.rows = pd.concat([session.rows] * 1500, ignore_index=True)
    assert len(session.page({"offset": "30000", "given": "a"})["rows"]) == 60
    assert session.page({})["total"] == 105_000
    assert len(session.page({"limit": "100000"})["rows"]) == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, driven by playwright."""
    import shutil

    api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no browser here")
    with api.sync_playwright() as play:
        there = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield there
        there.close()


def told(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["id"], row["decision"]) for row in csv.DictReader(file)]


def launched(audit: Path, file: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of the review page in a process of its own, and its address."""
    command = [sys.executable, "-m", "cleantune", "review", str(audit), "--decisions", str(file), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


def test_keyboard_decisions_survive_a_crash(texts: Path, tmp_path: Path, browser: Any) -> None:
    file = tmp_path / "decisions.csv"
    process, address = launched(texts, file)
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#grid li[aria-selected=true]")
    # Markup in a text is shown as text, and nothing of it ran.
    assert MARKUP in page.inner_text("#grid li >> nth=0")
    assert page.evaluate("window.harmed") is None
    first = [page.get_attribute(f"#grid li >> nth={k}", "id") for k in range(4)]
    for key, kind in (("k", "keep"), ("r", "relabel"), ("d", "drop"), ("u", "unsure")):
        page.keyboard.press(key)
        page.wait_for_selector(f"#grid li.{kind}")
    page.keyboard.press("z")
    page.wait_for_selector("#grid:not(:has(li.unsure))")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#grid li[data-k='2']:focus")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [kind for _, kind in told(file)] == ["keep", "relabel", "drop", "unsure", "undo"]

    process, address = launched(texts, file)
    try:
        page.goto(address)
        page.wait_for_selector("#grid li.drop")
        kinds = [page.get_attribute(f"#{row}", "class") for row in first]
        assert kinds == ["keep", "relabel", "drop", ""]
        assert "3 of 70 decided" in page.inner_text("#numbers")
        page.keyboard.press("]")
        page.wait_for_selector("#grid li:nth-child(10):last-child")
        assert page.get_attribute("#grid", "role") == "listbox"
        assert "given" in page.get_attribute("#grid li >> nth=0", "aria-label")
    finally:
        process.kill()
        process.communicate()
        page.close()


def test_a_screen_reader_gets_names_and_announcements(texts: Path, tmp_path: Path, browser: Any) -> None:
    process, address = launched(texts, tmp_path / "decisions.csv")
    page = browser.new_page()
    try:
        page.goto(address)
        page.wait_for_selector("#grid li:focus")
        said = page.context.new_cdp_session(page)

        def tree() -> list[tuple[str, str, dict[str, Any]]]:
            """Role, name and states of every node that assistive technology is shown."""
            nodes = said.send("Accessibility.getFullAXTree")["nodes"]
            return [
                (
                    node["role"]["value"],
                    node.get("name", {}).get("value", "").strip(),
                    {state["name"]: state["value"].get("value") for state in node.get("properties", [])},
                )
                for node in nodes
                if not node.get("ignored")
            ]

        met = tree()
        roles = [role for role, _, _ in met]
        controls = {"button", "checkbox", "combobox", "spinbutton", "listbox", "option", "progressbar", "image"}
        assert controls - {"image"} <= set(roles)
        assert [role for role, name, _ in met if role in controls and not name] == []
        assert page.get_attribute("html", "lang") == "en"
        assert page.title().startswith("Review of")
        assert roles.count("main") == 1
        headings = [states["level"] for role, _, states in met if role == "heading"]
        assert headings == [1, 2]
        suspects = [(name, states) for role, name, states in met if role == "option" and "given" in name]
        chosen = [name for name, states in suspects if states.get("selected")]
        focused = [name for name, states in suspects if states.get("focused")]
        assert len(suspects) == 60
        assert len(chosen) == 1
        assert chosen == focused
        assert all(word in chosen[0] for word in ("% wrong", "given", "suggested", MARKUP))

        page.keyboard.press("d")
        page.wait_for_selector("#grid li.drop")
        page.wait_for_selector("#grid li[data-k='1']:focus")
        met = tree()
        (live,) = (states for role, _, states in met if role == "status")
        assert live["live"] == "polite"
        assert page.inner_text("#live").startswith("drop. 1 of 70 decided")
        assert [name for role, name, _ in met if role == "option" and name.endswith(", drop")]
        (moved,) = (name for role, name, states in met if role == "option" and states.get("focused"))
        assert moved != focused[0]
    finally:
        process.kill()
        process.communicate()
        page.close()
