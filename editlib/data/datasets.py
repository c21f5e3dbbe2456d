"""Edit cases and texts by name or path: files read and checked record by record, and where to get them."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from editlib.data.forms import MARKS, form_of, parse
from editlib.data.forms import Case as Case
from editlib.data.records import records
from editlib.data.request import EditRequest
from editlib.data.sources import SHIPPED, SOURCES, Source
from editlib.errors import EditlibError, unknown
from editlib.files import aside

log = logging.getLogger(__name__)

CASE_FORMS = ("counterfact", "zsre", "known", "easyedit")


@dataclass(frozen=True)
class Rejected:
    """A record that was left out: the line it starts on, from 1, its position in the file, from 0, and why."""

    line: int
    position: int
    reason: str

    def __str__(self) -> str:
        return f"record {self.position} (line {self.line}): {self.reason}"


@dataclass(frozen=True)
class Reading:
    """What a file held: its form (a key of `MARKS`), its good records as cases or as texts, and the others."""

    form: str
    cases: tuple[Case, ...]
    texts: tuple[str, ...]
    rejected: tuple[Rejected, ...]

    @property
    def records(self) -> int:
        """How many records the file has, good or not."""
        return len(self.cases) + len(self.texts) + len(self.rejected)


def cases(source: Any, *, split: str | None = None) -> list[Case]:
    """Edit cases from whatever holds them: a data name or path as `read_cases` takes it, a pandas DataFrame, or one or
    several cases, requests or records, which are objects in one of `CASE_FORMS`; all, or those of one split.

    Requests, and records without one, get their position as `case_id`. Raises `EditlibError` for what is no case,
    for a `case_id` given twice, and as `of_split` does.
    """
    if isinstance(source, str | Path):
        return of_split(_told(source, read_cases(source)).cases, split)
    if hasattr(source, "to_json"):  # a DataFrame, or a row of one; an empty cell is no field
        source = source.to_frame().T if hasattr(source, "to_frame") else source
        rows = json.loads(source.to_json(orient="records"))
        source = [{name: cell for name, cell in row.items() if cell is not None} for row in rows]
    if isinstance(source, Case | EditRequest | Mapping) or not isinstance(source, Iterable):
        source = [source]
    given: dict[int, Case] = {}
    for position, item in enumerate(source):
        try:
            case = _case(item, position)
            if given.setdefault(case.case_id, case) is not case:
                raise EditlibError(f"case_id {case.case_id} is given twice")
        except EditlibError as error:
            raise EditlibError(f"case {position}: {error}") from error
    return of_split(list(given.values()), split)


def of_split(pool: Sequence[Case], split: str | None) -> list[Case]:
    """The cases of one split, or all for None; raises `EditlibError` for a split that none of them is in."""
    if split is None:
        return list(pool)
    known = sorted({case.split for case in pool if case.split})
    if not known:
        raise EditlibError(f"split {split!r} is not there: these cases have no splits; leave split out")
    if split not in known:
        raise unknown("split", split, known)
    return [case for case in pool if case.split == split]


def requests(source: Any, *, split: str | None = None) -> list[EditRequest]:
    """The requests of `cases`."""
    return [case.request for case in cases(source, split=split)]


def _case(item: Any, position: int) -> Case:
    if isinstance(item, Case | EditRequest):
        return item if isinstance(item, Case) else Case(position, item)
    if not isinstance(item, Mapping):
        raise EditlibError(f"{str(item)[:40]!r} is no case; give a Case, an EditRequest or a record")
    case = parse(dict(item), form_of(dict(item), CASE_FORMS), position)
    assert isinstance(case, Case)  # no other form is asked for
    return case


def texts(name: str | Path) -> list[str]:
    """The good texts of `read_texts`."""
    return list(_told(name, read_texts(name)).texts)


def _told(name: str | Path, reading: Reading) -> Reading:
    """A reading whose rejected records were told of in the log."""
    if reading.rejected:
        few, first = len(reading.rejected), reading.rejected[0]
        log.warning("%d of %d records of %s are left out, the first: %s", few, reading.records, name, first)
    return reading


def read_cases(name: str | Path) -> Reading:
    """Read edit cases in COUNTERFACT's (ROME's), EasyEdit's (also KnowEdit's), ZsRE's (MEND's) or the known facts'
    (ROME's) form; raises `EditlibError` as `read` does."""
    return read(name, CASE_FORMS)


def read_texts(name: str | Path) -> Reading:
    """Read texts: strings, or ME-PPL's {Corpus, Text} records; raises `EditlibError` as `read` does."""
    return read(name, ("texts",))


def read(name: str | Path, forms: Sequence[str] = tuple(MARKS)) -> Reading:
    """Read a file of JSON lists, JSON lines or CSV rows; its first record in one of `forms` tells which one all must
    be in.

    Records that are not are rejected, and so are later ones with the `case_id` of an earlier one. Raises
    `EditlibError` if the file is not there, is damaged or cut off, or has no good record.
    """
    form: str | None = None
    good: list[Case | str] = []
    rejected: list[Rejected] = []
    positions: dict[int, int] = {}  # of the case_ids
    for position, (line, value) in enumerate(records(locate(name))):
        try:
            if isinstance(value, EditlibError):
                raise value
            form = form or form_of(value, forms)
            record = parse(value, form, position)
            if isinstance(record, Case) and positions.setdefault(record.case_id, position) != position:
                raise EditlibError(f"case_id {record.case_id} is that of record {positions[record.case_id]}")
            good.append(record)
        except EditlibError as error:
            rejected.append(Rejected(line, position, str(error)))
    if form is None or not good:
        raise EditlibError(f"data {name} has no good record: {rejected[0] if rejected else 'it is empty'}")
    good_cases = tuple(record for record in good if isinstance(record, Case))
    return Reading(form, good_cases, tuple(record for record in good if isinstance(record, str)), tuple(rejected))


def get(name: str | Source, *, progress: bool = True) -> Reading:
    """Download a file to the data folder unless it is there already, whole; raises `EditlibError` if its hash,
    form or number of records is not that of its source."""
    from editlib.data.download import fetch

    source = name if isinstance(name, Source) else _source(name)
    if source.url is None:
        raise EditlibError(f"data {source.name!r} has no public address; {source.how}")
    with suppress(EditlibError):
        return _complete(source, source.path)
    whole = partial(_complete, source)
    fetch(source.url, source.path, sha256=source.sha256, check=whole, progress=progress)
    return _complete(source, source.path)


def import_file(name: str, path: str | Path) -> Reading:
    """Copy a file to the data folder under a source's name; raises `EditlibError` if its hash or form is not
    that of the source, or if it has fewer records than the one that is there. It may hold fewer than published."""
    source = _source(name)
    reading = _verified(source, Path(path))
    there = 0
    with suppress(EditlibError):  # none, or a damaged one
        there = read(source.path).records
    if reading.records < there:
        less = f"{path} has {reading.records:,} records, and {name} is here with {there:,}"
        raise EditlibError(f"{less}; remove {source.path} first, if that is meant")
    with aside(source.path) as writing:
        shutil.copyfile(path, writing)
    return reading


def check(name: str | Path) -> Reading:
    """Read a file again, and compare it with its source if it has one; raises `EditlibError` as `import_file`
    does."""
    path, source = locate(name), SOURCES.get(str(name))
    return _verified(source, path) if source else read(path)


def locate(name: str | Path) -> Path:
    """The file behind a data name or path; raises `EditlibError` if it is not there."""
    source = SOURCES.get(str(name))
    path = source.path if source else SHIPPED.get(str(name), Path(name))
    if path.is_file():
        return path
    if source:
        raise EditlibError(f"data {source.name!r} is not here yet; {source.how}")
    known = (*SHIPPED, *SOURCES)
    near = "".join(f"; did you mean {one}?" for one in get_close_matches(str(name), known, n=1))
    raise EditlibError(f"data {str(name)!r} is neither a file nor one of {', '.join(known)}{near}")


def present() -> list[str]:
    """The names whose files are here."""
    return [*SHIPPED, *(source.name for source in SOURCES.values() if source.here)]


def fingerprint(name: str | Path) -> str:
    """sha256 of the file behind a data name."""
    with locate(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def draw(pool: list[Case], n: int, *, seed: int) -> list[Case]:
    """Draw `n` cases without replacement, kept in file order; raises `EditlibError` unless 1 <= n <= len(pool)."""
    if not 1 <= n <= len(pool):
        raise EditlibError(f"n={n} is out of range; there are {len(pool)} cases, so choose 1 to {len(pool)}")
    return [pool[i] for i in sorted(Random(seed).sample(range(len(pool)), n))]


# -- sources -------------------------------------------------------------------------------------------


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise unknown("data", name, SOURCES)
    return SOURCES[name]


def _verified(source: Source, path: Path) -> Reading:
    """Read a file that should be the source's; its number of records may differ."""
    if source.sha256 and (digest := fingerprint(path)) != source.sha256:
        raise EditlibError(
            f"{path} is not {source.name}: its sha256 begins with {digest[:12]}, not {source.sha256[:12]}; {source.how}"
        )
    reading = read(path)
    if reading.form != source.form:
        raise EditlibError(f"{path} is not {source.name}: its form is {reading.form}, not {source.form}")
    return reading


def _complete(source: Source, path: Path) -> Reading:
    """Read a file that should be the source's, whole."""
    reading = _verified(source, path)
    if source.records not in (None, reading.records):
        raise EditlibError(f"{path} is not {source.name}: it holds {reading.records} records, not {source.records}")
    return reading
