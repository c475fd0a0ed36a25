"""A run on several workers of Ray Train, restarted from the last checkpoint where a worker is lost.

Ray starts the processes and notices their end; inside, they form a process group like those of torchrun. A restart is
cheap because a new group of workers only resumes the run.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleantune.errors import UserError
from cleantune.storage.files import read_json, write_json
from cleantune.storage.run_dir import RunDir
from cleantune.utils.console import Console
from cleantune.utils.worker import WorkerEnvironment

RESTARTS = 8
"""Number of lost workers that a run survives."""
CONSOLE_FILE = "worker_console.txt"
"""Messages of rank 0, in the run's folder while it runs."""
ERROR_FILE = "worker_error.json"
"""User error of a worker, in the run's folder while it runs."""
RAY = "ray"
"""Ray's own files, in the run's folder while it runs."""
ERROR_TIMEOUT = 10.0
"""Seconds within which all ranks raise the same user error."""
POLL_SECONDS = 0.3
"""Seconds between two readings of the messages of rank 0."""
NICENESS = 0
"""Niceness of workers; Ray's 15 starves training next to any other work."""


@dataclass(frozen=True)
class WorkerJob:
    """Arguments of a worker."""

    work: Callable[[Console], None]
    """Function that resumes the run from its folder."""
    folder: Path
    environment: WorkerEnvironment


def launch_workers(
    work: Callable[[Console], None], workers: int, run_dir: RunDir, console: Console, uses_gpus: bool
) -> None:
    """Run work in several processes at once.

    Args:
        work: Function that every worker calls; it resumes the run from its folder.
        workers: Number of workers.
        run_dir: Folder of the run, on storage that all workers see.
        console: Console that repeats the messages of rank 0.
        uses_gpus: Whether each worker gets a GPU.

    Raises:
        UserError: Ray is missing, the cluster is too small or was lost, or a worker raised a user error.
    """
    remove_worker_files(run_dir)
    with ray_session(workers) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        resources = ray.cluster_resources()
        kind, share = ("GPU", 1.0) if uses_gpus else ("CPU", float(max(1, resources.get("CPU", 1) // workers)))
        if resources.get(kind, 0) < workers:
            raise UserError(
                f"--workers {workers}: the Ray cluster has {resources.get(kind, 0):g} {kind}s;"
                f" start more nodes, or take --workers {max(1, int(resources.get(kind, 0)))}"
            )
        console.info(f"{workers} workers by Ray, each with {share:g} {kind}{'s' if share > 1 else ''}")
        folder = run_dir.path.resolve()
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": WorkerJob(work, folder, WorkerEnvironment.capture())},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=uses_gpus, resources_per_worker=None if uses_gpus else {"CPU": share}
            ),
            run_config=RunConfig(
                name="run", storage_path=str(folder / RAY), failure_config=FailureConfig(max_failures=RESTARTS)
            ),
        )
        with echo_file(folder / CONSOLE_FILE, console):
            try:
                trainer.fit()
            except Exception as error:  # Ray has an exception for every way to fail, all of them end the run
                if not (folder / ERROR_FILE).is_file():
                    raise worker_failure(error) from error
    error_file = run_dir.path / ERROR_FILE
    reason = read_json(error_file)["reason"] if error_file.is_file() else None
    remove_worker_files(run_dir)
    if reason is not None:
        raise UserError(reason)


def run_worker(config: dict[str, WorkerJob]) -> None:
    """Run one worker: resume the run, and record a user error for the process that started it.

    Args:
        config: Configuration of Ray's training loop, whose `job` is the worker's.
    """
    job = config["job"]
    if (job.folder / ERROR_FILE).is_file():  # an earlier group of workers raised it
        return
    job.environment.enter()
    is_main = os.environ.get("RANK", "0") == "0"
    # The file's existence says that there was a group before this one, so only rank 0 creates it.
    messages = job.folder / CONSOLE_FILE if is_main else Path(os.devnull)
    is_restart = is_main and messages.is_file()
    try:
        with messages.open("a", encoding="utf-8") as file:
            console = Console(quiet=not is_main, out=file)
            if is_restart:
                console.info("a worker was lost: all continue from the last checkpoint")
            job.work(console)
    except UserError as error:
        write_json(job.folder / ERROR_FILE, {"reason": str(error)})
        if not all_ranks_failed(job.folder):
            raise  # Ray ends the other workers, and the next group finds the error


def all_ranks_failed(folder: Path) -> bool:
    """Return whether every rank raises a user error within the timeout; otherwise some wait for this one."""
    (folder / f"{ERROR_FILE}.{os.environ.get('RANK', '0')}").touch()
    limit = time.monotonic() + ERROR_TIMEOUT
    while time.monotonic() < limit:
        if len(list(folder.glob(f"{ERROR_FILE}.*"))) == int(os.environ.get("WORLD_SIZE", "1")):
            return True
        time.sleep(0.1)
    return False


def remove_worker_files(run_dir: RunDir) -> None:
    """Remove the files of workers from the run's folder."""
    for path in (run_dir.path / CONSOLE_FILE, *run_dir.path.glob(f"{ERROR_FILE}*")):
        path.unlink(missing_ok=True)
    shutil.rmtree(run_dir.path / RAY, ignore_errors=True)


@contextmanager
def ray_session(cpus: int) -> Iterator[Any]:
    """Yield Ray with the current session, the cluster of RAY_ADDRESS, or a temporary session of this machine.

    Args:
        cpus: Smallest number of CPUs that a temporary session offers, whatever the machine has.

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
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "ERROR"}
    if not address:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options |= {"num_cpus": max(cpus, available), "include_dashboard": False}
        options |= {"_system_config": {"worker_niceness": NICENESS}}
    try:
        ray.init(**options)
    except Exception as error:
        remedy = f"is there a cluster at RAY_ADDRESS={address}?" if address else "see /tmp/ray/session_latest/logs"
        raise UserError(f"Ray does not start ({first_line(error)}); {remedy}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def worker_failure(error: Exception) -> UserError:
    """Return the error for a run that Ray could not finish."""
    return UserError(
        f"workers were lost more than {RESTARTS} times, or Ray itself was: {first_line(error)};"
        " progress is saved, run the same command with --resume to continue"
    )


def first_line(error: Exception) -> str:
    """Return type and message of an error in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


@contextmanager
def echo_file(path: Path, console: Console) -> Iterator[None]:
    """Print the lines of a growing file in a background thread until the block ends."""
    is_done = threading.Event()

    def follow() -> None:
        offset = 0
        while True:
            is_last = is_done.wait(POLL_SECONDS)
            if path.is_file():
                with path.open("rb") as file:
                    file.seek(offset)
                    new = file.read()
                lines = new if is_last else new[: new.rfind(b"\n") + 1]
                offset += len(lines)
                if lines:
                    console.info(lines.decode("utf-8", errors="replace").rstrip("\n"))
            if is_last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
