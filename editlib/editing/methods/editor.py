"""MEND's editor: small networks that turn a gradient's factors into a weight change, and the file they are kept in.

For a linear map with inputs u_t and output gradients δ_t (t: tokens), the gradient of the loss is Σ_t δ_t u_tᵀ. The
editor maps z_t = (u_t, δ_t), normalised, to (ũ_t, δ̃_t) by two low-rank blocks h = z + σ(s ⊙ (U V z + b) + o) that start
as the identity; the change of the weight is ΔW = -α Σ_t δ̃_t ũ_tᵀ. U, V and b are shared by all weights of one shape; s,
o, α and the normalisation are each weight's own. Source: Mitchell et al. 2022, section 3.1 and equation 4.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from editlib.errors import EditlibError
from editlib.files import write_tensors
from editlib.models.language_model import LanguageModel, oriented, widened
from editlib.models.tokens import Encoded, pad
from editlib.models.trace import trace

TokenFactors = dict[str, tuple[Tensor, Tensor]]  # by module: left (rows, tokens, d_out), right (rows, tokens, d_in)
FLOOR = 0.01  # smallest standard deviation, in units of the mean one: a dead input must not be blown up


class Block(nn.Module):
    """z + σ(s ⊙ (U V z + b) + o), the identity at first; σ cuts at zero or, in the last block, does nothing."""

    def __init__(self, size: int, rank: int, weights: int, *, bent: bool) -> None:
        super().__init__()
        self.bent = bent
        self.u = nn.Parameter(torch.zeros(size, rank))
        self.v = nn.Parameter(torch.zeros(rank, size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(weights, size))
        self.shift = nn.Parameter(torch.zeros(weights, size))

    def forward(self, z: Tensor) -> Tensor:
        """Shape in and out: (weights, rows, tokens, size)."""
        change = (z @ self.v.T @ self.u.T + self.bias) * self.scale[:, None, None] + self.shift[:, None, None]
        return z + (change.clamp(min=0) if self.bent else change)  # unlike relu, clamp passes gradient at zero


class Network(nn.Module):
    """The editor of all weights of one shape (d_out, d_in)."""

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, int], rank: int, weights: int) -> None:
        super().__init__()
        size = sum(shape)
        self.d_in = shape[1]
        self.register_buffer("mean", torch.zeros(weights, size))
        self.register_buffer("std", torch.ones(weights, size))
        self.first = Block(size, rank, weights, bent=True)
        self.second = Block(size, rank, weights, bent=False)
        self.alpha = nn.Parameter(torch.ones(weights))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Left -α δ̃ and right ũ of every token; both zero where the token has no gradient."""
        normal = (z - self.mean[:, None, None]) / self.std[:, None, None]
        changed = self.second(self.first(normal)) * self.touched(z)[..., None]
        return -self.alpha[:, None, None, None] * changed[..., self.d_in :], changed[..., : self.d_in]

    def touched(self, z: Tensor) -> Tensor:
        """Which tokens have a gradient, the shape of z but for its last dimension."""
        return (z[..., self.d_in :] != 0).any(-1)

    @torch.no_grad()
    def normalise(self, z: Tensor) -> None:
        """Set mean and standard deviation to those of the tokens that have a gradient.  # z: (weights, tokens, size)"""
        for i, (values, touched) in enumerate(zip(z, self.touched(z), strict=True)):
            known = values[touched]
            self.mean[i], std = known.mean(0), known.std(0)
            for part in (slice(self.d_in), slice(self.d_in, None)):  # inputs and gradients differ by magnitudes
                self.std[i, part] = std[part].clamp(min=FLOOR * std[part].mean())


class Editor(nn.Module):
    """The networks of all edited weights; `shapes` maps a linear module's name to its weight's (d_out, d_in).

    A new one leaves gradients as they are: its change is a gradient step of size one.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, rank: int) -> None:
        super().__init__()
        self.members: dict[str, list[str]] = {}
        for name, (d_out, d_in) in shapes.items():
            self.members.setdefault(f"{d_out}x{d_in}", []).append(name)
        self.networks = nn.ModuleDict(
            {key: Network(shapes[names[0]], rank, len(names)) for key, names in self.members.items()}
        )

    @property
    def names(self) -> list[str]:
        """The edited modules."""
        return [name for names in self.members.values() for name in names]

    def forward(self, gradients: TokenFactors) -> TokenFactors:
        """The factors of the weight change, from those of the gradient."""
        changes: TokenFactors = {}
        for key, names in self.members.items():
            left, right = self.networks[key](_stacked(gradients, names))
            changes |= {name: (left[i], right[i]) for i, name in enumerate(names)}
        return changes

    def normalise(self, batches: Sequence[TokenFactors]) -> None:
        """Take mean and standard deviation of the inputs from the gradients of some batches."""
        for network, names in zip(self.networks.values(), self.members.values(), strict=True):
            assert isinstance(network, Network)
            network.normalise(torch.cat([_stacked(batch, names).flatten(1, 2) for batch in batches], dim=1))


def _stacked(gradients: TokenFactors, names: Sequence[str]) -> Tensor:
    """(u, δ) of all tokens of some modules.  # (modules, rows, tokens, d_in + d_out)"""
    return torch.stack([torch.cat([right, left], dim=-1) for left, right in map(gradients.__getitem__, names)])


def shapes(lm: LanguageModel, layers: Sequence[int]) -> dict[str, tuple[int, int]]:
    """The MLP weights of some layers: module names with (d_out, d_in)."""
    modules = {name: module for layer in layers for name, module in lm.mlp(layer).items()}
    return {name: (oriented(m).shape[0], oriented(m).shape[1]) for name, m in modules.items()}


def target_scores(logits: Tensor, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Each row's mean NLL over its target tokens, and whether all of them are the most likely ones.  # both (rows,)"""
    losses, exact = [], []
    for scores, row in zip(logits, rows, strict=True):
        wanted = torch.tensor(row.wanted, device=logits.device)
        read = widened(scores[row.predicting])
        losses.append(nn.functional.cross_entropy(read, wanted))
        exact.append((read.argmax(-1) == wanted).all())
    return torch.stack(losses), torch.stack(exact)


def gradients(lm: LanguageModel, names: Sequence[str], rows: Sequence[Encoded]) -> tuple[TokenFactors, Tensor]:
    """Factors δ and u of every row's own gradient of the mean NLL of its target, fp32, and that NLL.  # (rows,)

    Rows do not mix: the sum over rows of left rightᵀ is the gradient of the summed loss. No weight is touched.
    """
    ids, mask = pad([row.ids for row in rows], lm.device)
    rooted = dict.fromkeys(names, lambda output: output if output.requires_grad else output.requires_grad_())
    with torch.enable_grad(), trace(lm.model, replace=rooted) as seen:
        losses, _ = target_scores(lm.model(input_ids=ids, attention_mask=lm.attended(mask)).logits, rows)
        deltas = torch.autograd.grad(losses.sum(), [seen[name].output for name in names])
    factors = {n: (d.float(), seen[n].input.detach().float()) for n, d in zip(names, deltas, strict=True)}
    return factors, losses.detach()


@contextmanager
def changed(lm: LanguageModel, changes: TokenFactors) -> Iterator[None]:
    """Inside the block every row of a batch runs with its own weight change, which is never made dense."""
    with ExitStack() as stack:
        for name, (left, right) in changes.items():
            handle = lm.model.get_submodule(name).register_forward_hook(_adding(left, right))
            stack.callback(handle.remove)
        yield


def _adding(left: Tensor, right: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen = inputs[0].reshape(len(right), -1, right.shape[-1]).to(right.dtype)
        return output + ((seen @ right.mT) @ left).view(output.shape).to(output.dtype)

    return hook


@dataclass(frozen=True, kw_only=True)
class EditorHeader:
    """What an editor's file says of itself."""

    model: str  # fingerprint of the unedited model
    shapes: dict[str, list[int]]  # of the edited weights, by module name
    rank: int
    data: str  # sha256 of the training cases
    recipe: dict[str, Any]
    command: str  # the command line that trains it
    best_step: int
    seconds: float
    curve: list[dict[str, float]]  # held-out edits, one entry an evaluation


def save_editor(path: Path, header: EditorHeader, tensors: Mapping[str, Tensor]) -> Path:
    """Write one safetensors file, aside and then renamed."""
    return write_tensors(path, tensors, {"header": json.dumps(asdict(header))})


def read_header(path: Path, lm: LanguageModel) -> EditorHeader:
    """What an editor's file says; raises `EditlibError` if it is missing, cut off, or was trained for another model."""
    if not path.is_file():
        raise EditlibError(f"there is no MEND editor {path}; {_again(lm)}")
    try:
        with safe_open(path, "pt") as file:
            header = EditorHeader(**json.loads(file.metadata()["header"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, lm, error) from error
    if header.model != lm.fingerprint:
        raise EditlibError(
            f"MEND editor {path} was trained for model {header.model[:12]}, not for {lm.name or 'this model'} "
            f"({lm.fingerprint[:12]}); {_again(lm)}"
        )
    return header


def load_editor(path: str | Path, lm: LanguageModel) -> tuple[Editor, EditorHeader]:
    """Read an editor; raises `EditlibError` as `read_header` does, or if its tensors are not those of its header."""
    header = read_header(Path(path), lm)
    try:
        editor = Editor({name: (rows, columns) for name, (rows, columns) in header.shapes.items()}, rank=header.rank)
        editor.load_state_dict(load_file(path))
    except (OSError, SafetensorError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _unreadable(path, lm, error) from error
    return editor.to(lm.device).eval().requires_grad_(False), header


def _unreadable(path: str | Path, lm: LanguageModel, error: Exception) -> EditlibError:
    reason = str(error).strip().splitlines()[0]
    return EditlibError(f"{path} is no readable MEND editor ({reason}); copy it again, or {_again(lm)}")


def _again(lm: LanguageModel) -> str:
    return f"train one with: editlib mend train --model {lm.name or 'MODEL'} --out FILE"
