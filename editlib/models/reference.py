"""A model as another process can have it: by the name it was loaded by, or else as it is."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, Layout
from editlib.models.loading import load
from editlib.models.names import PACKAGED, gguf_file, locate, testbed_names


@dataclass(frozen=True)
class Reference:
    """What another process needs to have the same model, there on a device of its own and with so many threads."""

    name: str
    place: str  # what `load` takes, valid in any folder
    dtype: str
    device: str
    layout: Layout
    fingerprint: str
    threads: int
    whole: LanguageModel | None  # where its name is none that `load` takes

    @classmethod
    def of(cls, lm: LanguageModel, *, gpus: float = 0, threads: int = 1) -> "Reference":
        """How to have a model elsewhere; with `gpus` it is on one. Raises `EditlibError` for a model on a GPU that is
        to go where there is none."""
        if lm.device.type == "cuda" and not gpus:
            raise EditlibError("the model is on a GPU and workers have none; give them GPUs, or load it on the cpu")
        dtype = str(lm.model.dtype).removeprefix("torch.")
        whole = None if _named(lm.name) else lm
        device = "cuda" if gpus else "cpu"
        return cls(lm.name, _place(lm.name), dtype, device, lm.layout, lm.fingerprint, threads, whole)

    def load(self) -> LanguageModel:
        """The model; raises `EditlibError` as `load` does, and if another one has its name here."""
        torch.set_num_threads(self.threads)
        if self.whole:
            self.whole.model.to(self.device)
            return self.whole
        lm = replace(load(self.place, dtype=self.dtype, device=self.device, layout=self.layout), name=self.name)
        if lm.fingerprint != self.fingerprint:
            raise EditlibError(
                f"model {self.name} is another one here ({lm.fingerprint[:12]}, not {self.fingerprint[:12]}); give all "
                "machines the same files"
            )
        return lm


def _place(name: str) -> str:
    shipped = name in PACKAGED or name in testbed_names()
    return str(Path(name).resolve()) if name and not shipped and Path(name).exists() else name


def _named(name: str) -> bool:
    """Whether `load` can find a model of this name elsewhere too."""
    return bool(re.search(r"@[0-9a-f]{40}$", name) or gguf_file(name) or locate(name))
