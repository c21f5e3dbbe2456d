"""How to cite one run: BibTeX, APA and CFF, each from its manifest alone."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editlib.runs.manifest import Manifest

MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_"},
        "{": r"\textbraceleft{}",  # BibTeX counts braces, also those behind a backslash
        "}": r"\textbraceright{}",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


@dataclass(frozen=True)
class Where:
    """Where the project is to be found, as far as that is known when a run is cited: often later than it was executed.

    The site's address, identifiers of the project, and the day (ISO) on which the run's page was seen there.
    """

    site: str = ""
    doi: str = ""
    swhid: str = ""
    accessed: str = ""

    @property
    def named(self) -> str:
        """The identifiers, as they stand behind the project's version."""
        return "".join([f", doi:{self.doi}" * bool(self.doi), f", {self.swhid}" * bool(self.swhid)])

    def page(self, run: "Manifest") -> str:
        """The address of a run's page, else of the project; empty if neither is known."""
        return f"{self.site}/runs/{run.analysis}/{run.run}/index.html" if self.site else run.project.url


NOWHERE = Where()


def bibtex(run: "Manifest", where: Where = NOWHERE) -> str:
    """A `@misc` entry; with nothing known of where, the text of the folder's `citation.bib`."""
    seen = f", accessed {where.accessed}" if where.accessed else ""
    entry = {
        "author": " and ".join(f"{{{_tex(name)}}}" for name in authors(run)),
        "title": f"{{{_tex(heading(run))}}}",
        "year": run.finished[:4],
        "month": run.finished[5:7].lstrip("0") if run.schema == 2 else MONTHS[int(run.finished[5:7]) - 1],
        "howpublished": _tex(f"In: {run.project.title}, version {run.project.version}{where.named}"),
        "note": _tex(f"Executed analysis, run {run.run}, spec {run.spec}{_digest(run)}{seen}"),
        "url": where.page(run),
    }
    bare = ("month",) if run.schema > 2 else ()  # a macro of BibTeX's
    lines = [f"  {name} = {value if name in bare else f'{{{value}}}'}," for name, value in entry.items() if value]
    return "\n".join([f"@misc{{editlib-{run.analysis}-{run.run},", *lines, "}", ""])


def apa(run: "Manifest", where: Where = NOWHERE) -> str:
    """One line of text in the style of APA 7."""
    *others, last = authors(run)
    names = f"{', '.join(others)}, & {last}" if others else last
    about = f"{heading(run)} [Executed analysis, run {run.run}{_digest(run)}]"
    seen = f"Retrieved {where.accessed}, from " if where.accessed else ""
    source = f"In {run.project.title} (Version {run.project.version}{where.named}). {seen}{where.page(run)}"
    return _line(f"{names}. ({run.finished[:4]}). {about}. {source}")


def cff(run: "Manifest", where: Where = NOWHERE) -> str:
    """A Citation File Format 1.2.0 file; its values are JSON strings, which YAML reads."""
    known = {"url": where.page(run)} if where.page(run) else {}
    about = {
        "cff-version": "1.2.0",
        "message": "If you use this executed analysis, please cite it as below.",
        "type": "dataset",
        "title": heading(run),
        "version": run.run,
        "date-released": run.finished[:10],
        "license": run.project.license,
        **known,
    }
    lines = [f"{key}: {_quoted(value)}" for key, value in about.items()]
    lines += ["authors:", *(f"  - name: {_quoted(name)}" for name in authors(run))]
    named = {"run": run.run, "spec": run.spec} | ({"sha256": run.digest} if run.schema > 2 else {})
    lines += ["identifiers:", *(f'  - {{type: other, value: "{kind}:{value}"}}' for kind, value in named.items())]
    if where.named:
        lines += ["references:", "  - type: software", f"    title: {_quoted(run.project.title)}"]
        lines += [f"    version: {_quoted(run.project.version)}", "    authors:"]
        lines += [f"      - name: {_quoted(name)}" for name in run.project.authors]
        ids = {"doi": where.doi, "swh": where.swhid}
        lines += ["    identifiers:", *(f"      - {{type: {k}, value: {_quoted(v)}}}" for k, v in ids.items() if v)]
    return "\n".join([*lines, ""])


FORMATS: dict[str, Callable[["Manifest", Where], str]] = {"bibtex": bibtex, "apa": apa, "cff": cff}


def authors(run: "Manifest") -> Sequence[str]:
    """Who is cited: those who executed it, if they are told, else the project's authors."""
    return run.authors or run.project.authors


def heading(run: "Manifest") -> str:
    """The analysis' title with the model it was executed on, by where that is from if it is told."""
    model = run.parameters.get("model")
    model = run.sources.get(str(model), model)
    return f"{run.title} ({model}, {run.profile})" if model else f"{run.title} ({run.profile})"


def _digest(run: "Manifest") -> str:
    """The whole hash that a run's id is the beginning of: the id alone could be made a second time."""
    return f", sha256 {run.digest}" if run.schema > 2 else ""


def _tex(text: str) -> str:
    """One line of text whose special characters print as themselves in TeX."""
    return _line(text).translate(SPECIAL)


def _quoted(text: str) -> str:
    return json.dumps(_line(text), ensure_ascii=False)


def _line(text: str) -> str:
    """Text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
