"""How to cite one run: BibTeX, APA and CFF, each from its manifest alone."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editlib.runs.manifest import Manifest

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


def bibtex(run: "Manifest") -> str:
    """A `@misc` entry; also the text of the folder's `citation.bib`."""
    entry = {
        "author": " and ".join(f"{{{_tex(name)}}}" for name in run.project.authors),
        "title": f"{{{_tex(heading(run))}}}",
        "year": run.finished[:4],
        "month": run.finished[5:7].lstrip("0"),
        "howpublished": _tex(f"In: {run.project.title}, version {run.project.version}"),
        "note": _tex(f"Executed analysis, run {run.run}, spec {run.spec}"),
        "url": run.project.url,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in entry.items() if value]
    return "\n".join([f"@misc{{editlib-{run.analysis}-{run.run},", *lines, "}", ""])


def apa(run: "Manifest") -> str:
    """One line of text in the style of APA 7."""
    *others, last = run.project.authors
    names = f"{', '.join(others)}, & {last}" if others else last
    about = f"{heading(run)} [Executed analysis, run {run.run}]"
    place = f"In {run.project.title} (Version {run.project.version}). {run.project.url}"
    return _line(f"{names}. ({run.finished[:4]}). {about}. {place}")


def cff(run: "Manifest") -> str:
    """A Citation File Format 1.2.0 file; its values are JSON strings, which YAML reads."""
    known = {"url": run.project.url} if run.project.url else {}
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
    lines += ["authors:", *(f"  - name: {_quoted(name)}" for name in run.project.authors)]
    lines += ["identifiers:"]
    lines += [f'  - {{type: other, value: "{kind}:{value}"}}' for kind, value in (("run", run.run), ("spec", run.spec))]
    return "\n".join([*lines, ""])


FORMATS: dict[str, Callable[["Manifest"], str]] = {"bibtex": bibtex, "apa": apa, "cff": cff}


def heading(run: "Manifest") -> str:
    """The analysis' title with the model it was executed on."""
    model = run.parameters.get("model")
    return f"{run.title} ({model}, {run.profile})" if model else f"{run.title} ({run.profile})"


def _tex(text: str) -> str:
    """One line of text whose special characters print as themselves in TeX."""
    return _line(text).translate(SPECIAL)


def _quoted(text: str) -> str:
    return json.dumps(_line(text), ensure_ascii=False)


def _line(text: str) -> str:
    """Text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
