"""What data is to one model: where a request's subject stands in its tokens, and prose it knows."""

import json
from dataclasses import dataclass
from itertools import islice

from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.names import is_testbed
from editlib.models.tokens import encode
from editlib.testbed import belief_prose
from editlib.testbed.dependence import build_dependent_world
from editlib.testbed.prose import END_OF_TEXT, documents
from editlib.testbed.world import build_world


@dataclass(frozen=True)
class SubjectTokens:
    """How a request's subject is tokenised in its prompt, special tokens not counted."""

    count: int
    first: int
    last: int

    @property
    def kind(self) -> str:
        """One token at the start of the prompt, one token later, or several."""
        if self.count > 1:
            return "several tokens"
        return "one token, first" if self.first == 0 else "one token, later"


def subject_tokens(lm: LanguageModel, request: EditRequest) -> SubjectTokens:
    """Count and positions of the subject's tokens in the bare prompt."""
    start, end = encode(lm.tokenizer, request.prompt, request.subject, special_tokens=False).subject
    return SubjectTokens(end - start, start, end - 1)


def has_prose(lm: LanguageModel) -> bool:
    """Whether a model is of the testbed, whose world has prose without end."""
    return is_testbed(lm.folder)


def corpus(lm: LanguageModel, tokens: int) -> list[str]:
    """Prose of a testbed model's world, at most enough for `tokens` tokens; `EditlibError` for any other model."""
    if not has_prose(lm):
        raise EditlibError(f"{lm.label} is no model of the testbed, and has no prose of its own; give texts")
    assert lm.folder
    recipe = json.loads((lm.folder / "card.json").read_text(encoding="utf-8"))["recipe"]
    if recipe.get("prose") == "belief":
        told = belief_prose.documents(build_dependent_world(recipe["seed"]), seed=2)
    else:
        told = documents(build_world(recipe["seed"]), seed=2)
    return [text.removesuffix(END_OF_TEXT) for text in islice(told, tokens // 200 + 10)]
