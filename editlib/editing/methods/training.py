"""Training of MEND's editors on any edit cases.

Minimises c_e NLL(y_e | x_e') + KL(p_W(· | x_loc) || p_W'(· | x_loc)): after an edit, its target should follow the edit
prompt and a paraphrase, and what follows other texts should stay. Source: Mitchell et al. 2022, section 3.2 and
equation 4; early stopping on held-out edits as in the released code. Deviations from that code: the edits of a step run
side by side; normalisation is taken once, before the first step, for each weight; prompt and paraphrase are both in the
loss; learning rates warm up and fall, so that some hundred steps are enough for a small model.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm import tqdm

from editlib.data.datasets import Case
from editlib.editing.methods.editor import (
    Editor,
    EditorHeader,
    changed,
    gradients,
    save_editor,
    shapes,
    target_scores,
)
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, check_length, encode, encode_text, pad
from editlib.models.training import read_checkpoint, warmup_cosine, write_checkpoint

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class MendRecipe:
    """Every choice of an editor's training; in brackets the authors' for models of 1.5 to 7 billion parameters."""

    layers: int = 3  # the last ones are edited [3]
    rank: int = 64  # of U V [1920]
    steps: int = 800  # [100,000]
    batch: int = 10  # edits a step [10, one after the other]
    step_size: float = 1e-3  # α at first [1e-4]
    learning_rate: float = 2e-3  # of the networks, Adam [1e-6]
    alpha_rate: float = 1e-4  # of α, Adam [1e-4]
    warmup: int = 50  # steps; then a cosine to a tenth [0, constant]
    edit_weight: float = 0.05  # c_e; locality has weight 1 [0.1]
    locality_texts: int = 2  # an edit [1]
    clip: float = 100.0  # longest gradient [100]
    normalise_on: int = 200  # edits that mean and standard deviation are taken from [all of training, running]
    held_out: float = 0.1  # share of the subjects, whose cases are never trained on
    evaluate_on: int = 120  # held-out edits
    evaluate_every: int = 100  # steps [1000]
    patience: int = 300  # steps without a better held-out loss [20,000]
    seed: int = 0


@dataclass(frozen=True)
class MetaBatch:
    """Edits side by side: what each is made from, and the rows that its change is tried on."""

    inner: list[Encoded]  # the edit prompts
    outer: list[Encoded]  # the edit prompts, then a paraphrase of each
    local: list[Encoded]  # texts that no edit is about, the same number for each edit
    owners: list[int]  # the edit of every outer and every local row


@dataclass(frozen=True)
class Effects:
    """What the edits of a batch did."""

    losses: Tensor  # NLL of the target, outer rows
    exact: Tensor  # whether every target token is the most likely one, outer rows
    kl: Tensor  # of the edited from the unedited model, all tokens of the local rows
    same: Tensor  # whether the most likely token stayed, the answers' tokens of the local rows


def train(
    lm: LanguageModel,
    cases: Sequence[Case],
    recipe: MendRecipe,
    out: Path,
    *,
    command: str = "",
    progress: bool = True,
    checkpoint_every: int = 50,
) -> Path:
    """Train an editor to the file `out` and return it; resumes from `out`.partial.

    Kept are the networks with the smallest held-out loss. Raises `EditlibError` if `out` exists, the cases have too
    few subjects, one is longer than the model takes, the checkpoint is damaged or of another training, or the loss is
    no longer finite.
    """
    if out.exists():
        raise EditlibError(f"editor {out} exists already; choose another --out or remove it")
    lm.require_causal()
    check_length(lm, [case.request.text for case in cases], [_asked(lm, case).ids for case in cases])
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, (known, held) = out.with_name(out.name + ".partial"), split(cases, recipe)
    about: dict[str, Any] = {"model": lm.fingerprint, "data": digest(cases), "recipe": asdict(recipe)}
    before = read_checkpoint(partial, about)  # first: the gradients that an editor starts from take a while
    editor, tests = initial_editor(lm, known, recipe), held_out_batches(lm, held, recipe)
    optimizer = make_optimizer(editor, recipe)
    state: dict[str, Any] = {"step": 0, "best_step": 0, "seconds": 0.0, "curve": []}
    best = dict[str, Tensor]()
    if before:
        state, best = before.state, before.tensors["best"]
        editor.load_state_dict(before.tensors["last"])
        before.restore(optimizer)
    started = time.monotonic() - state["seconds"]
    with tqdm(total=recipe.steps, initial=state["step"], desc=out.name, mininterval=5, disable=not progress) as bar:
        if not state["curve"]:
            best = _record(state, best, lm, editor, tests, recipe)
        while state["step"] < recipe.steps and state["step"] - state["best_step"] < recipe.patience:
            _train_step(lm, editor, optimizer, recipe, known, state["step"])
            state["step"] += 1
            bar.update()
            if state["step"] % recipe.evaluate_every == 0 or state["step"] == recipe.steps:
                best = _record(state, best, lm, editor, tests, recipe)
                bar.set_postfix({name: f"{state['curve'][-1][name]:.3g}" for name in ("loss", "efficacy", "locality")})
            state["seconds"] = round(time.monotonic() - started, 1)
            if state["step"] % checkpoint_every == 0:
                write_checkpoint(partial, about, state, {"best": best, "last": editor.state_dict()}, optimizer)
    said: dict[str, Any] = {key: state[key] for key in ("best_step", "seconds", "curve")}
    sizes = {name: list(shape) for name, shape in shapes(lm, edited_layers(lm, recipe)).items()}
    save_editor(out, EditorHeader(**about, **said, shapes=sizes, rank=recipe.rank, command=command), best)
    partial.unlink(missing_ok=True)
    return out


def split(cases: Sequence[Case], recipe: MendRecipe) -> tuple[list[Case], list[Case]]:
    """Cases to train on and cases held out, which share no subject; `EditlibError` for fewer than four subjects."""
    subjects = sorted({case.request.subject for case in cases})
    if len(subjects) < 4:
        raise EditlibError(f"the cases have {len(subjects)} subjects; training needs at least 4, half to be held out")
    Random(recipe.seed).shuffle(subjects)
    held = set(subjects[: max(2, round(recipe.held_out * len(subjects)))])
    return [c for c in cases if c.request.subject not in held], [c for c in cases if c.request.subject in held]


def digest(cases: Sequence[Case]) -> str:
    """sha256 of the cases themselves, wherever they were read from."""
    records = [asdict(case) for case in cases]
    for record in records:  # a separator that is not given is as before there were any, and nothing is learnt of parts
        del record["split"], record["group"]
        record["request"] = {name: v for name, v in record["request"].items() if name != "separator" or v is not None}
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def edited_layers(lm: LanguageModel, recipe: MendRecipe) -> range:
    """The last layers; `EditlibError` if the model has fewer."""
    if not 1 <= recipe.layers <= lm.num_layers:
        raise EditlibError(
            f"layers={recipe.layers} is out of range; {lm.name or 'the model'} has {lm.num_layers} layers"
        )
    return range(lm.num_layers - recipe.layers, lm.num_layers)


def initial_editor(lm: LanguageModel, cases: Sequence[Case], recipe: MendRecipe) -> Editor:
    """The untrained editor: U is zero, V random, and the normalisation is that of some cases' gradients."""
    editor = Editor(shapes(lm, edited_layers(lm, recipe)), rank=recipe.rank).to(lm.device)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for name, parameter in editor.named_parameters():
            if name.endswith(".v"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
            elif name.endswith(".alpha"):
                parameter.fill_(recipe.step_size)
    drawn = Random(recipe.seed).sample(cases, min(recipe.normalise_on, len(cases)))
    parts = _parts([_asked(lm, case) for case in drawn], recipe.batch)
    editor.normalise([gradients(lm, editor.names, part)[0] for part in parts])
    return editor


def make_optimizer(editor: Editor, recipe: MendRecipe) -> torch.optim.Adam:
    """Adam, with a learning rate of its own for α."""
    alphas = [p for name, p in editor.named_parameters() if name.endswith(".alpha")]
    others = [p for name, p in editor.named_parameters() if not name.endswith(".alpha")]
    return torch.optim.Adam([{"params": others}, {"params": alphas}])


# -- batches -------------------------------------------------------------------------------------------


def meta_batch(lm: LanguageModel, cases: Sequence[Case], pool: Sequence[Case], texts: int, rng: Random) -> MetaBatch:
    """Paraphrases and `texts` local texts for each of `cases`: in turn from its own neighborhood and from other
    subjects' cases in `pool`."""
    inner = [_asked(lm, case) for case in cases]
    again = [_text(lm, rng.choice(_paraphrases(case)), case.request.target_new) for case in cases]
    local = [_text(lm, *_elsewhere(case, pool, rng, near=i % 2 == 0)) for case in cases for i in range(texts)]
    every = list(range(len(cases)))
    return MetaBatch(inner, inner + again, local, [*every, *every, *(i for i in every for _ in range(texts))])


def held_out_batches(lm: LanguageModel, held: Sequence[Case], recipe: MendRecipe) -> list[MetaBatch]:
    """The batches that every evaluation looks at."""
    rng = Random(recipe.seed)
    drawn = rng.sample(held, min(recipe.evaluate_on, len(held)))
    return [meta_batch(lm, part, held, 2, rng) for part in _parts(drawn, recipe.batch)]


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _asked(lm: LanguageModel, case: Case) -> Encoded:
    request = case.request
    return encode(lm.tokenizer, request.prompt, request.subject, target=request.target_new, separator=request.separator)


def _text(lm: LanguageModel, prompt: str, target: str) -> Encoded:
    """A plain prompt with its target, cut at the front where the model's context is shorter."""
    before, after = encode_text(lm.tokenizer, prompt, target)
    cut = max(0, len(before) + len(after) - lm.max_length) if lm.max_length else 0
    before = before[cut:]
    return Encoded((*before, *after), (0, len(before)), len(before))


def _paraphrases(case: Case) -> tuple[str, ...]:
    return case.paraphrase_prompts or (case.request.text,)


def _elsewhere(case: Case, pool: Sequence[Case], rng: Random, *, near: bool) -> tuple[str, str]:
    """A prompt that the edit is not about, with its answer: of the case's neighborhood, or of another subject."""
    if near and case.neighborhood_prompts:
        answers = case.neighborhood_answers or (_answer(case),) * len(case.neighborhood_prompts)
        return rng.choice(list(zip(case.neighborhood_prompts, answers, strict=True)))
    other = rng.choice(pool)
    while other.request.subject == case.request.subject:
        other = rng.choice(pool)
    return rng.choice((*_paraphrases(other), other.request.text)), _answer(other)


def _answer(case: Case) -> str:
    """What the unedited model should say; where the case does not know, anything keeps the text in shape."""
    return case.request.target_true or case.request.target_new


# -- steps ---------------------------------------------------------------------------------------------


def effects(lm: LanguageModel, editor: Editor, batch: MetaBatch) -> Effects:
    """Make every edit of a batch and try each on its own outer and local rows; differentiable in the editor."""
    rows, n = [*batch.outer, *batch.local], len(batch.outer)
    ids, mask = pad([row.ids for row in rows], lm.device)
    with torch.no_grad():
        unedited = lm.model(input_ids=ids[n:], attention_mask=lm.attended(mask[n:])).logits
    factors, _ = gradients(lm, editor.names, batch.inner)
    own = torch.tensor(batch.owners, device=lm.device)
    with changed(lm, {name: (left[own], right[own]) for name, (left, right) in editor(factors).items()}):
        edited = lm.model(input_ids=ids, attention_mask=lm.attended(mask)).logits
    losses, exact = target_scores(edited[:n], batch.outer)
    real, answers = mask[n:].bool(), _answered(batch.local, mask[n:])
    before, after = (widened(logits[real]).log_softmax(-1) for logits in (unedited, edited[n:]))
    kl = kl_div(after, before, log_target=True, reduction="none").sum(-1)
    return Effects(losses, exact, kl, (before.argmax(-1) == after.argmax(-1))[answers[real]])


def _answered(rows: Sequence[Encoded], mask: Tensor) -> Tensor:
    """Positions whose next token belongs to the answer.  # (rows, tokens)"""
    at = torch.arange(mask.shape[1], device=mask.device)
    spans = torch.tensor([(row.target, len(row.ids)) for row in rows], device=mask.device)
    return (at >= spans[:, :1] - 1) & (at < spans[:, 1:] - 1)


def _train_step(
    lm: LanguageModel, editor: Editor, optimizer: torch.optim.Adam, recipe: MendRecipe, known: Sequence[Case], step: int
) -> None:
    rng = Random(f"{recipe.seed}-{step}")  # a batch is a function of seed and step, so a resumed run sees the same
    cases = rng.sample(known, min(recipe.batch, len(known)))
    outcome = effects(lm, editor, meta_batch(lm, cases, known, recipe.locality_texts, rng))
    loss = recipe.edit_weight * outcome.losses.mean() + outcome.kl.mean()
    if not loss.isfinite():
        raise EditlibError(f"the loss at step {step} is {loss.item()}; train with a smaller learning rate or step size")
    for group, full in zip(optimizer.param_groups, (recipe.learning_rate, recipe.alpha_rate), strict=True):
        group["lr"] = full * warmup_cosine(step, steps=recipe.steps, warmup=recipe.warmup)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(editor.parameters(), recipe.clip)
    optimizer.step()


@torch.no_grad()
def validate(lm: LanguageModel, editor: Editor, batches: Sequence[MetaBatch], recipe: MendRecipe) -> dict[str, float]:
    """Losses and shares over held-out edits.

    efficacy, generalization: of edit prompts and of paraphrases, those whose target is all most likely (teacher
    forced); locality: of the local answers' tokens, those where the most likely token stayed.
    """
    tried = [(len(batch.inner), effects(lm, editor, batch)) for batch in batches]
    edit = torch.cat([o.losses for _, o in tried]).mean().item()
    kl = torch.cat([o.kl for _, o in tried]).mean().item()
    return {
        "loss": recipe.edit_weight * edit + kl,
        "edit_loss": edit,
        "kl": kl,
        "efficacy": torch.cat([o.exact[:n] for n, o in tried]).double().mean().item(),
        "generalization": torch.cat([o.exact[n:] for n, o in tried]).double().mean().item(),
        "locality": torch.cat([o.same for _, o in tried]).double().mean().item(),
    }


def _record(
    state: dict[str, Any], best: dict[str, Tensor], lm: LanguageModel, editor: Editor, tests: Sequence[MetaBatch],
    recipe: MendRecipe,
) -> dict[str, Tensor]:  # fmt: skip
    """Add an evaluation to the curve; the best tensors so far."""
    evaluation = {name: round(value, 5) for name, value in validate(lm, editor, tests, recipe).items()}
    better = all(evaluation["loss"] < earlier["loss"] for earlier in state["curve"])
    state["curve"].append({"step": state["step"]} | evaluation)
    if not better:
        return best
    state["best_step"] = state["step"]
    return {name: tensor.detach().clone() for name, tensor in editor.state_dict().items()}
