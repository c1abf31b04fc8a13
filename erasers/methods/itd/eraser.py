"""ItD, "Interpret then Deactivate": Tian et al., "Sparse Autoencoder as a Zero-Shot Classifier for Concept Erasing in
Text-to-Image Diffusion Models", arXiv 2503.09446."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from rich.console import Console

from erasers import worlds
from erasers.concept import Concept
from erasers.diffusion.latent_bank import Way
from erasers.diffusion.supported import check_clip_skip
from erasers.eraser import Eraser
from erasers.files.reading import at_home
from erasers.methods.itd.denoiser_features import Measuring, step_parts
from erasers.methods.itd.dictionaries import Dictionary, dictionary_of
from erasers.models.calls import default_of, tokens_a_prompt
from erasers.models.components import find_parameter
from erasers.models.feeding import warn_of_missed_encoders
from erasers.models.readers import text_readers
from erasers.options import require_least, require_shares
from erasers.patch import Patch
from erasers.patch.build import patch_meta
from erasers.patch.feature_hooks import FeatureGate
from erasers.progress import progress as bar
from erasers.sae.autoencoder import SAE, load_sae
from erasers.sae.denoiser_block import DenoiserBlock, find_denoiser_block
from erasers.sae.presets import DENOISERS
from erasers.sae.text_blocks import Block, check_read, find_block, find_blocks, readable_encoders
from erasers.text.contexts import contexts, kept_prompts
from erasers.text.prompts import Templates

_PROMPTS_A_BATCH = 32
_PUBLISHED_GUIDANCE = 9.0
# The same prompt in another batch differs in its last bits.
_ROUNDING = 1.001


@dataclass(frozen=True, kw_only=True)
class ItD(Eraser):
    """Find the features of a sparse autoencoder that fire for the concept alone, and turn them down where they fire.

    F_tar = U S(e) minus U S(r), over prompts e with the concept and prompts r that are kept; S(p) are the features that
    are active in any token of p but the first. A prompt in which none of F_tar passes its gate keeps its embedding bit
    for bit. Nothing is trained: another concept adds features.

    Differs from the official code: a prompt is told by the strength of its target features, measured alike when the
    threshold is set and when it is used, in place of two different means of the squared change; the edit is added to
    the block's output, whose reconstruction error stays; prompts are padded as the pipeline pads them; S(r) has every
    active feature, not the `top`; active is what is above the share `quiet` of the feature's largest activity, for
    features with a sharp meaning murmur elsewhere; a target is active in the share `often` of the prompts with the
    concept, for what fires in one of them may come from its other words; the prompts that set the threshold are
    templates and the concept's preserved captions with the concept in its anchor's place; only the rows and columns of
    target features are stored, so that activity is told by a threshold for each of them in place of the k largest.

    With an autoencoder of a block of the denoiser instead, this is SAeUron (`denoiser_features`): features are chosen
    for each time step and turned down where they fire, whatever the prompt. Blocks in which text and picture attend to
    each other return tokens of both, and each half has an autoencoder of its own. It differs from its official code in
    the sign of the error, which stays what it is, in telling the time step by its value instead of counting calls, and
    in a threshold for active features in place of the k largest.

    Other features need no training: `dictionary` makes them of the prompts. `snmf` are the factors of a
    semi-nonnegative factorisation (Shafran et al., arXiv 2506.10920), `codebook` the codes of a vector quantisation
    (Tamkin et al., arXiv 2310.17230), and `means` is the baseline, one direction for each name: mean(with) -
    mean(without). They differ from the papers in what they describe, rows of the block that is edited: `snmf` has no
    sparse factors, which say something of neurons alone, and starts from a codebook, not at random; a model is not
    trained to go through its `codebook`.

    Args:
        sae: Files of autoencoders, one for each text encoder of CLIP or T5, or of blocks of the denoiser (`erase sae
            train` makes them); "auto" is the one in the package, for the text encoder of an embedded model.
        scale: What the activity of target features is multiplied by; 0 takes it away, less turns it round.
        top: Most active features of a prompt with the concept that can be targets.
        quiet: Activity below this share of the largest that a feature has in any of these prompts is silence; 0 is the
            published rule.
        often: Share of the prompts with one of the concept's names in which a target feature is active; 0 is the
            published rule.
        margin: Where the threshold lies between the strongest kept prompt (0) and the weakest with the concept (1).
        templates: Patterns with one `{}` for the concept; "auto": those of its kind.
        aliases: Erase the concept's aliases, too.
        dictionary: Whose features: `sae`, or one that is made of the prompts, for text encoders alone.
        size: Features of `snmf` and `codebook`.
        features: Of a denoiser: how many of each concept are turned down at each step.
        pictures: Of a denoiser: at most so many are drawn of each concept, and of kept prompts.
        steps: Of the sampler that draws them.
        guidance: With which they are drawn; "auto" is 9 for a UNet, as published, and the pipeline's own for others.
        clip_skip: Last layers of CLIP that are left out, where pictures are drawn with the pipeline's `clip_skip`; the
            block of the autoencoder has to be one that is read.
        max_sequence_length: Of a denoiser: tokens that a prompt is padded or cut to, where the pipeline takes that;
            None: its default.
    """

    name: ClassVar[str] = "itd"
    paper: ClassVar[str] = "[ItD](https://arxiv.org/abs/2503.09446)"
    family: ClassVar[str] = "runtime hook, text encoder or denoiser"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "itd-shapes": {"scale": -2.0, "steps": 20, "guidance": 4.0},
        "itd-snmf": {"dictionary": "snmf", "quiet": 0.5},
        "itd-codebook": {"dictionary": "codebook"},
        "itd-means": {"dictionary": "means"},
        "itd-nudity": {"top": 128, "scale": -8.0},
        "itd-style": {"top": 256, "scale": -8.0},
        "itd-identity": {"top": 128, "scale": -8.0},
    }
    strengths: ClassVar[str] = "other prompts stay bit for bit"
    limits: ClassVar[str] = "can be switched off; needs this library to load"
    hooks: ClassVar[bool] = True

    sae: tuple[str, ...] | Literal["auto"] = "auto"
    scale: float = -8.0
    top: int = 128
    quiet: float = 0.3
    often: float = 0.5
    margin: float = 0.5
    templates: Templates = "auto"
    aliases: bool = True
    dictionary: Dictionary = "sae"
    size: int = 32
    features: int = 3
    pictures: int = 80
    steps: int = 50
    guidance: float | Literal["auto"] = "auto"
    clip_skip: int | None = None
    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not abs(self.scale) < float("inf"):
            raise ValueError(f"expected a finite scale, got {self.scale}")
        require_least(self, top=1, size=1, features=1, pictures=1, steps=1, clip_skip=0, max_sequence_length=1)
        if self.guidance != "auto" and not abs(self.guidance) < float("inf"):
            raise ValueError(f"expected a finite guidance, got {self.guidance}")
        if self.dictionary != "sae" and self.sae != "auto":
            raise ValueError(f"expected no sae with dictionary {self.dictionary}, which is made of prompts, got one")
        require_shares(self, "quiet", "often", "margin")

    def config(self) -> dict[str, Any]:
        """See `Eraser.config`; of the autoencoders the names of the files alone."""
        return asdict(self) | ({} if self.sae == "auto" else {"sae": tuple(Path(path).name for path in self.sae)})

    def check_pipe(self, pipe: Any) -> None:
        """See `Eraser.check_pipe`."""
        check_clip_skip(pipe, self.clip_skip)

    def _fit(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, progress: bool) -> Patch:
        """See `Eraser.fit`; on text encoders nothing is random, and it takes seconds."""
        described = self.described(pipe, concepts, generator)
        warn_of_missed_encoders(pipe, {block.name for block, _, _ in described}, "give an autoencoder of it, too")
        tensors: dict[str, torch.Tensor] = {}
        base: dict[str, str] = {}
        digests: dict[str, str] = {}
        for block, sae, digest in described:
            if isinstance(block, DenoiserBlock):
                hook, parts = f"{block.hooked}/{block.kind}", self.step_parts(block, sae, concepts, generator, progress)
            else:
                check_read(block, self.clip_skip)
                hook, parts = f"{block.target}/{FeatureGate.kind}", self.parts(block, sae, concepts)
            tensors |= {f"hook/{hook}/{part}": tensor for part, tensor in parts.items()}
            base |= block.fingerprints()
            digests |= {block.target: digest} if digest else {}
        weights = {name: find_parameter(pipe, name, linear=False, edit=False) for name in base}
        dtype, readers = next(iter(weights.values())).dtype, text_readers(pipe)
        meta = patch_meta(self.name, self.config(), concepts, base, dtype, weights=weights, readers=readers)
        return Patch(tensors, meta | ({"sae": digests} if digests else {}))

    def described(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator) -> list[Described]:
        """The blocks that are edited, each with its features; raises as `read_saes` and `dictionary_of`."""
        if self.dictionary == "sae":
            return read_saes(pipe, self.sae)
        return [Described(block, self._made(block, concepts, generator)) for block in find_blocks(pipe)]

    def _made(self, block: Block, concepts: Sequence[Concept], generator: torch.Generator) -> SAE:
        near, others = kept_prompts(concepts, self.templates)
        named, kept = [prompts for _, prompts in self.asked(concepts)], [*near, *others]
        rows = [block.counted(block.outputs(prompts)).flatten(0, 1) for prompts in [*named, kept]]
        return dictionary_of(self.dictionary, rows[:-1], rows[-1], self.size, generator)

    def parts(self, block: Block, sae: SAE, concepts: Sequence[Concept]) -> dict[str, torch.Tensor]:
        """The parts of the hook of one block."""
        near, others = kept_prompts(concepts, self.templates)
        kept = activity(sae, block, [*near, *others])
        gates: dict[int, float] = {}
        floors: dict[int, float] = {}
        for place, (name, prompts) in enumerate(self.asked(concepts)):
            asked = activity(sae, block, prompts)
            chosen = self._chosen(place, asked, kept)
            if not len(chosen):
                raise ValueError(
                    f"expected features of {block.target} that fire for {name!r} alone, got none; {self._advice()}"
                )
            gate = thresholds(asked.strength[:, chosen], kept.strength[:, chosen], self.margin)
            floor = floors_of(sae, asked.active[:, chosen])
            for number, value, least in zip(chosen.tolist(), gate.tolist(), floor.tolist(), strict=True):
                gates[number] = min(gates.get(number, float("inf")), max(value, least))
                floors[number] = min(floors.get(number, float("inf")), least)
        return gate_parts(sae, gates, floors, self.scale) | ({} if block.first else {"first": torch.zeros(1)})

    def _chosen(self, place: int, asked: Activity, kept: Activity) -> torch.Tensor:
        """Numbers of the features of a name, by its place among all."""
        if self.dictionary == "means":
            return torch.tensor([place])
        return select(asked.active, kept.active, self.top, self.quiet, self.often)

    def _advice(self) -> str:
        """What to do where no feature fires for a name alone."""
        if self.dictionary == "sae":
            return "train the autoencoder on prompts with it, or on more features (erase sae train --features)"
        return f"take another size than {self.size}, or more quiet than {self.quiet:g}, or a trained autoencoder"

    def step_parts(
        self, block: DenoiserBlock, sae: SAE, concepts: Sequence[Concept], generator: torch.Generator, progress: bool
    ) -> dict[str, torch.Tensor]:
        """The parts of the hook of one block of a denoiser."""
        near, others = kept_prompts(concepts, self.templates)
        asked = [prompts for _, prompts in self.asked(concepts)]
        total = sum(min(self.pictures, len(set(drawn))) for drawn in [*asked, [*near, *others]])
        with bar(Console(stderr=True) if progress else None, "drawing pictures to measure features", total) as advance:
            way = Way(self.steps, self._guidance(block))
            measuring = Measuring(block, sae, way, self.pictures, generator, advance, self.clip_skip)
            with tokens_a_prompt(block.pipe, self.max_sequence_length):
                return step_parts(measuring, asked, [*near, *others], self.scale, self.features)

    def _guidance(self, block: DenoiserBlock) -> float:
        """With which pictures are drawn."""
        if self.guidance != "auto":
            return self.guidance
        own = None if block.name == "unet" else default_of(block.pipe, "guidance_scale")
        return _PUBLISHED_GUIDANCE if own is None else float(own)

    def asked(self, concepts: Sequence[Concept]) -> list[tuple[str, list[str]]]:
        """Every name that is erased, with the prompts that have it: templates, and captions with it in place."""
        prompts = []
        for concept in concepts:
            for term in concept.terms(aliases=self.aliases):
                named = replace(concept, name=term, aliases=())
                prompts.append((term, [text for text, _ in contexts(named, self.templates)]))
        return prompts


class Activity(NamedTuple):
    """The strongest of each feature among the tokens of prompts that count; both `[prompts, n]`.

    Args:
        active: z.
        strength: a, also where z is 0.
    """

    active: torch.Tensor
    strength: torch.Tensor


def activity(sae: SAE, block: Block, prompts: Sequence[str]) -> Activity:
    """What the features of an autoencoder do in prompts."""
    return activity_in(sae, map(block.counted, block.batches(list(prompts), _PROMPTS_A_BATCH)))


@torch.no_grad()
def activity_in(sae: SAE, batches: Iterable[torch.Tensor]) -> Activity:
    """What they do in rows `[prompts, T, d]` of all tokens that count."""
    active, strength = [], []
    for batch in batches:
        count, tokens, _ = batch.shape
        rows = batch.flatten(0, 1)
        shape = (count, tokens, sae.n)
        active.append(sae.encode(rows).dense(sae.n).view(shape).amax(dim=1))
        strength.append(sae.activations(rows).view(shape).amax(dim=1))
    return Activity(torch.cat(active), torch.cat(strength))


def select(asked: torch.Tensor, kept: torch.Tensor, top: int, quiet: float, often: float) -> torch.Tensor:
    """F_tar: numbers of the features among the `top` of a prompt with the concept and active in no kept one.

    Args:
        asked: z of the prompts with the concept, `[e, n]`.
        kept: z of the others, `[r, n]`.
        top: K_sel.
        quiet: Share of a feature's largest z up to which it counts as silent.
        often: Least share of the prompts with the concept in which a target is active.
    """
    silence = quiet * torch.maximum(asked.amax(dim=0), kept.amax(dim=0))
    asked, kept = (torch.where(z > silence, z, torch.zeros_like(z)) for z in (asked, kept))
    values, numbers = asked.topk(min(top, asked.shape[1]), dim=1)
    fires = torch.zeros_like(asked, dtype=torch.bool).scatter(1, numbers, values > 0)
    targets = fires.any(dim=0) & (fires.double().mean(dim=0) >= often)
    return (targets & ~(kept > 0).any(dim=0)).nonzero().flatten()


def statistic(strength: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """One number a prompt `[p]`: the strongest target feature, in units of each; from a `[p, m]` and units `[m]`."""
    return (strength / unit).amax(dim=1)


def thresholds(asked: torch.Tensor, kept: torch.Tensor, margin: float) -> torch.Tensor:
    """The a above which a feature says that the concept is there, `[m]`: one threshold on `statistic`.

    It lies between the strongest kept prompt and the weakest with the concept. Where these overlap, no kept prompt may
    pass.

    Args:
        asked: a of the target features in prompts with the concept, `[e, m]`.
        kept: The same in the others, `[r, m]`.
        margin: 0 is at the kept prompts, 1 at those with the concept.
    """
    unit = asked.amax(dim=0)
    low, high = statistic(kept, unit).max() * _ROUNDING, statistic(asked, unit).min()
    return unit * (low + margin * (high - low).clamp(min=0))


def floors_of(sae: SAE, asked: torch.Tensor) -> torch.Tensor:
    """The a above which a target feature is active, `[m]`.

    That is the threshold of a `batchtopk` autoencoder itself. Whether a feature is among the k largest cannot be told
    without all others, so for `topk` it is the least value with which it was in the prompts with the concept.
    """
    if sae.activation == "batchtopk":
        return sae.threshold.expand(asked.shape[1])
    least = torch.where(asked > 0, asked, torch.full_like(asked, float("inf"))).amin(dim=0)
    return least * (1 - 1e-4)


def gate_parts(
    sae: SAE, gates: Mapping[int, float], floors: Mapping[int, float], scale: float
) -> dict[str, torch.Tensor]:
    """The parts of a `FeatureGate` with these features."""
    numbers = torch.tensor(sorted(gates))
    floor, gate = (torch.tensor([values[int(number)] for number in numbers]) for values in (floors, gates))
    return {
        **sae.features_apart(numbers),
        "floor": floor,
        "gate": torch.maximum(gate, floor),
        "scale": torch.tensor([float(scale)]),
    }


class Described(NamedTuple):
    """A block and its features.

    Args:
        block: Of a text encoder or of a denoiser.
        sae: The features.
        digest: sha256 of the file that they are from; "" where they are made of prompts.
    """

    block: Block | DenoiserBlock
    sae: SAE
    digest: str = ""


def read_saes(pipe: Any, given: tuple[str, ...] | Literal["auto"]) -> list[Described]:
    """Autoencoders of a pipeline, each with the block that it describes.

    Raises:
        UnsupportedPipeline: The message lists the supported ones.
        FileNotFoundError: No such file.
        ValueError: An autoencoder of another model, or none.
    """
    saes: dict[str, Described] = {}
    for path in _shipped(pipe) if given == "auto" else [at_home(path) for path in given]:
        sae, meta = load_sae(path)
        block = _block_of(pipe, meta["target"])
        if block.fingerprints() != meta["base"]:
            raise ValueError(f"expected an autoencoder of this model in {path.name}, got one of other weights")
        saes[block.target] = Described(block, sae, hashlib.sha256(path.read_bytes()).hexdigest())
    if not saes:
        name = readable_encoders(pipe)[0]
        raise ValueError(
            f"expected a sparse autoencoder for the {name} of this model, got none; train one with "
            f"erase sae train --model MODEL --component {name} --out FILE and pass --set sae=FILE"
        )
    return [saes[target] for target in sorted(saes)]


def _block_of(pipe: Any, target: str) -> Block | DenoiserBlock:
    """The block that an autoencoder describes.

    Raises:
        UnsupportedPipeline: Another pipeline.
        ValueError: The pipeline has no such block.
    """
    name, _, inner = target.partition(".")
    if name not in DENOISERS:
        return find_block(pipe, target)
    block = find_denoiser_block(pipe, inner)
    if block.name != name:
        raise ValueError(f"expected an autoencoder of a block of the {block.name}, got one of {target}")
    return block


def _shipped(pipe: Any) -> list[Path]:
    """The autoencoder in the package, when it is of this pipeline's text encoder."""
    folders = [folder for name in worlds.list() if (folder := worlds.get(name).sae)]
    paths = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    blocks = find_blocks(pipe)
    shipped = []
    for path in paths:
        meta = load_sae(path)[1]
        shipped += [path for block in blocks if block.target == meta["target"] and block.fingerprints() == meta["base"]]
    return shipped
