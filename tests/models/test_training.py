"""Learning rates and checkpoints: what is read is what was written, and only by the same training."""

from pathlib import Path

import pytest
import torch

from editlib.errors import EditlibError
from editlib.models.training import read_checkpoint, warmup_cosine, write_checkpoint

ABOUT = {"recipe": {"betas": (0.9, 0.95), "steps": 3}}  # a tuple, which JSON has not


def stepped() -> tuple[torch.nn.Linear, torch.optim.Adam]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_rates_rise_in_a_line_and_fall_to_a_tenth() -> None:
    rates = [warmup_cosine(step, steps=500, warmup=50) for step in range(500)]
    assert rates[:50] == [(step + 1) / 50 for step in range(50)]
    assert rates[50:] == sorted(rates[50:], reverse=True) and rates[50] == 1
    assert rates[275] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    model, optimizer = stepped()
    path = tmp_path / "new" / "x.partial"
    assert read_checkpoint(path, ABOUT) is None
    write_checkpoint(path, ABOUT, {"step": 1}, {"last": model.state_dict(), "best": {}}, optimizer)
    found = read_checkpoint(path, ABOUT)
    assert found is not None and found.state == {"step": 1}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.tensors["last"].items())
    fresh = torch.optim.Adam(torch.nn.Linear(3, 2).parameters())
    found.restore(fresh)
    for number, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, fresh.state_dict()["state"][number][name]) for name, value in values.items())


def test_another_training_and_damage_are_refused(tmp_path: Path) -> None:
    model, optimizer = stepped()
    path = tmp_path / "x.partial"
    write_checkpoint(path, ABOUT, {"step": 1}, {"last": model.state_dict()}, optimizer)
    with pytest.raises(EditlibError, match="x.partial holds a checkpoint of another training; remove it or choose"):
        read_checkpoint(path, {"recipe": {"steps": 4}})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EditlibError, match="^checkpoint .*x.partial is damaged .*; remove it$"):
        read_checkpoint(path, ABOUT)
