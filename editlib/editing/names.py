"""The names of methods and flavours, known without torch; what they stand for is in `methods`."""

METHODS = ("ft", "ft-l", "mend", "rome", "c-rome", "fc-rome", "p-rome", "r-rome", "memit", "emmet")
FLAVOURS = ("meng-2022", "yang-2024")
