"""Damaged and hostile patch files: each is refused with one line, or applied exactly as its tensors say."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load
from support.mutations import MUTATIONS, Draw
from support.patch_files import make_seeds
from support.selection import only

from erasers import Patch, PatchError
from erasers.cli import patches as cli_patches
from erasers.files.hashing import raw_bytes

MANY, FEW = 300, 40
SECONDS = 10.0


class Bench:
    """A tiny pipeline, on which files are tried."""

    def __init__(self, build: Callable[[], Any], folder: Path) -> None:
        self.build, self.path = build, folder / "x.safetensors"
        self.renew()
        self.seeds = make_seeds(self.state)

    def renew(self) -> None:
        self.pipe = self.build()
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, torch.nn.Module)}
        self.modules = {f"{name}.{path}": m for name, part in parts.items() for path, m in part.named_modules()}
        # A patch exchanges what is behind a parameter, not the parameter.
        self.tensors = {
            f"{name}.{key}": value
            for name, part in parts.items()
            for key, value in part.state_dict(keep_vars=True).items()
        }
        self.state = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.fresh = self.look()

    def look(self) -> tuple[dict[str, bytes], dict[str, int]]:
        """The bits of every weight, and what the library leaves on modules: hooks and its state."""
        bits = {name: raw_bytes(tensor.detach()).tobytes() for name, tensor in self.tensors.items()}
        counts = {
            name: len(module._forward_pre_hooks) + len(module._forward_hooks) + ("_erasers_state" in vars(module))
            for name, module in self.modules.items()
        }
        return bits, counts

    def judge(self, whole: bytes, *, force: bool) -> str:
        """Whether the file was `refused` or `applied`; fails when neither happened as it should."""
        self.path.write_bytes(whole)
        started = time.process_time()
        try:
            verdict = self._run(whole, force)
            assert self.look() == self.fresh
        except BaseException:
            self.renew()
            raise
        assert time.process_time() - started < SECONDS
        return verdict

    def _run(self, whole: bytes, force: bool) -> str:
        try:
            patch = Patch.load(self.path)
            check_tensors(patch, load(whole))
            check_report(self.path, patch)
            patch.apply(self.pipe, force=force)
        except PatchError as error:
            check_message(str(error))
            return "refused"
        check_weights(self.state, self.tensors, patch)
        for hook in patch.hooks:
            check_hook(self.modules[f"{hook.component}.{hook.path}"], hook.path, hook.parts)
        with pytest.raises(PatchError, match="already carries"):
            patch.apply(self.pipe, force=True)
        patch.remove(self.pipe)
        return "applied"


def check_message(message: str) -> None:
    """One line that says what was expected, or what to do."""
    assert message.isprintable(), message
    assert 20 < len(message) < 1000
    words = ("expected", "fetch it again", "upgrade", "not a patch", "other weights", "another model", "does not fit")
    assert any(word in message for word in (*words, "pass force")), message


def check_tensors(patch: Patch, theirs: dict[str, torch.Tensor]) -> None:
    """The file holds for safetensors what it holds for us."""
    assert theirs.keys() == patch.tensors.keys()
    for name, tensor in theirs.items():
        assert patch.tensors[name].dtype == tensor.dtype
        assert patch.tensors[name].shape == tensor.shape
        assert raw_bytes(patch.tensors[name]).tobytes() == raw_bytes(tensor).tobytes()


def check_report(path: Path, patch: Patch) -> None:
    """`erase inspect` prints the patch, and nothing that a terminal would obey."""
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as change:
        change.setattr(cli_patches, "out", Console(file=screen, width=100))
        cli_patches.show_patch(path, patch)
    assert screen.getvalue().replace("\n", "").isprintable()


def check_weights(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], patch: Patch) -> None:
    """Every weight is what the tensors of the file say, and no other has changed."""
    parts = {name: tensor.double() for name, tensor in patch.tensors.items()}
    edited: dict[str, str] = {}
    for name in parts:
        form, target, *_ = name.split("/")
        layers = patch.meta["groups"][target] if form == "transform" else [target] * (form != "hook")
        edited |= {layer if form == "dense" else f"{layer}.weight": f"{form}/{target}" for layer in layers}
    assert edited.keys() <= before.keys()
    for name, old in before.items():
        new = after[name].detach()
        if name not in edited:
            assert torch.equal(new, old)
            continue
        key, wide = edited[name], old.double()
        assert new.isfinite().all()
        if key.startswith("dense"):
            assert torch.equal(new, parts[key].to(new.dtype))
            continue
        factors = [parts[f"{key}/{part}"] for part in "BAT" if f"{key}/{part}" in parts]
        factors = factors if key.startswith("lowrank") else [wide, *factors]
        check_close(new, None if f"{key}/T" in parts else wide, factors)


def check_hook(module: torch.nn.Module, path: str, parts: dict[str, torch.Tensor]) -> None:
    """What reaches the module is what the tensors make of the text."""
    wide = {name: tensor.double() for name, tensor in parts.items()}
    width = next(tensor.shape[1] for name, tensor in wide.items() if name != "B")
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []

    class Seen(Exception):
        pass

    def look(_: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(args[0] if path else kwargs["encoder_hidden_states"])
        raise Seen

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with pytest.raises(Seen):
            module(rows) if path else module(encoder_hidden_states=rows)
    finally:
        handle.remove()
    factors = [rows.double(), *(wide[part].T for part in "ABT" if part in wide)]
    check_close(seen[0], None if "T" in wide else factors[0], factors)


def check_close(new: torch.Tensor, kept: torch.Tensor | None, factors: list[torch.Tensor]) -> None:
    """`new` is the product of the factors, added to what was kept, but for rounding at the size of what is summed."""
    wanted = torch.linalg.multi_dot(factors) + (0 if kept is None else kept)
    # A transform T is applied as W + W (T - I).
    size = torch.linalg.multi_dot([factor.abs() for factor in factors]) + (factors[0] if kept is None else kept).abs()
    fits = size < 1e37
    assert ((new.double() - wanted).abs()[fits] <= 1e-5 * size[fits] + 1e-30).all()


@pytest.fixture(scope="module")
def bench(pipes: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(lambda: pipes("sd1"), tmp_path_factory.mktemp("fuzz"))


def test_the_files_are_good_before_they_are_changed(bench: Bench) -> None:
    for whole in bench.seeds.values():
        assert bench.judge(whole, force=False) == "applied"


@pytest.mark.parametrize("number", only([MANY, FEW], FEW))
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_every_changed_file_is_refused_or_applied(
    bench: Bench, mutate: Callable[[Draw, bytes], bytes], number: int
) -> None:
    verdicts: Counter[str] = Counter()

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        whole = mutate(data.draw, bench.seeds[data.draw(st.sampled_from(sorted(bench.seeds)))])
        verdicts[bench.judge(whole, force=data.draw(st.booleans()))] += 1

    run()
    assert len(MUTATIONS) * MANY >= 2000
    assert verdicts.total() >= number
    assert verdicts["refused"] > 0
    # Few are too few for a good one of every kind.
    assert verdicts["applied"] > 0 or number == FEW
