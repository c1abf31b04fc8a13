"""SAeUron in transformers: features of what blocks return of the picture and of the text, turned down step by step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from support.families.all import FAMILIES
from support.families.base import draw
from support.selection import only, rows
from support.tiny import same, weights

from erasers import Concept, ErasedPipeline, Patch, PatchError, get_eraser, load_pipeline
from erasers.cli import app as cli
from erasers.diffusion.adaptors.packs import Packed
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.conditions import conditions
from erasers.diffusion.latent_bank import Way
from erasers.diffusion.latents import latent_shape
from erasers.diffusion.noise import time_grid
from erasers.methods.itd.denoiser_features import Measuring
from erasers.methods.itd.eraser import ItD
from erasers.models.calls import default_of, tokens_a_prompt
from erasers.models.denoiser_blocks import halves_of
from erasers.patch.feature_hooks import stepped
from erasers.patch.step_rows import StepPictureRows, StepTextRows, stepped_rows
from erasers.sae.autoencoder import SAE, load_sae, save_sae
from erasers.sae.denoiser_block import DenoiserBlock, find_denoiser_block
from erasers.sae.rows import DenoiserRows

WAY = Way(2, 3.0, 4)
STAR = Concept("star", anchor="circle", preserve=["a moon", "a red circle", "blue art", "a ring"])
DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"
# Family -> a block of each kind that it has.
BLOCKS = {
    "sd3": [DOUBLE],
    "flux": [DOUBLE, SINGLE],
    "flux2": [DOUBLE],
    "chroma": [DOUBLE],
    "auraflow": ["joint_transformer_blocks.0"],
    "qwenimage": [DOUBLE],
    "pixart": [DOUBLE],
    "sana": [DOUBLE],
}
HALVES = {"sd3": [DOUBLE, f"{DOUBLE}:text"], "flux": [DOUBLE, f"{SINGLE}:text"]}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Pipelines, which tests leave as they are."""

    @functools.cache
    def made(family: str) -> Any:
        return FAMILIES[family].build(tmp_path_factory.mktemp(family))

    return made


def picture(pipe: Any, family: str, prompt: str = "a star", **more: Any) -> torch.Tensor:
    return draw(pipe, prompt, FAMILIES[family].options, **more)


def walked(block: DenoiserBlock, prompts: list[str]) -> dict[float, torch.Tensor]:
    seen: dict[float, torch.Tensor] = {}
    block.walk(prompts, WAY, torch.Generator().manual_seed(0), lambda _, time, rows: seen.update({time: rows}))
    return seen


def saes_for(pipe: Any, family: str, folder: Path) -> tuple[str, ...]:
    """Autoencoders of random directions around the mean of the rows: half of the features fire on a row."""
    files = []
    for number, path in enumerate(HALVES[family]):
        block = find_denoiser_block(pipe, path)
        sae = SAE(block.width, 24, 4, generator=torch.Generator().manual_seed(number))
        sae.b_pre.data = torch.cat([rows.flatten(0, 1) for rows in walked(block, ["a star"]).values()]).mean(dim=0)
        files.append(str(folder / f"{number}.safetensors"))
        save_sae(files[-1], sae, target=block.target, base=block.fingerprints(), about={})
    return tuple(files)


@pytest.fixture(scope="module")
def fitted(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Patch]:
    """A patch of both halves."""

    @functools.cache
    def fit(family: str) -> Patch:
        pipe = build(family)
        saes = saes_for(pipe, family, tmp_path_factory.mktemp("saes"))
        eraser = get_eraser("itd", sae=saes, steps=2, pictures=2, max_sequence_length=12, scale=-3.0)
        return eraser.fit(pipe, STAR, progress=False)

    return fit


# The hook


def test_rows_are_edited_as_places_of_a_map_are() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, 2, 2, generator=generator)
    parts = {
        "encoder": torch.randn(2, 4, generator=generator),
        "bias": torch.zeros(2),
        "decoder": torch.randn(2, 4, generator=generator),
        "floor": torch.tensor([0.1, 0.1]),
        "times": torch.tensor([0.9, 0.1]),
        "gate": torch.rand(2, 2, generator=generator),
        "scale": torch.tensor([[-1.0, 1.0], [0.0, -3.0]]),
    }
    tokens = maps.flatten(2).movedim(1, -1).contiguous()
    for times in (torch.tensor([0.8]), torch.tensor([0.9, 0.1, 0.3])):
        expected = stepped(maps, times, parts, 0.5)
        assert not torch.equal(expected, maps)
        torch.testing.assert_close(stepped_rows(tokens, times, parts, 0.5), expected.flatten(2).movedim(1, -1))
    assert stepped_rows(tokens, torch.tensor([0.8]), parts, 0) is tokens
    tokens[0, 0, 0] = -0.0
    quiet = stepped_rows(tokens, torch.tensor([0.8]), {**parts, "gate": torch.full((2, 2), 1e6)}, 1.0)
    assert torch.equal(quiet.view(torch.uint8), tokens.view(torch.uint8))


def test_what_does_not_fit_is_refused(build: Any, fitted: Any) -> None:
    pipe, patch = build("sd3"), fitted("sd3")
    own = {hook.kind: dict(hook.parts) for hook in patch.hooks}
    # The last block of Stable Diffusion 3 returns no text.
    hook = StepTextRows("transformer.transformer_blocks.1", own["step_text_rows"])
    with pytest.raises(PatchError, match="returns tokens of the text, got JointTransformerBlock"):
        hook.check(pipe.transformer.transformer_blocks[1])
    with pytest.raises(PatchError, match="returns tokens of the picture, got Linear"):
        StepPictureRows("transformer.proj_out", own["step_picture_rows"]).check(pipe.transformer.proj_out)
    narrow = {
        name: part[:, :4].contiguous() if name in ("encoder", "decoder") else part
        for name, part in own["step_picture_rows"].items()
    }
    with pytest.raises(PatchError, match="returns rows of 32, the hook needs 4"):
        StepPictureRows(f"transformer.{DOUBLE}", narrow).check(pipe.transformer.transformer_blocks[0])
    with pytest.raises(PatchError, match="step_text_rows"):
        StepTextRows("transformer.x", {**own["step_text_rows"], "bias": torch.zeros(99)})


# What blocks return


@pytest.mark.parametrize(
    ("family", "path"),
    rows(
        [(family, path) for family, paths in BLOCKS.items() for path in paths],
        default=lambda family, path: (family, path) in (("sd3", DOUBLE), ("flux", SINGLE)),
    ),
)
def test_each_half_is_what_the_table_says(build: Any, family: str, path: str) -> None:
    pipe = build(family)
    shape = latent_shape(pipe)
    patch = 2 if isinstance(adaptor_of(pipe), Packed) else int(pipe.transformer.config.patch_size)
    places = shape[-2] // patch * (shape[-1] // patch)
    taken = default_of(pipe, "max_sequence_length") is not None
    with tokens_a_prompt(pipe, 11 if taken else None):
        suffixes = {half: ":text" if half == "text" else "" for half in halves_of(pipe.transformer.get_submodule(path))}
        blocks = {half: find_denoiser_block(pipe, path + suffix) for half, suffix in suffixes.items()}
        seen = {half: walked(block, ["a star", "a red moon"]) for half, block in blocks.items()}
        tokens = conditions(pipe, ["a star", "a red moon"]).states.shape[1]
    for half, block in blocks.items():
        early, late = seen[half].values()
        assert early.shape == late.shape
        assert not torch.equal(early, late)
        # Those of two prompts, and where pictures are guided by asking twice, of two without.
        assert len(early) in (2, 4)
        assert early.shape[2] == block.width
        if half == "picture":
            assert early.shape[1] == places
        else:
            assert early.shape[1] not in (places, *range(tokens))


def test_times_are_those_that_the_denoiser_is_told(build: Any) -> None:
    for family, unit in (("sd3", 1.0), ("flux", 1000.0)):
        pipe = build(family)
        expected = [time / unit for time in time_grid(pipe, 2)]
        assert list(walked(find_denoiser_block(pipe), ["a star"])) == pytest.approx(expected)


def test_blocks_are_found_by_their_path(build: Any) -> None:
    sd3, flux = build("sd3"), build("flux")
    assert find_denoiser_block(sd3).target == "transformer.transformer_blocks.1"
    assert find_denoiser_block(flux, f"{SINGLE}:text").target == f"transformer.{SINGLE}:text"
    assert find_denoiser_block(flux, DOUBLE).hooked == f"transformer.{DOUBLE}"
    for path in ("transformer_blocks.1:text", "transformer_blocks.0:picture", "pos_embed", "transformer_blocks.7"):
        with pytest.raises(ValueError, match=r"transformer_blocks\.0 to transformer_blocks\.1, or of the text"):
            find_denoiser_block(sd3, path)
    with pytest.raises(ValueError, match="before the last, which nothing reads, got single_transformer_blocks.1:text"):
        find_denoiser_block(flux, "single_transformer_blocks.1:text")
    with pytest.raises(ValueError, match="denoiser whose blocks return tokens of the picture, got Lumina2"):
        find_denoiser_block(build("lumina2"))


def test_steps_at_one_time_are_steps_of_their_own() -> None:
    """In half precision neighbouring times may be told as one."""
    sae = SAE(4, 3, 1)
    rows = torch.randn(2, 1, 5, 4, generator=torch.Generator().manual_seed(0))

    def walk(prompts: list[str], way: Way, generator: torch.Generator, see: Any, clip_skip: int | None) -> None:
        for step in range(2):
            see(step, 0.5, rows[step])

    block: Any = SimpleNamespace(walk=walk)
    found = Measuring(block, sae, WAY, 9, torch.Generator(), lambda count: None).means(["a star"])
    assert found.times == [0.5, 0.5]
    torch.testing.assert_close(found.mu, torch.stack([sae.encode(row[0]).dense(3).mean(dim=0) for row in rows]))


def test_many_places_are_drawn_from(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    block = find_denoiser_block(build("flux"), DOUBLE)
    rows = DenoiserRows(block, ["a star", "a moon", "a ring"], 2, 0, WAY)
    whole = rows.step(0)
    monkeypatch.setattr("erasers.sae.rows._PLACES", 5)
    few = DenoiserRows(block, ["a star", "a moon", "a ring"], 2, 0, WAY)
    assert len(few.step(0)) == 2 * 5
    assert len(whole) > 2 * 5
    assert torch.equal(few.step(1), DenoiserRows(block, ["a star", "a moon", "a ring"], 2, 0, WAY).step(1))


# A patch


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_patch_of_both_halves_from_fit_to_removal(build: Any, fitted: Any, family: str, tmp_path: Path) -> None:
    pipe = build(family)
    before, plain = weights(pipe), picture(pipe, family)
    patch = fitted(family)
    assert same(weights(pipe), before)
    assert sorted(hook.kind for hook in patch.hooks) == ["step_picture_rows", "step_text_rows"]
    patch.save(tmp_path / "x.safetensors")
    patch = Patch.load(tmp_path / "x.safetensors")
    with patch.applied(pipe):
        erased, other = picture(pipe, family), picture(pipe, family, "a moon")
        assert not torch.equal(erased, plain)
        # Nothing is counted: another number of steps in between changes nothing.
        picture(pipe, family, num_inference_steps=3)
        assert torch.equal(picture(pipe, family), erased)
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        both = pipe(["a star", "a moon"], **FAMILIES[family].options, generator=generators).images
        torch.testing.assert_close(torch.as_tensor(both), torch.cat([erased, other]))
        twin = copy.deepcopy(pipe.transformer)
    assert torch.equal(picture(pipe, family), plain)
    assert not torch.equal(other, erased)
    pipe.transformer, transformer = twin, pipe.transformer
    assert torch.equal(picture(pipe, family), erased)
    pipe.transformer = transformer
    with patch.applied(pipe, strength=0):
        assert torch.equal(picture(pipe, family), plain)
    with patch.applied(pipe, strength=0.5):
        assert not torch.equal(picture(pipe, family), erased)


@pytest.mark.parametrize("family", only(["sd3", "flux"], "flux"))
def test_each_half_moves_the_picture(build: Any, fitted: Any, family: str) -> None:
    pipe = build(family)
    plain, patch = picture(pipe, family), fitted(family)
    for kind in ("step_picture_rows", "step_text_rows"):
        tensors = {name: tensor for name, tensor in patch.tensors.items() if f"/{kind}/" in name}
        with Patch(tensors, dict(patch.meta)).applied(pipe):
            assert not torch.equal(picture(pipe, family), plain)
        closed = {name: tensor + 1e6 if name.endswith("/gate") else tensor for name, tensor in tensors.items()}
        with Patch(closed, dict(patch.meta)).applied(pipe):
            assert torch.equal(picture(pipe, family), plain)


def test_offloading_and_caches(fitted: Any, tmp_path: Path) -> None:
    family = "flux"
    pipe, patch = FAMILIES[family].build(tmp_path), fitted(family)
    with patch.applied(pipe):
        erased = picture(pipe, family)
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(picture(pipe, family), erased)
        pipe.remove_all_hooks()
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
        with pytest.raises(PatchError, match="fbc_.* leaves blocks out, .*disable_cache"):
            picture(pipe, family)
        pipe.transformer.disable_cache()
        assert torch.equal(picture(pipe, family), erased)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with pytest.raises(PatchError, match="disable_cache"):
        patch.apply(pipe)


@pytest.mark.full
def test_a_saved_folder_and_other_weights(fitted: Any, tmp_path: Path) -> None:
    pipe, patch = FAMILIES["flux"].build(tmp_path / "files"), fitted("flux")
    with patch.applied(pipe):
        erased = picture(pipe, "flux")
        ErasedPipeline.save_pretrained(pipe, tmp_path / "folder", [patch])
    torch.testing.assert_close(picture(load_pipeline(tmp_path / "folder"), "flux"), erased, rtol=0, atol=2e-5)
    pipe.transformer.get_submodule(DOUBLE).attn.to_q.weight.data.add_(0.1)
    with pytest.raises(PatchError, match="other weights"):
        patch.apply(pipe)


def test_the_pipelines_own_guidance_unless_one_is_given(build: Any, pipe: Any) -> None:
    block = find_denoiser_block(build("flux"))
    assert [ItD()._guidance(block), ItD(guidance=2.0)._guidance(block)] == [3.5, 2.0]
    unet = find_denoiser_block(pipe, "mid_block")
    assert [ItD()._guidance(unet), ItD(guidance=2.0)._guidance(unet)] == [9.0, 2.0]


# The command


def test_the_command_trains_on_the_text_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    FAMILIES["sd3"].build(tmp_path / "files").save_pretrained(tmp_path / "model")
    Path("prompts.txt").write_text("a star\na circle\na ring\na moon\nred art\n")
    arguments = ["--model", "model", "--prompts", "prompts.txt", "--out", "x.safetensors", "--overwrite"]
    quick = ["--steps", "4", "--features", "16", "--k", "2", "--batch", "2", "--dead-after", "5"]
    quick += ["--sampling-steps", "2"]
    assert cli.run(["sae", "train", "--component", "transformer", "--block", f"{DOUBLE}:text", *arguments, *quick]) == 0
    assert load_sae("x.safetensors")[1]["target"] == f"transformer.{DOUBLE}:text"
    assert cli.run(["sae", "train", *arguments, "--component", "unet"]) == 2
    assert "among text_encoder, text_encoder_2, text_encoder_3, transformer, got 'unet'" in capsys.readouterr().err
