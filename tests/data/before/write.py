"""Writes the files of this folder with the library of commit 27be775, the last one before its modules moved:

    git worktree add ../before 27be775
    PYTHONPATH=../before:../before/tests python tests/data/before/write.py tests/data/before

`tests/test_before.py` holds today's library against them, so they are never written anew by a later one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from tiny import make_text_encoder, make_tokenizer, make_unet

from erasers import Concept, ErasedPipeline, Patch, get_eraser, load_pipeline
from erasers.methods import training
from erasers.methods.debias import Debias

WIDTH, CHANNELS = 12, 4
STAR = Concept(
    "star",
    aliases=["pentagram"],
    anchor="circle",
    preserve=["moon", "blue", "a red moon", "a picture of a blue ring", "red", "a blue moon"],
    neighbours=["ring"],
)
FEW = {"iterations": 3, "lr": 1e-2, "steps": 2, "pictures": 2}
METHODS: dict[str, dict[str, Any]] = {
    "uce": {},
    "uce-oblique": {"solver": "oblique", "rank": 2, "ridge": 0.01},
    "rece": {},
    "realera": {"rows": "last", "templates": ("{}",), "mined": 2, "beyond": 4},
    "esd": FEW | {"refresh": 2, "train_method": "x"},
    "esd-rank": FEW | {"refresh": 2, "train_method": "x", "rank": 1},
    "few_shot": FEW | {"max_drift": None, "kept": 4},
    "adv_unlearn": FEW | {"kept": 4, "attack_steps": 2, "warm_up": 1},
    "doco": FEW | {"warm_up": 1, "batch": 2, "width": 8, "kept": 2, "rank": 1},
    "robust_ablation": FEW | {"kept": 2, "noises": 2, "bank": 3, "tokens": (1, 2), "restart": 2},
}
SHARED = {"cache": False, "everyday": False}
TASK: dict[str, Any] = {
    "name": "tiny",
    "version": 1,
    "model": "shapes",
    "cases": [["star"]],
    "judge": "oracle/shapes",
    "samples": {"explicit": 4, "unrelated": 4},
    "sampling": {"steps": 2, "guidance": 4.0, "batch": 4},
    "scheme": {"pillars": ["erasure", "specificity"]},
    "attacks": {
        "prefixes": {"attack": "random_prefix", "k": 2, "images": 2, "samples": 2, "replicate": 1},
        "words": {"templates": ["a {}"], "synonyms": [], "samples": 2, "control": "prefixes", "replicate": 1},
    },
}


def make_pipe(folder: Path) -> Any:
    """A Stable Diffusion 1 pipeline of random weights, as small as it gets."""
    tokenizer = make_tokenizer(folder)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet = make_unet(WIDTH, block_out_channels=(CHANNELS,), norm_num_groups=2, attention_head_dim=2, **blocks)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=8).eval(),
        text_encoder=make_text_encoder(tokenizer, WIDTH),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(num_train_timesteps=100, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def draw(pipe: Any) -> torch.Tensor:
    """Latents after two steps with a fixed seed."""
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    with torch.no_grad():
        return pipe("a picture of star", generator=generator, **options).images


def forms(pipe: Any, whole: Patch) -> dict[str, Patch]:
    """Patches by hand, of the forms and kinds of hooks that no method above writes; `whole` edits the text's ports."""
    generator = torch.Generator().manual_seed(0)
    rows, maps = ({"encoder": (2, width), "decoder": (2, width), "bias": (2,)} for width in (WIDTH, CHANNELS))
    gate = {part: torch.randn(shape, generator=generator) for part, shape in rows.items()}
    gate |= {"floor": torch.full((2,), 0.1), "gate": torch.full((2,), 0.2), "scale": torch.tensor([-2.0])}
    steps = {part: torch.randn(shape, generator=generator) for part, shape in maps.items()}
    steps |= {"floor": torch.full((2,), 0.1), "times": torch.tensor([0.0, 50.0])}
    steps |= {"gate": torch.full((2, 2), 0.1), "scale": torch.tensor([[1.0, -1.0], [0.0, 2.0]])}
    block = f"text_encoder.{next(name for name, _ in pipe.text_encoder.named_modules() if name.endswith('layers.0'))}"
    both = {f"hook/{block}/feature_gate/{part}": tensor for part, tensor in gate.items()}
    both |= {f"hook/unet.mid_block/step_features/{part}": tensor for part, tensor in steps.items()}
    known = ["text_encoder." + next(name for name, _ in pipe.text_encoder.named_parameters()), *whole.meta["base"]]
    from erasers.hashing import tensor_hash

    module, path = known[0].split(".", 1)
    base = dict(whole.meta["base"]) | {known[0]: tensor_hash(getattr(pipe, module).get_parameter(path).data)}
    meta = {key: whole.meta[key] for key in ("format", "method", "config", "concepts")} | {"groups": {}, "base": base}
    return {"hooks-prompt": whole.to_hooks(pipe), "hooks-features": Patch(both, meta)}


def write_patches(pipe: Any, folder: Path) -> dict[str, Patch]:
    """A patch of every method and form."""
    folder.mkdir()
    patches = {}
    for name, options in METHODS.items():
        method = name.partition("-")[0]
        closed = SHARED if "iterations" not in options else {"everyday": False}
        eraser = get_eraser(method, **options, **closed)
        patches[name] = eraser.fit(pipe, STAR, progress=False)
    measure = iter([(0.9, 0.1), (0.5, 0.5)])
    debias = Debias(attributes=("red", "blue"), step=0.5, pictures=2, steps=1, guidance=1.0, **SHARED)
    patches["debias"] = debias.fit(pipe, STAR, measure=lambda *_: next(measure), progress=False)
    patches |= forms(pipe, patches["uce"])
    shapes = load_pipeline("shapes")
    patches["itd"] = get_eraser("itd", top=2, everyday=False).fit(shapes, Concept("star", anchor="circle"))
    for name, patch in patches.items():
        patch.save(folder / f"{name}.safetensors")
    return patches


class Broken(type(get_eraser("esd"))):
    """ESD that stops in the middle."""

    def prepare(self, *args: Any) -> Any:
        made = super().prepare(*args)

        def step(number: int) -> Any:
            if number == 2:
                raise KeyboardInterrupt
            return made.step(number)

        return replace(made, step=step)


def write_checkpoint(pipe: Any, folder: Path) -> None:
    """A checkpoint of ESD after two of four steps, and the patch of an unbroken training."""
    folder.mkdir()
    training._SECONDS_BETWEEN_CHECKPOINTS = 0.0
    options: dict[str, Any] = FEW | {"iterations": 4, "refresh": 2, "train_method": "x", "rank": 1, "everyday": False}
    get_eraser("esd", **options).fit(pipe, STAR, progress=False).save(folder / "unbroken.safetensors")
    try:
        Broken(**options).fit(pipe, STAR, progress=False, checkpoint=folder / "checkpoint")
    except KeyboardInterrupt:
        return
    raise RuntimeError("expected a training that is broken off, got one that ended")


def erase(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "erasers.cli", *arguments], check=True)


def write_results(folder: Path) -> None:
    """The store of a small task, and the report of an erasure."""
    folder.mkdir()
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    erase("bench", "run", str(folder / "task.yaml"), "--method", "uce", "--out", str(folder / "store"))
    patch, report = folder / "patch.safetensors", folder / "report"
    erase("--concept", "star", "--model", "shapes", "--out", str(patch), "--report", str(report), "--samples", "2")
    for name in ("index.html", "grid.png"):
        (report / name).unlink()


def main(target: Path) -> None:
    base = target / "model"
    make_pipe(target / "words").save_pretrained(base)
    shutil.rmtree(target / "words")
    drawn = {"plain": draw(load_pipeline(base))}
    patches = write_patches(load_pipeline(base), target / "patches")
    for name, patch in patches.items():
        if name != "itd":
            drawn[name] = draw(patch.apply(load_pipeline(base)))
    pipe = load_pipeline(base)
    for form in ("peft", "kohya"):
        patches["uce"].to_lora(pipe, target / f"lora-{form}", form=form)
    patches["uce"].to_delta(pipe, target / "delta")
    for name in ("uce", "hooks-prompt"):
        pipe = patches[name].apply(load_pipeline(base))
        ErasedPipeline.save_pretrained(pipe, target / f"folder-{name}", [patches[name]])
    write_checkpoint(load_pipeline(base), target / "training")
    write_results(target / "bench")
    save_file(drawn, target / "drawn.safetensors")
    digests = {name: patch.digest for name, patch in patches.items()}
    (target / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
