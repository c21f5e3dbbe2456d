"""The one error a user of editlib is meant to see."""

from collections.abc import Iterable
from difflib import get_close_matches


class EditlibError(ValueError):
    """A user's mistake; the message is one line naming the value and the fix."""


def unknown(kind: str, name: object, known: Iterable[str]) -> EditlibError:
    """The error for a name of some kind that is none of the known ones, with the one it looks like."""
    names = list(known)
    return EditlibError(f"{kind} {str(name)!r} is unknown; {hint(name, names)}use one of {', '.join(names)}")


def hint(name: object, known: Iterable[str]) -> str:
    """`did you mean rome? `, or nothing where no known name looks like it."""
    near = get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""
