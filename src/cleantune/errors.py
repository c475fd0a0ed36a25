"""The error that users read, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class UserError(Exception):
    """Error that the user can fix: one sentence with the file, row or key and the remedy.

    The command line prints the sentence without a traceback and exits with code 2.
    """


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return a suggestion for a misspelled name, as the end of a sentence.

    Args:
        word: Name in the input.
        choices: Valid names.

    Returns:
        `; did you mean "turn"?`, or `; known: a, b, c` if no name is similar.
    """
    names = sorted(choices)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(names)}"


def refuse_unknown_keys(table: Iterable[str], allowed: Collection[str], path: str = "") -> None:
    """Check that all keys of a table are allowed.

    Args:
        table: Keys in the input.
        allowed: Valid keys.
        path: Prefix of the key in the message, such as `matrix.`.

    Raises:
        UserError: A key is not allowed; the message suggests the nearest one.
    """
    for key in table:
        if key not in allowed:
            raise UserError(f'unknown key "{path}{key}"{did_you_mean(key, allowed)}')
