"""The names of methods, filters, flavours and guards, known without torch; what they stand for is in `methods`."""

from typing import Literal, get_args

from editlib.errors import EditlibError, unknown

METHODS = (
    "ft", "ft-l", "mend", "rome", "c-rome", "fc-rome", "p-rome", "r-rome", "memit", "emmet", "memit-seq", "encore",
    "alphaedit", "nas", "rlsedit", "d4s", "locft-bf", "lora", "kn", "coachhook", "grace", "memoir", "wise",
    "serac", "skeme", "ike",
)  # fmt: skip
FILTERS = ("rect", "revive", "sphere", "1-li", "prune")
Guard = Literal["warn", "refuse", "off"]  # what to do about an edit that may break its model
GUARDS: tuple[Guard, ...] = get_args(Guard)
SequenceGuard = Literal["off", "warn", "skip"]  # the same in a sequence, which goes on without an edit that is skipped
SEQUENCE_GUARDS: tuple[SequenceGuard, ...] = get_args(SequenceGuard)
FLAVOURS = ("meng-2022", "yang-2024")


def parts(name: str) -> tuple[str, tuple[str, ...]]:
    """A method and the filters its updates go through, of a name such as `rome+rect`.

    Raises `EditlibError` for an unknown one, and for filters that do not go together.
    """
    method, *filters = name.split("+")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    for each in filters:
        if each not in FILTERS:
            raise unknown("filter", each, FILTERS)
        if filters.count(each) > 1:
            raise EditlibError(f"method {name!r} has {each} twice; leave one out")
    if "prune" in filters[:-1]:
        fixed = "+".join([method, *(each for each in filters if each != "prune"), "prune"])
        raise EditlibError(f"method {name!r}: prune takes all changes up to now, so it comes last; write {fixed}")
    return method, tuple(filters)
