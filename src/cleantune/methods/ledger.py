"""Per-sample memory of a run: a table of tensors that is saved with the checkpoint and shown in the report."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from cleantune.errors import UserError


class Ledger:
    """Named columns over the N samples of a split; a column is a tensor [N] or [N, ...] on the CPU.

    Methods keep per-sample state here, such as the targets of ELR or clean probabilities. Networks, optimizers and
    generators are the only other state of a run.
    """

    def __init__(self, num_rows: int) -> None:
        """Create an empty table.

        Args:
            num_rows: Number of samples N.
        """
        self.num_rows = num_rows
        self._columns: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._columns:
            raise KeyError(f"the ledger has no column {name!r}; it has {sorted(self._columns)}")
        return self._columns[name]

    def get(self, name: str, default: Tensor) -> Tensor:
        """Return a column, or the default if there is none."""
        return self._columns.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def write(self, name: str, value: Tensor) -> None:
        """Set a whole column.

        Raises:
            ValueError: The value does not have one entry per row.
        """
        if value.shape[0] != self.num_rows:
            raise ValueError(f"column {name!r} has {value.shape[0]} rows, the ledger {self.num_rows}")
        self._columns[name] = value.detach().cpu().clone()

    def allocate(self, name: str, width: int) -> None:
        """Set a column of zeros [N, width].

        Raises:
            UserError: The column does not fit into free memory.
        """
        needed, free = 4 * self.num_rows * width, psutil.virtual_memory().available
        if needed > free:
            raise UserError(
                f"{name}: a row of {width} numbers for each of {self.num_rows} samples takes {needed / 2**30:.1f} GiB,"
                f" but {free / 2**30:.1f} GiB are free; take fewer samples (--limit) or another method"
            )
        self._columns[name] = torch.zeros(self.num_rows, width)

    def update(self, name: str, rows: Int[Tensor, " B"], value: Tensor) -> None:
        """Set some rows of a column in place.

        Raises:
            ValueError: A row is not in the ledger.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_rows:
            raise ValueError(f"column {name!r}: rows {int(rows.min())} to {int(rows.max())} of {self.num_rows}")
        self[name][rows] = value.detach().cpu().to(self[name].dtype)

    def update_mean(self, name: str, value: Tensor) -> Tensor:
        """Add a value to the running mean in a column and return the mean.

        The number of values is kept in the column `<name>.count`, so that the mean survives a resume.
        """
        count_name = f"{name}.count"
        count = int(self._columns[count_name][0]) if count_name in self._columns and self.num_rows else 0
        old = self._columns.get(name)
        mean = value.detach().cpu() if old is None else old + (value.detach().cpu() - old) / (count + 1)
        self.write(name, mean)
        self.write(count_name, torch.full((self.num_rows,), count + 1, dtype=torch.int32))
        return mean

    def remove(self, *names: str) -> None:
        """Remove columns and the counts of their means; names without a column are ignored."""
        for name in names:
            self._columns.pop(name, None)
            self._columns.pop(f"{name}.count", None)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all columns by name."""
        return dict(self._columns)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace all columns.

        Raises:
            ValueError: A column does not have one entry per row.
        """
        self._columns = {}
        for name, value in state.items():
            self.write(name, value)
