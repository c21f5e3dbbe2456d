"""Cases that collapse a model beside normal ones: drawn by their subjects, told apart by one edit, compared by their
keys."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import pandas as pd
import torch
from torch import Tensor

from editlib.data import datasets as data
from editlib.data import for_models
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods.rome import RankOneParams
from editlib.editing.session import Session
from editlib.editing.stats import Stats, second_moments_of
from editlib.engine.samples import check_sampling
from editlib.engine.values import read_at
from editlib.errors import EditlibError
from editlib.measuring.separability import separability
from editlib.measuring.statistics import UNKNOWN, Interval, collapsed
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import Encoded, encode

COLLAPSE, NORMAL = GROUPS = ("collapse", "normal")
SUBJECT_KINDS = ("one token", "doubled", "full stop", "several tokens", "later")  # all at the start but the last
ROWS = 64  # texts a forward pass


def draw_by_subject(lm: LanguageModel, pool: Sequence[Case], *, first: int, others: int, seed: int) -> list[Case]:
    """Draw `first` cases whose subject is one token at the start of the prompt and `others` of the rest, or as many as
    there are; in file order.

    Cases whose subject cannot be located are passed over. Raises `EditlibError` if that leaves none.
    """
    opening, rest = list[int](), list[int]()  # of the pool
    for i, case in enumerate(pool):
        with suppress(EditlibError):
            tokens = for_models.subject_tokens(lm, case.request)
            (opening if tokens.count == 1 and tokens.first == 0 else rest).append(i)
    wanted = ((opening, min(first, len(opening))), (rest, min(others, len(rest))))
    drawn = [i for indices, n in wanted for i in Random(seed).sample(indices, n)]
    if not drawn:
        raise EditlibError(f"first={first} and others={others} of {len(pool)} cases leave none to edit; draw more")
    return [pool[i] for i in sorted(drawn)]


def draw(lm: LanguageModel, pool: Sequence[Case], n: int, *, first: int | None, seed: int) -> list[Case]:
    """Draw `n` cases, `first` of them with a subject that is one token at the start; None for as many as fall."""
    if first is None:
        return data.draw(list(pool), n, seed=seed)
    return draw_by_subject(lm, pool, first=first, others=n - first, seed=seed)


def subject_kinds(lm: LanguageModel, cases: Sequence[Case]) -> pd.Series:
    """By case_id, one of `SUBJECT_KINDS`; a case whose subject cannot be located has none."""
    kinds = dict[int, str]()
    for case in cases:
        with suppress(EditlibError):
            tokens, words = for_models.subject_tokens(lm, case.request), case.request.subject.split()
            if tokens.first:
                kinds[case.case_id] = "later"
            elif tokens.count == 1:
                kinds[case.case_id] = "one token"
            elif len(words) == 2 and words[0] == words[1]:
                kinds[case.case_id] = "doubled"
            else:
                kinds[case.case_id] = "full stop" if words[-1].endswith(".") else "several tokens"
    return pd.Series(kinds, dtype="str")


def groups(table: pd.DataFrame, *methods: str, collapse_ratio: float) -> pd.Series:
    """By case_id, whether one edit by any of the `methods` collapses the model: one of `GROUPS`.

    `table` is that of a sweep; edits that failed are left out, and nan counts as collapse.
    """
    edits = table[table["method"].isin(methods) & table["error"].isna()]
    broken = collapsed(edits["perplexity_ratio"], collapse_ratio).groupby(edits["case_id"]).any()
    return broken.map({True: COLLAPSE, False: NORMAL}).rename("group")


def moments(lm: LanguageModel, layer: int, corpus: str | None) -> Stats | None:
    """Second moments of a layer from texts by name, else of the testbed's own prose or text the model writes; None for
    one that cannot."""
    if not corpus and not for_models.has_prose(lm):
        try:
            check_sampling(lm)
        except EditlibError:
            return None
    return second_moments_of(lm, [layer], corpus=data.texts(corpus) if corpus else None)


# -- keys --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaseKeys:
    """Keys of cases at the edited layer, a row each: without prefix (kᵘ), the mean (k̄), and C⁻¹k̄, which is k̄ where
    C is left out."""

    bare: Tensor
    mean: Tensor
    whitened: Tensor

    @property
    def distance(self) -> Tensor:
        """|kᵘ - k̄| / |k̄| of every case."""
        far: Tensor = (self.bare - self.mean).norm(dim=1) / self.mean.norm(dim=1)
        return far

    @property
    def whitened_distance(self) -> Tensor:
        """|kᵘ - C⁻¹k̄| / |k̄| of every case, with C⁻¹k̄ at the length of k̄: otherwise C's unit decides."""
        length = self.mean.norm(dim=1)
        whitened = self.whitened * (length / self.whitened.norm(dim=1))[:, None]
        far: Tensor = (self.bare - whitened).norm(dim=1) / length
        return far

    @property
    def cosine(self) -> Tensor:
        """Cosine between kᵘ and k̄ of every case."""
        return torch.nn.functional.cosine_similarity(self.bare, self.mean)

    @property
    def whitened_cosine(self) -> Tensor:
        """Cosine between kᵘ and C⁻¹k̄ of every case: ROME's denominator over |kᵘ|, with C⁻¹k̄ at length one."""
        return torch.nn.functional.cosine_similarity(self.bare, self.whitened)


def case_keys(space: Session, params: RankOneParams, requests: Sequence[EditRequest]) -> CaseKeys:
    """The keys that a method with these hyper-parameters edits by, in float64."""
    by_request = [space.keys(params.layer, request, params.contexts) for request in requests]
    bare = torch.stack([keys.bare[0] for keys in by_request]).double()
    mean = torch.stack([keys.mean(empty=params.empty_context)[0] for keys in by_request]).double()
    return CaseKeys(bare, mean, space.whiten(params.layer, mean.T).T if params.covariance else mean)


def keys_at(lm: LanguageModel, layer: int, rows: Sequence[Encoded]) -> Tensor:
    """Keys of a layer at the last subject token of every row, in float64.  # (rows, d_in)"""
    name = lm.layout.name(layer)
    parts = [read_at(lm, name, rows[start : start + ROWS]).input for start in range(0, len(rows), ROWS)]
    return torch.cat(parts).double()


def first_token(lm: LanguageModel, request: EditRequest) -> Encoded:
    """A request's prompt with its own first token in the subject's place; special tokens are not counted."""
    row = encode(lm.tokenizer, request.prompt, request.subject)
    bare = encode(lm.tokenizer, request.prompt, request.subject, special_tokens=False)
    start = row.subject[0] - bare.subject[0]
    return Encoded(row.ids, (start, start + 1), row.target)


def told_apart(a: Tensor, b: Tensor, *, subjects: tuple[Sequence[str], Sequence[str]], seed: int) -> Interval:
    """How well a straight line tells two sets of keys apart; nan where one has fewer than two subjects."""
    fewest = min(len(set(names)) for names in subjects)
    if fewest < 2:
        return UNKNOWN
    return separability(a, b, folds=min(5, fewest), seed=seed, subjects=subjects)


def spreads_apart(a: Tensor, b: Tensor) -> float:
    """Distance of two sets' means over the root mean square distance of vectors from the mean of their own set."""
    spread = torch.cat([a - a.mean(0), b - b.mean(0)]).square().sum(1).mean().sqrt()
    return float((a.mean(0) - b.mean(0)).norm() / spread)


def nearest(keys: Tensor, *sets: Tensor) -> Tensor:
    """For every key, the number of the set that holds the key nearest to it; -1 if all are empty."""
    if not any(map(len, sets)):
        return torch.full((len(keys),), -1)
    owners = torch.cat([torch.full((len(other),), number) for number, other in enumerate(sets)])
    return owners[torch.cdist(keys, torch.cat(sets)).argmin(1).cpu()]


def tsne(panel: str, keys: Mapping[str, Tensor]) -> pd.DataFrame:
    """All keys on one map, a row each: panel, group, x, y; a row's group is the name of its keys.

    t-SNE as published (The Fall of ROME, code: two dimensions, seed 42, all else by default), but for a smaller
    neighborhood where there are fewer than 91 keys.
    """
    from sklearn.manifold import TSNE

    rows = torch.cat([*keys.values()]).float().cpu().numpy()
    places = TSNE(n_components=2, random_state=42, perplexity=min(30.0, (len(rows) - 1) / 3)).fit_transform(rows)
    names = [name for name, group in keys.items() for _ in range(len(group))]
    return pd.DataFrame({"panel": panel, "group": names, "x": places[:, 0], "y": places[:, 1]})
