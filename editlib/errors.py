"""The one error a user of editlib is meant to see."""


class EditlibError(ValueError):
    """A user's mistake; the message is one line naming the value and the fix."""
