"""The names of methods, flavours and guards, known without torch; what they stand for is in `methods`."""

METHODS = ("ft", "ft-l", "mend", "rome", "c-rome", "fc-rome", "p-rome", "r-rome", "memit", "emmet")
GUARDS = ("warn", "refuse", "off")  # what to do about an edit that may break its model
FLAVOURS = ("meng-2022", "yang-2024")
