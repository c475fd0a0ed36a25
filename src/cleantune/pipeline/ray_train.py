"""A run by several workers of Ray Train: started, followed, and started again from the last epoch when one is lost.

Ray places the processes and notices their end; inside, they are ranks (`ranks.here`) like those of torchrun. What makes
a restart cheap is the run's own checkpoint: all that a new group of workers does is to resume.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cleantune.errors import UserError
from cleantune.storage.files import read_json, write_json
from cleantune.storage.run_dir import RunDir
from cleantune.utils.console import Console
from cleantune.utils.malloc import keep_pages

RESTARTS = 8
"""Lost workers that a run survives."""
CONSOLE_FILE, ERROR_FILE, RAY = "spoken.txt", "refused.json", "ray"
"""In the run's folder while it is on its way: what rank 0 says, what the user can put right, and Ray's own records."""
ERROR_TIMEOUT = 10.0
"""Seconds in which all ranks meet the same obstacle, where it is one for all."""
POLL = 0.3
"""Seconds between two looks at what rank 0 says."""


def launch_workers(work: Callable[[Console], None], workers: int, folder: RunDir, console: Console, gpus: bool) -> None:
    """Do work in several processes at once.

    Args:
        work: The run, from where its folder says that it stands to its end; called in every worker.
        workers: How many.
        folder: Of the run, on storage that all workers see.
        console: Where what rank 0 says is repeated.
        gpus: Whether each worker gets a GPU.

    Raises:
        UserError: Ray is missing, the cluster is too small or was lost, or what a worker refused.
    """
    clear(folder)
    with ray_session(workers) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        there = ray.cluster_resources()
        kind, each = ("GPU", 1.0) if gpus else ("CPU", float(max(1, there.get("CPU", 1) // workers)))
        if there.get(kind, 0) < workers:
            raise UserError(
                f"--workers {workers}: the Ray cluster has {there.get(kind, 0):g} {kind}s;"
                f" start more nodes, or take --workers {max(1, int(there.get(kind, 0)))}"
            )
        console.info(f"{workers} workers by Ray, each with {each:g} {kind}{'s' if each > 1 else ''}")
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"work": work, "folder": str(folder.path.resolve()), **worker_environment()},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpus, resources_per_worker=None if gpus else {"CPU": each}
            ),
            run_config=RunConfig(
                name="run",
                storage_path=str(folder.path.resolve() / RAY),
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        with echo_file(folder.path / CONSOLE_FILE, console):
            try:
                trainer.fit()
            except Exception as error:  # Ray has an exception for every way to fail, all of them end the run
                if not (folder.path / ERROR_FILE).is_file():
                    raise worker_failure(error) from error
    if (folder.path / ERROR_FILE).is_file():
        said = read_json(folder.path / ERROR_FILE)["reason"]
        clear(folder)
        raise UserError(said)
    clear(folder)


def worker_environment() -> dict[str, Any]:
    """What a worker needs of the process that started it."""
    return {"cwd": str(Path.cwd()), "cache": os.environ.get("CLEANTUNE_CACHE")}


def run_worker(given: dict[str, Any]) -> None:
    """The life of one worker: resume, work, and note what the user can put right."""
    keep_pages()  # a worker is a process of our own, as the command line is
    folder = Path(given["folder"])
    if (folder / ERROR_FILE).is_file():  # said by the workers before
        return
    if Path(given["cwd"]).is_dir():
        os.chdir(given["cwd"])  # Ray changes it, and data may be named by relative paths
    if given["cache"]:
        os.environ["CLEANTUNE_CACHE"] = given["cache"]
    main = os.environ.get("RANK", "0") == "0"
    spoken = (
        folder / CONSOLE_FILE if main else Path(os.devnull)
    )  # of the others it would look as if there had been a group
    again = main and spoken.is_file()
    try:
        with spoken.open("a", encoding="utf-8") as file:
            console = Console(quiet=not main, out=file)
            if again:
                console.info("a worker was lost: all go on from the last epoch's checkpoint")
            given["work"](console)
    except UserError as error:
        write_json(folder / ERROR_FILE, {"reason": str(error)})
        if not all_ranks_failed(folder):
            raise  # Ray ends the others, and the next workers see what was refused


def all_ranks_failed(folder: Path) -> bool:
    """Whether every rank comes to the same refusal within a moment; else some wait for this one."""
    (folder / f"{ERROR_FILE}.{os.environ.get('RANK', '0')}").touch()
    limit = time.monotonic() + ERROR_TIMEOUT
    while time.monotonic() < limit:
        if len(list(folder.glob(f"{ERROR_FILE}.*"))) == int(os.environ.get("WORLD_SIZE", "1")):
            return True
        time.sleep(0.1)
    return False


def clear(folder: RunDir) -> None:
    """Remove what workers leave beside the run."""
    import shutil

    for path in (folder.path / CONSOLE_FILE, *folder.path.glob(f"{ERROR_FILE}*")):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder.path / RAY, ignore_errors=True)


@contextmanager
def ray_session(cpus: int) -> Iterator[Any]:
    """Ray: the session that is there, the cluster that RAY_ADDRESS names, or one of this machine for the time.

    Args:
        cpus: At least so many CPUs are offered by a session of this machine, whatever it has.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise UserError("this needs Ray: pip install 'cleantune[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves a training beside any other work
    quiet = {"log_to_driver": False, "configure_logging": True, "logging_level": "ERROR"}
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            ray.init(num_cpus=max(cpus, len(os.sched_getaffinity(0))), include_dashboard=False, **quiet)
    except Exception as error:
        address = os.environ.get("RAY_ADDRESS")
        raise UserError(
            f"Ray does not start ({first_line(error)});"
            + (f" is there a cluster at RAY_ADDRESS={address}?" if address else " see /tmp/ray/session_latest/logs")
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def worker_failure(error: Exception) -> UserError:
    """The sentence for a run that Ray could not bring to its end."""
    return UserError(
        f"the workers were lost more than {RESTARTS} times or Ray itself was: {first_line(error)};"
        " what is finished is on disk, the same command with --resume goes on"
    )


def first_line(error: Exception) -> str:
    """What an error says, at most 300 characters of it."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


@contextmanager
def echo_file(path: Path, console: Console) -> Iterator[None]:
    """Repeat what is written to a file, as it comes, until the end."""
    ended = threading.Event()

    def follow() -> None:
        place = 0
        while True:
            last = ended.wait(POLL)
            if path.is_file():
                with path.open("rb") as file:
                    file.seek(place)
                    new = file.read()
                whole = new if last else new[: new.rfind(b"\n") + 1]
                place += len(whole)
                if whole:
                    console.info(whole.decode("utf-8", errors="replace").rstrip("\n"))
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
