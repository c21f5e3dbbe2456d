"""Where the subject's and the target's tokens are, checked against the bytes every token stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from editlib.data.request import EditRequest
from editlib.engine.values import encode_contexts
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import Encoded, check_length, encode, encode_text, prompt_ids


def byte_alphabet() -> dict[str, int]:
    """The printable stand-in of every byte in byte-level vocabularies, as published with GPT-2."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


ALPHABET = byte_alphabet()
WORDS = [
    "Zen",
    "Brast",
    "Nolva",
    "Zé",
    "東京",
    "Ωmega",
    "naïve",
    "🙂",
    "a",
    "Daslo",
    "İ",
    "e\u0301",
    "Quint's",
]
PIECES = st.one_of(st.sampled_from([*WORDS, " ", "  ", ", ", ".", "\n"]), st.text("abZ é東🙂'1 ", max_size=4))
TEXTS = st.lists(PIECES, max_size=5).map("".join)
SUBJECTS = TEXTS.filter(lambda text: text.strip() != "")


def token_bytes(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> list[bytes]:
    """The bytes of each token, from the vocabulary alone; none for special tokens."""
    special = set(tokenizer.all_special_ids)
    return [
        b"" if i in special else bytes(ALPHABET[char] for char in token)
        for i, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)
    ]


def holders(tokens: list[bytes], start: int, end: int) -> list[int]:
    """Tokens that hold at least one of the bytes [start, end) of the text they spell."""
    hits, at = [], 0
    for i, token in enumerate(tokens):
        if at < end and at + len(token) > start and token:
            hits.append(i)
        at += len(token)
    return hits


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "trimmed"])
def trimming(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "start"])
def any_tokenizer(request: pytest.FixtureRequest, trimming: bool, make_tokenizer: object) -> PreTrainedTokenizerFast:
    """With and without start token, offsets with and without leading spaces."""
    return make_tokenizer(start=request.param, trim_offsets=trimming)  # type: ignore[operator,no-any-return]


@given(before=TEXTS, subject=SUBJECTS.map(str.strip), after=TEXTS)
def test_subject_span_holds_exactly_the_tokens_with_its_bytes(
    any_tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str
) -> None:
    row = encode(any_tokenizer, f"{before}{{}}{after}", subject)
    tokens = token_bytes(any_tokenizer, row.ids)
    assert b"".join(tokens).decode() == before + subject + after
    start = len(before.encode())
    expected = holders(tokens, start, start + len(subject.encode()))
    assert row.subject == (expected[0], expected[-1] + 1)
    assert row.last == expected[-1]
    assert row.target == len(row.ids)


@given(subject=SUBJECTS.map(str.strip), between=TEXTS)
def test_a_repeated_subject_is_found_where_the_braces_are(
    tokenizer: PreTrainedTokenizerFast, subject: str, between: str
) -> None:
    row = encode(tokenizer, f"{subject} {between} {{}} {subject}", subject)
    start = len(f"{subject} {between} ".encode())
    expected = holders(token_bytes(tokenizer, row.ids), start, start + len(subject.encode()))
    assert row.subject == (expected[0], expected[-1] + 1)


@given(subject=SUBJECTS)
def test_subject_with_spaces_around_it_is_covered(tokenizer: PreTrainedTokenizerFast, subject: str) -> None:
    row = encode(tokenizer, "In {} today", subject)
    expected = holders(token_bytes(tokenizer, row.ids), 3, 3 + len(subject.encode()))
    assert row.subject == (expected[0], expected[-1] + 1)


@given(prompt=TEXTS, subject=SUBJECTS.map(str.strip), target=SUBJECTS.map(str.strip))
def test_target_begins_at_the_first_token_that_holds_some_of_it(
    any_tokenizer: PreTrainedTokenizerFast, prompt: str, subject: str, target: str
) -> None:
    row = encode(any_tokenizer, f"{{}}{prompt}", subject, target=target, separator=" ")
    tokens = token_bytes(any_tokenizer, row.ids)
    text = f"{subject}{prompt} {target}"
    assert b"".join(tokens).decode() == text
    assert row.target == holders(tokens, len(f"{subject}{prompt} ".encode()), len(text.encode()))[0]
    assert row.subject[1] <= row.target < len(row.ids)
    assert target.encode().endswith(b"".join(tokens[row.target :]).lstrip(b" ")[-1:])


@pytest.mark.parametrize(
    ("template", "subject", "pieces"),
    [
        ("{} is located in", "Zen", ["Zen"]),
        ("The town of {}", "Zen", [" Zen"]),
        ("{}", "Zen", ["Zen"]),
        ("Zen and {} and Zen", "Zen", [" Zen"]),
        ("({}) is", "Zen", ["Zen"]),
    ],
)
def test_spans_of_plain_prompts(
    tokenizer: PreTrainedTokenizerFast, template: str, subject: str, pieces: list[str]
) -> None:
    row = encode(tokenizer, template, subject)
    assert [tokenizer.decode([i]) for i in row.ids[slice(*row.subject)]] == pieces


def test_a_character_of_several_tokens_is_covered_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    row = encode(tokenizer, "In {} today", "🙂")
    assert b"".join(token_bytes(tokenizer, row.ids)[slice(*row.subject)]) in ("🙂".encode(), " 🙂".encode())


def test_braces_inside_the_subject_are_text(tokenizer: PreTrainedTokenizerFast) -> None:
    row = encode(tokenizer, "In {} today", "Z{}n")
    assert tokenizer.decode(row.ids) == "In Z{}n today"
    assert tokenizer.decode(row.ids[slice(*row.subject)]).strip() == "Z{}n"


def test_start_token_moves_the_span_and_can_be_left_out(start_tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode(start_tokenizer, "{} is", "Zen").subject == (1, 2)
    assert encode(start_tokenizer, "{} is", "Zen", special_tokens=False).subject == (0, 1)


def test_subject_that_the_tokenizer_strips_cannot_be_located(make_tokenizer: object) -> None:
    stripping = make_tokenizer(normalizer=normalizers.Replace("☃", ""))  # type: ignore[operator]
    with pytest.raises(EditlibError, match="^the tokens of subject '☃' cannot be located in '☃ is': no token"):
        encode(stripping, "{} is", "☃")


def test_target_that_the_tokenizer_strips_is_refused(make_tokenizer: object) -> None:
    stripping = make_tokenizer(normalizer=normalizers.Replace(" ☃", ""))  # type: ignore[operator]
    with pytest.raises(EditlibError, match="^target '☃' has no token of its own after 'Zen is'"):
        encode(stripping, "{} is", "Zen", target="☃")


def test_target_inside_the_subjects_token_is_refused() -> None:
    core = Tokenizer(models.WordLevel({"?": 0, "Zen Daslo": 1}, unk_token="?"))  # one token for the whole text
    whole = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    with pytest.raises(EditlibError, match="^target 'Daslo' shares a token with subject 'Zen'"):
        encode(whole, "{}", "Zen", target="Daslo")


def test_target_that_shares_a_token_with_the_subject_is_refused() -> None:
    core = Tokenizer(models.WordLevel({"?": 0, "Zen D": 1, "aslo": 2}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("aslo", "isolated")
    shared = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    with pytest.raises(EditlibError, match="^target 'Daslo' shares a token with subject 'Zen'; give another target"):
        encode(shared, "{}", "Zen", target="Daslo")


def test_normalizer_that_changes_lengths_keeps_spans(make_tokenizer: object) -> None:
    longer = make_tokenizer(normalizer=normalizers.NFKD())  # type: ignore[operator]
    row = encode(longer, "In {} today", "Zéé")
    assert longer.decode(row.ids[slice(*row.subject)]).strip() == "Ze\u0301e\u0301"


def test_contexts_go_before_the_request(gpt2: LanguageModel, ask: EditRequest) -> None:
    contexts = ["{}", "Because the winter. {}", "I, Brast Nolva. {}"]
    for context, row in zip(contexts, encode_contexts(gpt2, ask, contexts, target="Ostrel"), strict=True):
        before = context.replace("{}", "The town of")
        assert gpt2.tokenizer.decode(row.ids[: row.subject[0]]) == before
        assert gpt2.tokenizer.decode(row.ids[slice(*row.subject)]) == " Brast Nolva"
        assert gpt2.tokenizer.decode(row.ids[row.target :]) == " Ostrel"


def test_a_request_that_is_too_long_behind_a_context_is_named(gpt2: LanguageModel) -> None:
    request = EditRequest(prompt="{} " + "is " * 60, subject="Zen", target_new="Daslo")
    assert len(encode_contexts(gpt2, request, ["{}"])) == 1
    message = r"^text 'is is is .*'\.\.\. has 1\d\d tokens, tiny-gpt2 takes at most 128; shorten it$"
    with pytest.raises(EditlibError, match=message):
        encode_contexts(gpt2, request, ["{}", "is " * 70 + "{}"])


@given(prompt=TEXTS, target=SUBJECTS.map(str.strip))
def test_plain_text_is_split_where_the_target_begins(
    any_tokenizer: PreTrainedTokenizerFast, prompt: str, target: str
) -> None:
    text = f"Zen{prompt} {target}"
    before, after = encode_text(any_tokenizer, f"Zen{prompt}", target, separator=" ")
    assert [*before, *after] == any_tokenizer(text)["input_ids"]
    tokens = token_bytes(any_tokenizer, (*before, *after))
    assert len(before) == holders(tokens, len(f"Zen{prompt} ".encode()), len(text.encode()))[0]


@given(prompt=TEXTS, subject=SUBJECTS.map(str.strip), target=SUBJECTS.map(str.strip))
def test_plain_text_is_split_as_the_request_it_spells(
    start_tokenizer: PreTrainedTokenizerFast, prompt: str, subject: str, target: str
) -> None:
    for separator in (" ", None):
        try:
            row = encode(start_tokenizer, f"{{}}{prompt}", subject, target=target, separator=separator)
        except EditlibError as error:  # nothing between them, and a token of both
            assert separator is None and "shares a token" in str(error)
            continue
        before, after = encode_text(start_tokenizer, f"{subject}{prompt}", target, separator=separator)
        assert (before + after, len(before)) == (row.ids, row.target)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Zen is in", "Zen is in Daslo"),
        ("Zen is in ", "Zen is in Daslo"),
        ("Zen:", "Zen: Daslo"),
        ('"Zen"', '"Zen" Daslo'),
        ("Zen\n", "Zen\nDaslo"),
        ("Zen (", "Zen (Daslo"),
        ("Zen “", "Zen “Daslo"),
        ("中国的首都是", "中国的首都是Daslo"),
        ("日本の首都は、", "日本の首都は、Daslo"),
        ("แดง", "แดงDaslo"),
        ("서울", "서울 Daslo"),
    ],
)
def test_what_stands_between_prompt_and_target(tokenizer: PreTrainedTokenizerFast, prompt: str, text: str) -> None:
    for target in ("Daslo", " Daslo", "Daslo\n"):
        before, after = encode_text(tokenizer, prompt, target)
        assert tokenizer.decode([*before, *after]) == text
        assert tokenizer.decode(after).strip() == "Daslo"
    assert tokenizer.decode(sum(encode_text(tokenizer, prompt, "Daslo", separator="-"), ())) == f"{prompt}-Daslo"


def superwords(*words: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each of some stretches of text, whatever they hold."""
    core = Tokenizer(models.WordLevel({"?": 0, **{word: i for i, word in enumerate(words, start=1)}}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(words)), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


def test_a_token_that_ends_in_the_separator_is_the_prompts() -> None:
    tokenizer = superwords("Lily", " went to the ", "store")
    assert encode_text(tokenizer, "Lily went to the", "store") == ((1, 2), (3,))
    assert encode(tokenizer, "{} went to the", "Lily", target="store") == Encoded((1, 2, 3), (0, 1), 2)


@pytest.mark.parametrize("unknown", [False, True])
def test_what_a_tokenizer_closes_texts_with_is_part_of_nothing(make_tokenizer: object, unknown: bool) -> None:
    plain, closing = make_tokenizer(start=True), make_tokenizer(start=True)  # type: ignore[operator]
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{plain.bos_token} $A {plain.eos_token}", special_tokens=[(plain.bos_token, 1), (plain.eos_token, 0)]
    )
    plain.unk_token = closing.unk_token = plain.eos_token if unknown else plain.bos_token
    assert closing("Zen")["input_ids"][-1] == closing.eos_token_id
    asked = {"template": "{} is in", "subject": "Zen"}
    assert encode(closing, **asked, target="Daslo") == encode(plain, **asked, target="Daslo")
    assert encode(closing, **asked) == encode(plain, **asked)
    assert encode_text(closing, "Zen is in", "Daslo") == encode_text(plain, "Zen is in", "Daslo")
    assert prompt_ids(closing, "Zen is\n") == prompt_ids(plain, "Zen is\n") == tuple(plain("Zen is\n")["input_ids"])


def test_a_token_of_prompt_and_target_is_the_targets() -> None:
    core = Tokenizer(models.WordLevel({"?": 0, "Zen": 1, " i": 2, "n Daslo": 3}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("n Daslo", "isolated")
    shared = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    assert encode_text(shared, " in", "Daslo") == ((2,), (3,))


def test_a_plain_prompt_without_a_token_is_refused(
    tokenizer: PreTrainedTokenizerFast, start_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(EditlibError, match="^prompt '' has no token before target 'Daslo'; give a longer prompt"):
        encode_text(tokenizer, "", "Daslo")
    assert start_tokenizer.decode(encode_text(start_tokenizer, "", "Daslo")[1]) == " Daslo"


def test_a_target_that_the_tokenizer_strips_from_plain_text_is_refused(make_tokenizer: object) -> None:
    stripping = make_tokenizer(normalizer=normalizers.Replace(" ☃", ""))  # type: ignore[operator]
    with pytest.raises(EditlibError, match="^target '☃' has no token of its own after 'Zen is'"):
        encode_text(stripping, "Zen is", "☃")


def test_the_longest_text_is_named_if_it_does_not_fit(gpt2: LanguageModel) -> None:
    check_length(gpt2, [], [])
    check_length(gpt2, ["a", "b"], [range(128), range(3)])
    with pytest.raises(EditlibError, match=r"^text 'b'... has 129 tokens, tiny-gpt2 takes at most 128; shorten it$"):
        check_length(gpt2, ["a", "b"], [range(3), range(129)])


@given(text=TEXTS)
def test_the_oracle_spells_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tuple(tokenizer(text)["input_ids"])
    assert b"".join(token_bytes(tokenizer, ids)).decode() == text


@pytest.mark.parametrize(("subject", "target", "unknown"), [("Zürich", "Daslo", "Zürich"), ("Zen", "Dæslo", "Dæslo")])
def test_characters_the_tokenizer_does_not_know_are_refused(subject: str, target: str, unknown: str) -> None:
    words = {word: i for i, word in enumerate(["[UNK]", "Zen", "is", "in", "Daslo"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
    assert encode(tokenizer, "{} is in", "Zen", target="Daslo").ids == (1, 2, 3, 4)
    message = rf"^'{unknown}' has characters the tokenizer does not know \(\[UNK\]\); is this request for another model"
    with pytest.raises(EditlibError, match=message):
        encode(tokenizer, "{} is in", subject, target=target)


def test_a_tokenizer_that_drops_characters_is_found_out() -> None:
    letters = {letter: i for i, letter in enumerate(" aeilnsDo")}
    dropping = Tokenizer(models.BPE(letters, []))  # no unknown token: what it lacks is gone, and offsets shift
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=dropping)
    assert encode(tokenizer, "{} is in", "ali", target="Dasl").subject
    with pytest.raises(EditlibError, match="^the tokenizer loses characters of 'alī is in Dasl'; is this request for"):
        encode(tokenizer, "{} is in", "alī", target="Dasl")
