"""What all tests share: one thread, fixed seeds, no network, shape checks, and the data beside the project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes in signatures are checked while the tests run.
hook = install_import_hook(["cleantune.functional", "cleantune.label_quality"], "beartype.beartype")

torch.set_num_threads(1)
# No deadline: a busy machine is no fault of the code.
settings.register_profile("cleantune", deadline=None)
settings.load_profile("cleantune")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a cache of the tests instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEANTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the data and models that stand beside the project")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray of two CPUs for all tests that need it; it starts processes, so it starts once."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        source = str(Path(__file__).resolve().parents[1] / "src")
        patch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()
