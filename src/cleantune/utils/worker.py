"""State of a worker process: it takes over the working directory and the cache of the process that starts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cleantune.utils.malloc import keep_pages


@dataclass(frozen=True)
class WorkerEnvironment:
    """Environment of the process that starts workers."""

    cwd: str
    """Working directory, which relative paths of data refer to."""
    cache: str | None
    """Value of `$CLEANTUNE_CACHE`."""

    @classmethod
    def capture(cls) -> WorkerEnvironment:
        """Return the environment of this process."""
        return cls(str(Path.cwd()), os.environ.get("CLEANTUNE_CACHE"))

    def enter(self) -> None:
        """Set up this process, a worker, like the process that started it."""
        keep_pages()
        if Path(self.cwd).is_dir():  # Ray changes the directory
            os.chdir(self.cwd)
        if self.cache:
            os.environ["CLEANTUNE_CACHE"] = self.cache
