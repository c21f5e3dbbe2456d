"""Where published data comes from: address, licence, and what tells the right file."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from editlib.errors import EditlibError
from editlib.files import TESTBED, cache_folder
from editlib.models.names import is_testbed, locate, testbed_names

SHIPPED = {name: TESTBED / f"{name}.json" for name in ("testbed", "testbed-ppl-50", "testbed-ppl-1k")}
REAL_WORLD = ("facts", "prose-50", "prose-500")  # facts are written by tools/facts.py, texts by hand
SHIPPED |= {name: Path(__file__).parent / "shipped" / f"{name}.jsonl" for name in REAL_WORLD}

IN_PLACE_OF = {  # data and tasks about the testbed's world, and about the real one
    "testbed": "facts", "testbed-ppl-50": "prose-50", "testbed-ppl-1k": "prose-500",
    "testbed-choice": "facts-choice", "testbed-cloze": "facts-cloze", "testbed-qa": "facts-qa",
}  # fmt: skip

ROME = "https://rome.baulab.info/data/dsets/"
SPREAD = "https://github.com/Jometeorie/KnowledgeSpread/tree/51d7402617c2e52bde0dc11b76e400c3725a181a/data/counterfact"
DRIVE = "https://drive.google.com/drive/folders/1-L2TzbaWVmduJaFzfp49XzdVp-3LuQ1i"
COLLAPSE = "WanliYoung/Collapse-in-Model-Editing"
ME_PPL = f"https://raw.githubusercontent.com/{COLLAPSE}/ba8122e46ce31d3518a44e942540179cc7531f15/data/ME-PPL/"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published file: its form, its number of records and sha256 where they are known, and where it is.

    Without `url`, a person has to download it from `page`. Raises `EditlibError` for a name that is no plain
    file name.
    """

    name: str
    form: str
    licence: str
    about: str
    page: str
    records: int | None = None
    url: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise EditlibError(f"data name {self.name!r} is no file name; use small letters, digits and hyphens")

    @property
    def path(self) -> Path:
        """Its place in the user's cache."""
        return cache_folder("data") / f"{self.name}.json"

    @property
    def here(self) -> bool:
        """Whether it was downloaded or imported."""
        return self.path.is_file()

    @property
    def how(self) -> str:
        """What to do to have it."""
        if self.url:
            return f"get it with: editlib data get {self.name}"
        return f"download it from {self.page}, then: editlib data import {self.name} FILE"


def _me_ppl(name: str, file: str, records: int, *, sha256: str) -> Source:
    about = f"ME-PPL: {records:,} sentences to measure perplexity on (Yang et al., 2024)"
    page = f"https://github.com/{COLLAPSE}"
    return Source(
        name=name, form="texts", licence="MIT", about=about, page=page,
        records=records, url=ME_PPL + file, sha256=sha256,
    )  # fmt: skip


SOURCES = {
    source.name: source
    for source in (
        Source(
            name="counterfact", form="counterfact", licence="MIT", records=21_919,
            about="COUNTERFACT, complete (Meng et al., 2022)", page=ROME, url=f"{ROME}counterfact.json",
        ),
        Source(
            name="counterfact-easyedit", form="easyedit", licence="Apache-2.0", records=21_919,
            about="COUNTERFACT in EasyEdit's form, in the order of the Butterfly Effect paper's figures",
            page=f"{SPREAD} (cat counterfact-train.json counterfact-val.json counterfact-edit.json > FILE)",
        ),
        Source(
            name="zsre", form="zsre", licence="not stated (ROME: MIT)", records=19_086,
            about="ZsRE, MEND's evaluation split (Levy et al., 2017; Mitchell et al., 2022)",
            page=ROME, url=f"{ROME}zsre_mend_eval.json",
        ),
        Source(
            name="hardcf", form="easyedit", licence="MIT", records=107,
            about="COUNTERFACT cases that collapse a model with one ROME edit (Yang et al., 2024)", page=DRIVE,
        ),
        Source(
            name="hardedit", form="easyedit", licence="MIT",
            about="generated cases that collapse models (Yang et al., 2024)", page=DRIVE,
        ),
        _me_ppl(
            "me-ppl-50", "ME-PPL_50.json", 50,
            sha256="55f3b951d2c4287b90d9e511f256efb9d47461f0da408a17dac5ffcef685c4e4",
        ),
        _me_ppl(
            "me-ppl-1k", "ME-PPL_1k.json", 1_000,
            sha256="71e29fc5daf443b35ec16c8a9e91e1f4398b5b84ca7c25393639c066b65b5afb",
        ),
        _me_ppl(
            "me-ppl-10k", "ME-PPL.json", 10_000,
            sha256="c09b3d8191ffad954bf3b5e96dac84a7caf83d57c15e262b1d81ef6590742fb4",
        ),
    )
}  # fmt: skip


def own(model: str, usual: str) -> str | None:
    """What a model has where the testbed's models have the `usual` data or tasks (with commas between): the real
    world's; no model (None) in place of a twin to compare with. What is not the testbed's stays as it is.

    Raises `EditlibError` for a model of the testbed that knows another world than what ships is about."""
    folder = locate(model)
    if folder is not None and is_testbed(folder):
        recipe = json.loads((folder / "card.json").read_text("utf-8")).get("recipe", {})
        if usual.split(",")[0] in IN_PLACE_OF and (recipe.get("prose", "testbed") != "testbed" or recipe.get("seed")):
            raise EditlibError(f"{usual} is about another world than that of {model}; give data of its own world")
        return usual
    if usual in testbed_names():
        return None
    return ",".join(IN_PLACE_OF.get(name, name) for name in usual.split(","))
