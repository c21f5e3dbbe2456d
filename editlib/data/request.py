"""What is asked of an edit: a prompt, its subject, and what should follow."""

from dataclasses import dataclass

from editlib.errors import EditlibError
from editlib.text import is_text

SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and len(f"{c}.".splitlines()) == 1)


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """One fact to change: `prompt` holds one `{}` for `subject`, and `target_new` should follow it.

    Spaces around each of them count for nothing. `separator` stands between prompt and target; None for a space, or
    nothing where none is written (`separator_after`). Raises `EditlibError` for a prompt without exactly one `{}`, an
    empty subject or an empty target.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        texts = {"prompt": self.prompt, "subject": self.subject, "target_new": self.target_new}
        texts |= {name: text for name in ("target_true", "separator") if (text := getattr(self, name)) is not None}
        wrong = next((name for name, text in texts.items() if not is_text(text)), None)
        if wrong is not None:
            raise EditlibError(f"{wrong} {texts[wrong]!r} is no text")
        if not self.subject.strip():
            raise EditlibError(f"subject {self.subject!r} is empty; name what the prompt is about")
        if self.prompt.count("{}") != 1:
            raise EditlibError(
                f"prompt {self.prompt!r} must hold {{}} once, where the subject goes{self._suggestion()}"
            )
        if not self.target_new.strip():
            raise EditlibError(f"target {self.target_new!r} is empty; say what should follow the prompt")
        texts.pop("separator", None)  # spaces are what it is made of
        for name, text in texts.items():  # a line break at the end of a prompt is meant
            object.__setattr__(self, name, text.strip(SPACES) if name == "prompt" else text.strip() or None)

    def _suggestion(self) -> str:
        fixed = self.prompt.replace(self.subject, "{}", 1)
        return f": write {fixed!r}" if fixed.count("{}") == 1 else "; for example '{} is located in'"

    @property
    def text(self) -> str:
        """The prompt with its subject in place."""
        return self.prompt.replace("{}", self.subject, 1)
