"""Building a set of hard cases: what authors write, what is kept of it, and what survives an interruption."""

import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import editlib as el
from editlib import data
from editlib.cli import run_app
from editlib.editing.stats import Stats, second_moments_of
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.sweeps.hardedit import authors
from editlib.sweeps.hardedit import build as building
from editlib.sweeps.hardedit.authors import (
    KEY,
    FactsAuthor,
    OpenAIAuthor,
    Unusable,
    WorldAuthor,
    estimate,
    records_of,
)
from editlib.sweeps.hardedit.build import SET, Built, build

SECRET = "sk-secret-of-the-tests"


def record(subject: str, **changed: object) -> dict[str, object]:
    return {"prompt": f"{subject} makes", "subject": subject, "target_new": "trains", "ground_truth": "soap"} | changed


@dataclass
class Endpoint:
    """A local server that answers one after another of its replies: (status, body, headers), or seconds to hang."""

    url: str
    replies: list[Any] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def says(self, content: object, **choice: object) -> None:
        text = content if isinstance(content, str | None) else json.dumps(content)
        message = {"role": "assistant", "content": text, "refusal": choice.pop("refusal", None)}
        choices = [{"index": 0, "finish_reason": "stop", "message": message} | choice]
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
        self.replies.append((200, json.dumps(body), {}))

    def fails(self, status: int, code: str | None = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.replies.append((status, json.dumps({"error": {"message": f"no: {SECRET}", "code": code}}), named))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["content-length"]))
            served.asked.append(json.loads(sent))
            served.keys.append(self.headers["authorization"])
            reply = served.replies.pop(0)
            if reply == "hang":
                over.wait()
                return
            status, body, headers = reply
            self.send_response(status)
            for name, value in ({"content-type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv(KEY, SECRET)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    yield served
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would be waited; nobody waits."""
    seconds = list[float]()
    monkeypatch.setattr("openai._base_client.time.sleep", seconds.append)
    return seconds


@pytest.fixture
def author(endpoint: Endpoint) -> Iterator[OpenAIAuthor]:
    author = OpenAIAuthor("m", endpoint.url, timeout=30)
    yield author
    author.client.close()


@dataclass
class Scripted:
    """An author whose replies are known; an exception is raised."""

    replies: list[Any]
    name: str = "scripted"
    asked: list[Sequence[str]] = field(default_factory=list)

    def write(self, n: int, exclude: Sequence[str]) -> list[Any]:
        self.asked.append(list(exclude))
        reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return list(reply)


@pytest.fixture(scope="module")
def anchored() -> el.LanguageModel:
    return el.load("testbed/anchored")


@pytest.fixture(scope="module")
def builder(anchored: el.LanguageModel) -> Callable[..., Built]:
    """`build` with the testbed's model, few texts and its second moments."""
    texts = data.texts("testbed-ppl-50")[:5]
    stats: Stats = second_moments_of(anchored, [el.hparams_for(anchored, "rome").layer])
    return lambda author, **options: build(anchored, author, texts=texts, stats=stats, **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.read_text().splitlines()]


HARD = [item for item in WorldAuthor().records[:4]]


# What is kept


def test_the_world_writes_cases_that_collapse_the_model(builder: Callable[..., Built], tmp_path: Path) -> None:
    built = builder(WorldAuthor(), n=6, out=tmp_path / "set")
    cases = data.cases(built.path)
    assert len(cases) == 6 == len({case.request.subject for case in cases})
    assert all(line["perplexity_ratio"] >= 5 for line in built.accepted)
    assert all(case.request.prompt.startswith("{} ") and case.request.target_new for case in cases)
    assert built.calls == len(list(tmp_path.glob("set/part-*.jsonl"))) >= 1


def test_only_what_collapses_the_model_is_accepted(builder: Callable[..., Built], tmp_path: Path) -> None:
    built = builder(Scripted([HARD[:2], []]), n=9, out=tmp_path / "set", collapse_ratio=1e9)
    assert built.accepted == () and json.loads(built.path.read_text()) == []
    assert [line["reason"] for line in built.rejected] == ["the edit does not collapse the model"] * 2
    assert all(1 < line["perplexity_ratio"] < 1e9 for line in built.rejected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a string", "Input should be"),
        ({"prompt": "Zen makes"}, "subject: Field required"),
        (record("Zen") | {"subject": 7}, "subject: Input should be a valid string"),
        (record("Zen", target_new=" "), "target_new: String should have at least 1 character"),
        (record("Zen") | {"subject": "Zen Do"}, "subject 'Zen Do' is not one word"),
        (record("Zen", prompt="The firm Zen makes"), "prompt 'The firm Zen makes' does not begin with the subject"),
        (record("Zen", prompt="Zenith makes"), "prompt 'Zenith makes' does not begin with the subject"),
        (record("Zen", prompt="Zen {} makes"), "does not begin with the subject"),
        (record("Zen", ground_truth="Trains"), "target_new 'trains' is the ground_truth"),
    ],
)
def test_a_bad_record_is_rejected_with_the_reason(
    builder: Callable[..., Built], value: object, reason: str, tmp_path: Path
) -> None:
    built = builder(Scripted([[value], []]), n=1, out=tmp_path / "set")
    assert built.accepted == () and len(built.rejected) == 1 and reason in built.rejected[0]["reason"]


def test_a_subject_is_used_once(builder: Callable[..., Built], tmp_path: Path) -> None:
    again = HARD[0] | {"target_new": "nothing"}
    author = Scripted([[HARD[0], again, HARD[1]], [again, HARD[2]], []])
    built = builder(author, n=9, out=tmp_path / "set")
    assert [line["subject"] for line in built.accepted] == [item["subject"] for item in HARD[:3]]
    assert {line["reason"] for line in built.rejected} == {f"subject {HARD[0]['subject']!r} occurred before"}
    assert HARD[1]["subject"] in author.asked[1] and author.asked[0] == []


# Interruptions


def test_going_on_repeats_no_call(builder: Callable[..., Built], tmp_path: Path) -> None:
    replies: list[Any] = [[HARD[0]], Unusable("refused: no"), [HARD[1]], KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        builder(Scripted(replies), n=3, out=tmp_path / "set")
    assert len(lines(tmp_path / "set")) == 3 and not (tmp_path / "set" / SET).exists()
    author = Scripted([[HARD[2]]])
    built = builder(author, n=3, out=tmp_path / "set", resume=True)
    assert [line["subject"] for line in built.accepted] == [item["subject"] for item in HARD[:3]]
    assert built.calls == 1 and author.asked == [[item["subject"] for item in HARD[:2]]]
    assert [line["reason"] for line in built.rejected] == ["refused: no"]
    assert builder(Scripted([]), n=3, out=tmp_path / "set", resume=True).accepted == built.accepted


def test_a_reply_that_was_not_judged_is_not_asked_for_again(
    builder: Callable[..., Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, "_write_lines", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        builder(Scripted([[HARD[0]]]), n=1, out=tmp_path / "set")
    assert lines(tmp_path / "set") == []
    built = builder(Scripted([]), n=1, out=tmp_path / "set", resume=True)
    assert [line["subject"] for line in built.accepted] == [HARD[0]["subject"]] and built.calls == 0


def test_a_folder_with_something_else_is_refused(builder: Callable[..., Built], tmp_path: Path) -> None:
    out = tmp_path / "set"
    builder(Scripted([[]]), n=1, out=out)
    with pytest.raises(EditlibError, match="holds a set already; resume it"):
        builder(Scripted([]), n=1, out=out)
    with pytest.raises(EditlibError, match="differs in its author"):
        builder(WorldAuthor(), n=1, out=out, resume=True)
    with pytest.raises(EditlibError, match="is not empty and holds no set"):
        builder(Scripted([]), n=1, out=tmp_path)
    with pytest.raises(EditlibError, match=r"^n=0 is out of range"):
        builder(Scripted([]), n=0, out=out, resume=True)


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"corpus": ["Zen is located in Daslo."] * 1600}, "moments"),
        ({"texts": ["Zen is located in Daslo."]}, "texts"),
        ({"collapse_ratio": 7.0}, "collapse_ratio"),
    ],
)
def test_a_set_goes_on_only_with_what_it_began_with(
    anchored: LanguageModel, tmp_path: Path, changed: dict[str, Any], differs: str
) -> None:
    options: dict[str, Any] = {"texts": ["Zen is located in Quint."], "out": tmp_path / "set", "n": 1, "calls": 0}
    build(anchored, Scripted([]), **options)
    with pytest.raises(EditlibError, match=f"holds a set that differs in its {differs}; choose another"):
        build(anchored, Scripted([]), **options | changed, resume=True)


def test_other_hyper_parameters_are_another_set(
    builder: Callable[..., Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder(Scripted([]), n=1, calls=0, out=tmp_path / "set")
    known = building.variants_of
    other = lambda lm, method: known(lm, {method: el.hparams_for(lm, method, clamp=1.5)})  # noqa: E731
    monkeypatch.setattr(building, "variants_of", other)
    with pytest.raises(EditlibError, match="differs in its methods"):
        builder(Scripted([]), n=1, calls=0, out=tmp_path / "set", resume=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt2", {"corpus": ["short"]}, "the corpus has"),
        ("gpt2", {"corpus": ["x"], "texts": ["a" * 900]}, "takes at most 128"),
        ("gpt2", {"corpus": ["x"], "collapse_ratio": float("nan")}, "collapse ratio nan is out of range"),
        ("encdec", {"corpus": ["x"]}, "is no causal language model"),
    ],
)
def test_the_author_is_not_asked_before_everything_else_is_there(
    name: str, options: dict[str, Any], message: str, gpt2: LanguageModel, tmp_path: Path
) -> None:
    lm = gpt2 if name == "gpt2" else el.load(f"testbed/{name}")
    author = Scripted([[HARD[0]]])
    with pytest.raises(EditlibError, match=message):
        build(lm, author, n=1, out=tmp_path / "set", **{"texts": ["Zen is located in Quint."]} | options)
    assert author.asked == []


# An endpoint


def test_records_come_through_the_endpoint(author: OpenAIAuthor, endpoint: Endpoint) -> None:
    endpoint.says([record("Zen")])
    assert author.write(10, ["Bravo"]) == [record("Zen")]
    text = endpoint.asked[0]["messages"][1]["content"]
    assert "Write 10 records" in text and "Bravo" in text and "Lisbon" in text and endpoint.asked[0]["model"] == "m"
    assert endpoint.keys == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("text", ['[{"a": 1}]', '```json\n[{"a": 1}]\n```', '{"records": [{"a": 1}]}'])
def test_a_list_is_found_in_a_reply(text: str) -> None:
    assert records_of(text) == [{"a": 1}]


@pytest.mark.parametrize(
    "text", ["", "Sure! Here they are:", "[{", "{}", "[]", '{"a": 1}', "7", "[NaN]", '["\\ud800"]']
)
def test_a_reply_without_a_list_is_unusable(text: str) -> None:
    with pytest.raises(Unusable, match=r"no JSON|no list of records"):
        records_of(text)


def test_refusals_and_what_is_no_json_are_rejected_with_the_reason(
    builder: Callable[..., Built], author: OpenAIAuthor, endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.says(None, refusal="I would rather not.")
    endpoint.says("", finish_reason="content_filter")
    endpoint.says('[{"prompt": "Zen ma')
    endpoint.replies.append((200, "<html>", {"content-type": "text/html"}))
    endpoint.replies.append((200, "{", {}))
    endpoint.replies.append((200, '{"choices": []}', {}))
    endpoint.says([HARD[0]])
    built = builder(author, n=1, out=tmp_path / "set", calls=7)
    reasons = [line["reason"] for line in built.rejected]
    assert reasons[:2] == ["refused: 'I would rather not.'", "refused: 'content filter'"] and "no JSON" in reasons[2]
    assert len(reasons) == 6 and all("the reply is no" in reason for reason in reasons[2:])
    assert len(built.accepted) == 1 and built.calls == 7


def test_rate_limits_failures_and_timeouts_are_waited_for(endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.fails(429, Retry_After="7")
    endpoint.fails(500)
    endpoint.replies.append("hang")
    endpoint.fails(429)
    endpoint.says([record("Zen")])
    author = OpenAIAuthor("m", endpoint.url, timeout=0.5)
    assert author.write(10, []) == [record("Zen")]
    assert waits[0] == 7 and len(waits) == 4 and all(0 < seconds <= 8 for seconds in waits[1:])
    author.client.close()


def test_giving_up_names_the_way_on(author: OpenAIAuthor, endpoint: Endpoint, waits: list[float]) -> None:
    for _ in range(1 + authors.RETRIES):
        endpoint.fails(503)
    with pytest.raises(EditlibError, match=r"fails \(InternalServerError, 6 tries later still\); go on with --resume"):
        author.write(10, [])
    assert len(waits) == authors.RETRIES and endpoint.replies == []


@pytest.mark.parametrize(
    ("status", "code", "tries", "message"),
    [
        (401, None, 1, "refuses the key in OPENAI_API_KEY"),
        (404, None, 1, r"refuses model m \(status 404\)"),
        (429, "insufficient_quota", 1 + authors.RETRIES, "no credit left"),
    ],
)
def test_what_waiting_does_not_mend_is_said_in_our_words(
    author: OpenAIAuthor,
    endpoint: Endpoint,
    waits: list[float],
    status: int,
    code: str | None,
    tries: int,
    message: str,
) -> None:
    for _ in range(tries):
        endpoint.fails(status, code)
    with pytest.raises(EditlibError, match=message) as error:
        author.write(10, [])
    assert endpoint.replies == [] and SECRET not in str(error.value)


def test_the_key_is_written_nowhere(
    builder: Callable[..., Built], author: OpenAIAuthor, endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.says([HARD[0], record("Zen", prompt="no")])
    builder(author, n=1, out=tmp_path / "set")
    assert all(SECRET not in path.read_text() for path in (tmp_path / "set").iterdir())
    assert SECRET not in repr(author)


def test_an_author_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(EditlibError, match=r"^no key for the author; set OPENAI_API_KEY"):
        OpenAIAuthor("m", "http://127.0.0.1:1").write(10, [])
    for address in ("http://me:secret@127.0.0.1", "http://127.0.0.1/?key=secret"):
        with pytest.raises(EditlibError, match="must hold no key") as error:
            OpenAIAuthor("m", address)
        assert "secret" not in str(error.value)


# Cost and command


def test_the_estimate_grows_with_calls_and_prices() -> None:
    one, two = estimate(1), estimate(2, price_in=1.0, price_out=10.0)
    assert one.money is None and one.tokens_out == 500 and two.tokens_in > 2 * one.tokens_in
    assert two.money == pytest.approx((two.tokens_in + 10 * two.tokens_out) / 1e6)
    assert str(one).startswith("at most 1 calls, about ") and str(one).endswith("at unknown prices")


@pytest.mark.slow  # the command's mistakes are quick, and `build` is tested by itself
def test_the_command_builds_a_set_offline(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = [
        "hardedit",
        "--model",
        "testbed/anchored",
        "--author",
        "world",
        "-n",
        "2",
        "--out",
        str(tmp_path / "set"),
    ]
    assert run_app([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accepted"] == 2 == len(data.cases(report["file"]))
    assert run_app(command) == 2 and "resume it" in capsys.readouterr().err
    assert run_app([*command, "--resume"]) == 0 and "accepted" in capsys.readouterr().out


def test_the_command_tells_the_cost_before_it_asks(
    endpoint: Endpoint,
    mistake: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["hardedit", "--model", "testbed/anchored", "--author", "openai", "--base-url", endpoint.url]
    command += ["-n", "1", "--out", str(tmp_path / "set"), "--calls", "1"]
    assert run_app(command) == 2 and "--author-model NAME" in capsys.readouterr().err
    command += ["--author-model", "m", "--price-in", "1", "--price-out", "2"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run_app(command) == 130 and "at most 1 calls" in capsys.readouterr().err
    assert endpoint.asked == [] and not (tmp_path / "set").exists()
    endpoint.says([HARD[0]])
    assert run_app([*command, "--yes"]) == 0 and "accepted" in capsys.readouterr().out
    command[command.index(str(tmp_path / "set"))] = str(tmp_path / "none")
    endpoint.says([HARD[0]])
    assert run_app([*command, "--yes", "--collapse-ratio", "1e300"]) == 1
    assert "no case collapses testbed/anchored; ask for more --calls" in capsys.readouterr().err
    assert "--price-in is for --author openai" in mistake(
        "hardedit", "--model", "testbed/anchored", "--out", tmp_path / "x", "--price-in", 1
    )


def test_facts_are_asked_in_other_words_and_for_other_answers_than_their_cases() -> None:
    author, cases = FactsAuthor(), data.cases("facts")
    asked = {(case.request.text, case.request.target_new) for case in cases}
    true = {(prompt, case.request.target_true) for case in cases for prompt in case.paraphrase_prompts}
    written = [building.WrittenCase.model_validate(one) for one in author.records]
    assert len(written) > 300 and len({one.subject for one in written}) == len(written)
    assert not [one for one in written if (one.prompt, one.target_new) in asked]
    assert all((one.prompt, one.ground_truth) in true for one in written)
    assert author.write(2, [written[0].subject]) == author.records[1:3]
    assert FactsAuthor(1).records != author.records == FactsAuthor().records


def test_a_model_is_asked_about_subjects_of_one_of_its_tokens_first() -> None:
    lm = el.load("smollm2-135m")
    author = FactsAuthor(lm=lm)
    counts = [len(lm.tokenizer(one["subject"], add_special_tokens=False)["input_ids"]) for one in author.records]
    firsts = sum(count == 1 for count in counts)
    assert 0 < firsts < len(counts) and set(counts[:firsts]) == {1}
    assert author.name == "facts 0, one token of smollm2-135m first" != FactsAuthor().name
    assert sorted(map(str, author.records)) == sorted(map(str, FactsAuthor().records))
