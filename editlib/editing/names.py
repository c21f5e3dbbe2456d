"""The names of methods, flavours and guards, known without torch; what they stand for is in `methods`."""

from typing import Literal, get_args

METHODS = (
    "ft", "ft-l", "mend", "rome", "c-rome", "fc-rome", "p-rome", "r-rome", "memit", "emmet", "memit-seq", "encore",
    "alphaedit", "rlsedit", "d4s",
)  # fmt: skip
Guard = Literal["warn", "refuse", "off"]  # what to do about an edit that may break its model
GUARDS: tuple[Guard, ...] = get_args(Guard)
FLAVOURS = ("meng-2022", "yang-2024")
