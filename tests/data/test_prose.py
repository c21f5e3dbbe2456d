"""The shipped sentences that perplexity is measured on: what makes them fit for it."""

import re
from collections import Counter
from itertools import chain

import pytest
from places import ROOT

from editlib import data

RUN = 6  # words that two sentences may not share in a row


@pytest.fixture(scope="module")
def prose() -> list[str]:
    return data.texts("prose-500")


def test_the_short_set_is_the_beginning_of_the_long_one(prose: list[str]) -> None:
    assert len(prose) == len(set(prose)) == 500
    assert data.texts("prose-50") == prose[:50]


def test_sentences_have_as_many_words_as_the_page_says_and_end(prose: list[str]) -> None:
    lengths = [len(text.split()) for text in prose]
    page = (ROOT / "book/methods.md").read_text("utf-8")
    assert (
        f"English sentences of {min(lengths)} to {max(lengths)} words" in page
        and 11 <= min(lengths) <= max(lengths) <= 45
    )
    assert not [text for text in prose if not re.fullmatch(r'["A-Z].*[.?!]"?', text) or text != " ".join(text.split())]


def test_no_sentence_repeats_another(prose: list[str]) -> None:
    words = [re.findall(r"\w+", text.lower()) for text in prose]
    runs = chain.from_iterable({tuple(row[i : i + RUN]) for i in range(len(row) - RUN + 1)} for row in words)
    assert not [run for run, count in Counter(runs).items() if count > 1]
    assert max(Counter(tuple(row[:3]) for row in words).values()) <= 2  # no sentence pattern either


def test_no_sentence_is_about_the_facts(prose: list[str]) -> None:
    """No subject occurs as words of a sentence, however written, and no name among the answers."""
    requests = data.requests("facts")
    answers = {answer for request in requests for answer in (request.target_new, request.target_true) if answer}
    for names, flag in (
        ({request.subject for request in requests}, re.IGNORECASE),
        ({answer for answer in answers if answer[0].isupper()}, re.NOFLAG),
    ):
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(names)))})(?!\w)", flag)
        assert not [(found.group(), text) for text in prose if (found := pattern.search(text))]
