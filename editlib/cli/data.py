"""Commands about edit cases and texts: list, get, import and check their files."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlib.cli.options import JsonOption
from editlib.cli.output import emit
from editlib.text import table

if TYPE_CHECKING:
    from editlib.data.datasets import Reading

app = typer.Typer(help="Edit cases and texts: what is here, and where to get the rest.", rich_markup_mode=None)


@app.command("list")
def list_data(as_json: JsonOption = False) -> None:
    """List the known files of edit cases and texts: what is here, how to get the rest, and their licences.

    Example: editlib data list
    """
    rows = _sources()
    if as_json:
        return emit(rows)
    columns = ["name", "records", "licence", "about"]
    head = ["file", "name", "published", "licence", "about"]
    shown = [["here" if row["path"] else "absent", *(row[column] for column in columns)] for row in rows]
    missing = [f"{row['name']}: {row['how']}" for row in rows if not row["path"]]
    emit("\n".join([table([head, *shown]), *missing]))


@app.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help="A name that `editlib data list` shows.")], as_json: JsonOption = False
) -> None:
    """Download a file from where its authors put it, check it, and keep it in the user's cache.

    A transfer that broke off goes on where it stopped. EDITLIB_CACHE names another cache folder.

    Example: editlib data get me-ppl-50
    """
    from editlib.data import datasets as data

    report = _report(name, data.get(name, progress=sys.stderr.isatty()))
    emit(report if as_json else _text(report, limit=10))


@app.command("import")
def import_data(
    name: Annotated[str, typer.Argument(help="A name that `editlib data list` shows.")],
    file: Annotated[Path, typer.Argument(help="The file you have: a JSON list, or JSON lines.")],
    as_json: JsonOption = False,
) -> None:
    """Check a file you have, copy it into the user's cache under a name, and list its rejected records.

    Example: editlib data import hardcf HardCF.json
    """
    from editlib.data import datasets as data

    report = _report(name, data.import_file(name, file))
    emit(report if as_json else _text(report))


@app.command("check")
def check_data(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="What to check.  [default: all that is here]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read files again and show their form, number of records and sha256, and the first rejected records.

    Example: editlib data check testbed
    """
    from editlib.data import datasets as data

    reports = [_report(one, data.check(one)) for one in ([name] if name else data.present())]
    emit(reports if as_json else "\n".join(_text(report, limit=10) for report in reports))


def _sources() -> list[dict[str, Any]]:
    """What is known of every file; `path` is None for one that is not here."""
    from editlib.data.sources import SHIPPED, SOURCES

    shipped = {"records": None, "licence": "MIT", "about": "shipped with editlib", "how": None}
    rows: list[dict[str, Any]] = [{"name": name, "path": str(path)} | shipped for name, path in SHIPPED.items()]
    for source in SOURCES.values():
        location = str(source.path) if source.here else None
        rows.append({"name": source.name, "path": location} | {key: getattr(source, key) for key in shipped})
    return rows


def _report(name: str, reading: "Reading") -> dict[str, Any]:
    """What was read, as JSON; `published` is the number of records the authors' file has."""
    from editlib.data import datasets as data
    from editlib.data.sources import SOURCES

    return {
        "name": name, "path": str(data.locate(name)), "sha256": data.fingerprint(name), "form": reading.form,
        "records": reading.records, "published": SOURCES[name].records if name in SOURCES else None,
        "rejected": [asdict(item) for item in reading.rejected],
    }  # fmt: skip


def _text(report: dict[str, Any], *, limit: int | None = None) -> str:
    """A report with its first `limit` rejected records."""
    name, records, published, rejected = (report[key] for key in ("name", "records", "published", "rejected"))
    count = f"{records} records" if published in (None, records) else f"{records} of {published} records"
    head = f"{name}: {count} in form {report['form']}, {len(rejected)} rejected, sha256 {report['sha256'][:12]}"
    lines = [f"  record {item['position']} (line {item['line']}): {item['reason']}" for item in rejected[:limit]]
    more = len(rejected) - len(lines)
    return "\n".join(
        [f"{head}, {report['path']}", *lines, *([f"  and {more} more; --json lists them"] if more else [])]
    )
