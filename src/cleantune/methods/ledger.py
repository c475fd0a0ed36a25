"""Per-sample memory: one table of tensors, a row a sample, saved with the checkpoint and shown in the report."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from cleantune.errors import UserError


class Ledger:
    """Named columns over the N rows of a split; a column is a tensor [N] or [N, ...] on the CPU.

    Methods keep here what they remember of samples (ELR's targets, clean probabilities, averaged predictions).
    What is not in the ledger, the nets, the optimizers or the generators is not state.
    """

    def __init__(self, rows: int) -> None:
        """An empty table of so many rows."""
        self.rows = rows
        self._columns: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._columns:
            raise KeyError(f"the ledger has no column {name!r}; it has {sorted(self._columns)}")
        return self._columns[name]

    def get(self, name: str, default: Tensor) -> Tensor:
        """A column, or the default where there is none."""
        return self._columns.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def write(self, name: str, value: Tensor) -> None:
        """Set a whole column.

        Raises:
            ValueError: The value has not one entry a row.
        """
        if value.shape[0] != self.rows:
            raise ValueError(f"column {name!r} has {value.shape[0]} rows, the ledger {self.rows}")
        self._columns[name] = value.detach().cpu().clone()

    def begin(self, name: str, width: int) -> None:
        """Set a column of zeros [N, width].

        Raises:
            UserError: It does not fit into the free memory.
        """
        needed, free = 4 * self.rows * width, psutil.virtual_memory().available
        if needed > free:
            raise UserError(
                f"{name}: a row of {width} numbers for each of {self.rows} samples takes {needed / 2**30:.1f} GiB,"
                f" but {free / 2**30:.1f} GiB are free; take fewer samples (--limit) or another method"
            )
        self._columns[name] = torch.zeros(self.rows, width)

    def update(self, name: str, rows: Int[Tensor, " B"], value: Tensor) -> None:
        """Set some rows of a column in place.

        Raises:
            ValueError: A row is not in the ledger.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise ValueError(f"column {name!r}: rows {int(rows.min())} to {int(rows.max())} of {self.rows}")
        self[name][rows] = value.detach().cpu().to(self[name].dtype)

    def average(self, name: str, value: Tensor) -> Tensor:
        """Take a value into the running mean of a column and give the mean back.

        The number of values taken so far is kept in the column `<name>.count`, so the mean survives a resume.
        """
        counted = f"{name}.count"
        count = int(self._columns[counted][0]) if counted in self._columns and self.rows else 0
        old = self._columns.get(name)
        mean = value.detach().cpu() if old is None else old + (value.detach().cpu() - old) / (count + 1)
        self.write(name, mean)
        self.write(counted, torch.full((self.rows,), count + 1, dtype=torch.int32))
        return mean

    def forget(self, *names: str) -> None:
        """Remove columns and the counts of their means; a column that is not there is no error."""
        for name in names:
            self._columns.pop(name, None)
            self._columns.pop(f"{name}.count", None)

    def state_dict(self) -> dict[str, Tensor]:
        """All columns by name."""
        return dict(self._columns)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace all columns.

        Raises:
            ValueError: A column has not one entry a row.
        """
        self._columns = {}
        for name, value in state.items():
            self.write(name, value)
