"""Data at an address: copied once, anew when it changes, and a sentence where it cannot be had."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cleantune.config.data import DataConfig
from cleantune.data import load
from cleantune.data.remote import fetch_to_cache
from cleantune.errors import UserError

WORDS = ["cat", "dog", "fly"]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fsspec.AbstractFileSystem]:
    monkeypatch.setenv("CLEANTUNE_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def put(system: fsspec.AbstractFileSystem, path: str, rows: int) -> None:
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(rows)], "label": [WORDS[i % 3] for i in range(rows)]})
    with system.open(path, "wb") as file:
        frame.to_parquet(file)


def counted(system: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file that is copied from now on."""
    seen: list[str] = []
    copy = type(system).get_file

    def noted(self: object, path: str, *a: object, **k: object) -> None:
        seen.append(path)
        copy(self, path, *a, **k)

    monkeypatch.setattr(type(system), "get_file", noted)
    return seen


def test_remote_table_is_copied_again_only_if_it_changed(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, "/bucket/talk.parquet", 30)
    seen = counted(memory, monkeypatch)
    data = load(DataConfig("memory://bucket/talk.parquet"))
    assert data.kind == "text"
    assert sum(map(len, data.rows.values())) == 30
    assert any("copied memory://bucket/talk.parquet (1 files" in note for note in data.notes)
    again = load(DataConfig("memory://bucket/talk.parquet"))
    assert again.rows["train"].samples.fingerprint == data.rows["train"].samples.fingerprint
    assert seen == ["/bucket/talk.parquet"]
    put(memory, "/bucket/talk.parquet", 60)
    assert sum(map(len, load(DataConfig("memory://bucket/talk.parquet")).rows.values())) == 60


def test_remote_copies_are_kept_in_the_given_cache(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    put(memory, "/bucket/talk.parquet", 30)
    load(DataConfig("memory://bucket/talk.parquet", test="memory://bucket/talk.parquet"), str(tmp_path / "elsewhere"))
    assert len(list((tmp_path / "elsewhere" / "remote").iterdir())) == 1
    assert not (tmp_path / "cache").exists()


def test_remote_image_folder_equals_a_local_one(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for i in range(24):
        out = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(out, "png")
        memory.pipe_file(f"/bucket/photos/{WORDS[i % 3]}/{i}.png", out.getvalue())
    memory.get("/bucket/photos/", f"{tmp_path}/photos/", recursive=True)
    there, here = load(DataConfig("memory://bucket/photos")), load(DataConfig(tmp_path / "photos"))
    assert there.classes == here.classes == tuple(WORDS)
    for split, rows in here.rows.items():
        assert list(there.rows[split].ids) == list(rows.ids)
        assert list(there.rows[split].y) == list(rows.y)
    shutil.rmtree(tmp_path / "cache")
    again = load(DataConfig("memory://bucket/photos"))
    assert again.fingerprint == there.fingerprint, "another machine finds the features of this one"
    memory.pipe_file("/bucket/photos/cat/0.png", out.getvalue())
    assert load(DataConfig("memory://bucket/photos")).fingerprint != there.fingerprint


def test_interrupted_copy_leaves_nothing_and_is_reported(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(memory, "/bucket/talk.parquet", 30)

    def broken(self: object, path: str, local: str, **_: object) -> None:
        Path(local).write_bytes(b"half")
        raise OSError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", broken)
        with pytest.raises(UserError, match=r"could not be copied \(the line is dead\); .* run the same command again"):
            fetch_to_cache("memory://bucket/talk.parquet", [], tmp_path / "cache")
    assert list((tmp_path / "cache" / "remote").iterdir()) == []
    assert fetch_to_cache("memory://bucket/talk.parquet", [], tmp_path / "cache").is_file()


def test_slower_process_takes_the_copy_of_the_other(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(memory, "/bucket/talk.parquet", 30)
    copy, first = type(memory).get_file, []

    def slow(self: fsspec.AbstractFileSystem, path: str, local: str, **options: object) -> None:
        if not first:
            first.append(local)
            fetch_to_cache("memory://bucket/talk.parquet", [], tmp_path / "cache")
        copy(self, path, local, **options)

    monkeypatch.setattr(type(memory), "get_file", slow)
    notes: list[str] = []
    assert len(pd.read_parquet(fetch_to_cache("memory://bucket/talk.parquet", notes, tmp_path / "cache"))) == 30
    assert len(list((tmp_path / "cache" / "remote").iterdir())) == 1


@pytest.mark.parametrize(("address", "words"), [
    ("memory://bucket/nothing.parquet", "does not exist"),
    ("nonsense://bucket/x.parquet", "there is no storage for nonsense://"),
    ("memory://bucket/talk.xyz", "cannot read files of the kind .xyz"),
])  # fmt: skip
def test_unavailable_address_is_a_user_error(memory: fsspec.AbstractFileSystem, address: str, words: str) -> None:
    memory.pipe_file("/bucket/talk.xyz", b"0")
    with pytest.raises(UserError, match=words) as error:
        load(DataConfig(address))
    assert "\n" not in str(error.value)
