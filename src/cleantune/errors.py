"""The one exception a user is meant to read, and the search for the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class UserError(Exception):
    """Something the user can put right, said in one sentence that names the place and the remedy.

    The command line prints the sentence and ends with exit code 2; it never shows a traceback for it.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, as the end of a sentence.

    Args:
        word: What was written.
        known: What could have been written.

    Returns:
        `; did you mean "turn"?`, or `; known: a, b, c` where nothing comes close.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(names)}"


def refuse_unknown_keys(table: Iterable[str], known: Collection[str], path: str = "") -> None:
    """Refuse the first key that is not known.

    Args:
        table: Its keys.
        known: Those there are.
        path: What the sentence writes before the key: `matrix.`.

    Raises:
        UserError: With the nearest key.
    """
    for key in table:
        if key not in known:
            raise UserError(f'unknown key "{path}{key}"{did_you_mean(key, known)}')
