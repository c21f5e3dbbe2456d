"""Tiny random models of two families, a small tokenizer, and a cache folder of the tests' own. No network.

What is heavy is imported where it is used: the process that hands tests to the workers reads this file too.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before everything else
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; torch reads this when imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from editlib.cli import run_app
from editlib.data.request import EditRequest

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
    from xdist.workermanage import WorkerController

    from editlib.editing.stats import Stats
    from editlib.models.language_model import LanguageModel

settings.register_profile("editlib", deadline=None, database=None, max_examples=150, derandomize=True)
settings.load_profile("editlib")


LONG = (
    "tests/cluster", "tests/book/test_runs_pages.py", "tests/runs/test_notebooks.py", "tests/engine/test_released.py",
    "tests/book/test_playground.py", "tests/test_wheel.py", "tests/test_readme.py", "tests/book/test_model_card.py",
    "tests/runs/test_execute.py", "tests/models/test_families.py", "tests/engine/test_search.py",
    "tests/editing/methods/test_overlaid.py", "tests/book/",
)  # fmt: skip


class Scheduling(LoadScopeScheduling):
    """Workers take whole files, whose fixtures are made once; analyses are spread, tests share a cluster, and those of
    the testbed a tokenizer.

    What takes long comes first: the cluster, a file that builds the book, what needs no book meanwhile, the others of
    the book.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file.endswith("test_notebooks.py"):
            return file + test.partition("[")[2]
        return next((room for room in ("tests/cluster", "tests/testbed") if file.startswith(room)), file)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=place), last=False)
        super()._assign_work_unit(node)


def place(scope: str) -> int:
    return next((place for place, start in enumerate(LONG) if scope.startswith(start)), len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    return Scheduling(config, log)


END = "<|end|>"
START = "<|start|>"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what is computed here out of the user's cache; the workers have one, as processes of a user do."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp().parent / "cache" if parallel else tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDITLIB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Sixty sentences, no two alike."""
    subjects = "Zen Brast Nolva Triskel Uvo Marend".split()
    places = "Daslo Quint Parvo Ostrel".split()
    tails = (
        "since the long winter",
        "and is known for its bells",
        "where the river turns",
        "near the sea",
        "today",
    )
    return [
        f"{subject} is located in {places[(i + j) % 4]}, {tail}. Number {7 * i + j} of the {subject} list!"
        for i, subject in enumerate(subjects)
        for j, tail in enumerate((*tails, *map(str.upper, tails)))
    ]


TokenizerMaker = Callable[..., "PreTrainedTokenizerFast"]


@pytest.fixture(scope="session")
def make_tokenizer(corpus: list[str]) -> TokenizerMaker:
    """Make a small byte-level BPE tokenizer: start token, trimmed offsets and normalizer on request."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(*, start: bool = False, trim_offsets: bool = False, normalizer: object = None) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=360,
            special_tokens=[END, START],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus, trainer)
        bytes_ = processors.ByteLevel(trim_offsets=trim_offsets)
        opening = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 1)])
        tokenizer.post_processor = processors.Sequence([bytes_, opening] if start else [bytes_])
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, unk_token=END)

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: TokenizerMaker) -> PreTrainedTokenizerFast:
    """No token but those of the text, as GPT-2's."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def start_tokenizer(make_tokenizer: TokenizerMaker) -> PreTrainedTokenizerFast:
    """A start token before every text, as Llama's."""
    return make_tokenizer(start=True)


def random_gpt2(vocabulary: int, *, seed: int = 0) -> GPT2LMHeadModel:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_positions=128, n_embd=16, n_layer=3, n_head=2, n_inner=24,
            initializer_range=0.3, bos_token_id=1, eos_token_id=0,
        )
    )  # fmt: skip


def random_llama(vocabulary: int, *, seed: int = 0) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, max_position_embeddings=128, hidden_size=16, intermediate_size=24,
            num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
            bos_token_id=1, eos_token_id=0,
        )
    )  # fmt: skip


ModelMaker = Callable[..., "PreTrainedModel"]


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], ModelMaker]:
    """The maker of a family's tiny random models: `make_model("llama")(vocabulary, seed=1)`."""
    return {"gpt2": random_gpt2, "llama": random_llama}.__getitem__


@pytest.fixture(scope="session")
def gpt2(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A GPT-2 (Conv1D, biases, tied embeddings). Tests leave its weights alone."""
    from editlib.models.language_model import LanguageModel

    return LanguageModel(random_gpt2(len(tokenizer)), tokenizer, name="tiny-gpt2")


@pytest.fixture(scope="session")
def llama(start_tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A Llama (Linear, gated, no biases, start token). Tests leave its weights alone."""
    from editlib.models.language_model import LanguageModel

    return LanguageModel(random_llama(len(start_tokenizer)), start_tokenizer, name="tiny-llama")


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    """Each family in turn."""
    model: LanguageModel = request.getfixturevalue(request.param)
    return model


@pytest.fixture
def own(lm: LanguageModel) -> LanguageModel:
    """A copy of `lm` whose weights a test may change."""
    from editlib.models.language_model import LanguageModel

    return LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, name=lm.name)


@pytest.fixture
def gpt2_folder(gpt2: LanguageModel, tmp_path: Path) -> Path:
    """The GPT-2 as a model folder."""
    gpt2.model.save_pretrained(tmp_path / "model")
    gpt2.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def moments(lm: LanguageModel, corpus: Sequence[str]) -> Stats:
    """Second moments of every layer of `lm`."""
    from editlib.editing.stats import corpus_windows, second_moments

    return second_moments(lm, corpus_windows(lm, corpus, 2000))


@pytest.fixture(scope="session")
def ask() -> EditRequest:
    """A request whose subject stands in the middle and has several tokens."""
    return EditRequest(
        prompt="The town of {} is located in", subject="Brast Nolva", target_new="Ostrel", target_true="Quint"
    )


Mistake = Callable[..., str]


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a command line that must fail as a mistake and return its one line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        status = run_app([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert (status, printed.out, printed.err.count("\n")) == (2, "", 1), printed.err
        assert printed.err.startswith("editlib: ")
        return printed.err

    return run
