"""MACE: Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024, arXiv 2403.06135."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from erasers.closed_form.algebra import ridge_edit_gram
from erasers.closed_form.pairs import check_rows
from erasers.concept import Concept, Concepts, as_concepts
from erasers.diffusion.adaptors.condition import Condition
from erasers.diffusion.batches import Summands, parts
from erasers.diffusion.conditions import conditions
from erasers.diffusion.counting import Calls
from erasers.diffusion.denoiser import predict
from erasers.diffusion.draws import chances, gaussian
from erasers.diffusion.latent_bank import Way, calls_a_step
from erasers.diffusion.needs import Pass
from erasers.diffusion.noise import noised, random_times, total_times
from erasers.diffusion.supported import check_drawable
from erasers.methods.adv_unlearn import words_of
from erasers.methods.mace.fusion import around_subject, slim
from erasers.methods.mace.student import Additions, Stage1
from erasers.methods.receler.attention import asked, attention_masks, cross_attention, looks, outside
from erasers.methods.receler.eraser import positions
from erasers.methods.text_maps import Task, TextMaps
from erasers.models.components import parameters_of
from erasers.models.families import UnsupportedPipeline
from erasers.options import Auto, known, require_above, require_least
from erasers.text.prompts import Templates, fill, require_templates, templates_for
from erasers.training.foretelling import Demand
from erasers.training.layers import denoiser_names
from erasers.training.loop import Stage, TrainedEraser, Training
from erasers.training.scenes import Drawing, Scenes
from erasers.training.suiting import kind_of


class Latents(NamedTuple):
    """Noised pictures of one concept.

    Args:
        noisy: x_t `[n, c, h, w]`.
        times: t `[n]`.
        told: Their prompts.
        tokens: Positions of the concept's tokens in each.
        masks: 1 where the frozen model looks at these `[n, 1, h, w]`.
    """

    noisy: torch.Tensor
    times: torch.Tensor
    told: Condition
    tokens: Sequence[torch.Tensor]
    masks: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class MACE(TrainedEraser):
    """Erase many concepts at once: refine keys and values in closed form, train an addition for each, and fuse them.

    Stage 1 maps what the other tokens of a prompt say of the concept to what they say of its anchor. With C the rows of
    all tokens but the subject's, G those of the anchor's prompt, and P what is kept, W' = W (I + B A) minimises

        mean | W' C' - W G' |^2 + preserve_scale mean | W' P' - W P' |^2 + ridge | W' - W |^2

    Stage 2 trains B_i A_i of rank 1 for each concept on W', on its pictures with little noise. With M where the frozen
    model looks at the tokens of the concept, and a_l what attention gives to them, the mean over tokens and heads,

        L_i = sum over layers l of || a_l M ||

    Stage 3 fuses them over all rows E_i of the prompts of each concept: weights become W' + D, where D minimises

        mean | (D - B_i A_i) E_i' |^2 + fuse_scale mean | D P' |^2 + ridge | D |^2

    It has as many dimensions as there are concepts, whose order does not matter.

    *Corrected*: kept prompts count in stage 1 as they do in stage 3, where the official code applies their scale twice
    and so all but leaves them out; fusion holds what is kept where stage 1 left it, so that without additions the
    result is stage 1; aliases are erased. Masks come from the frozen model's own attention, not from a segmenter;
    captions are the prior, not those of COCO, and sums are means. `mace-official` has the published scales, rank and
    steps for celebrities. Their ridge of 0 has no answer where the prior does not span the text: here it is 1e-3.

    Args:
        pictures: Drawn of each concept; prompts take turns.
        batch: Pictures of each concept an iteration.
        steps: Of the sampler that draws the pictures.
        guidance: With which they are drawn.
        times: Of training: `low`, from about 200 to 400 of 1000, or `uniform`, which the paper has for nudity.
        threshold: Of the masks, from 0 to 1.
        templates: Patterns with one `{}` for the concept and its anchor; "auto" takes those of its kind.
        aliases: Erase the concept's aliases, too.
        neighbours: Keep the concept's neighbours, too.
        preserve_empty: Keep the empty prompt.
        ridge: Above 0.
        preserve_scale: Weight of what is kept in stage 1.
        fuse_scale: The same in stage 3.
        hold: Where fusion holds what is kept: at the `refined` weights, or at the `original` ones.
        error: Share of stage 1 that its low-rank form may leave out.
        rank: Of the addition of a concept: 1.
    """

    name: ClassVar[str] = "mace"
    paper: ClassVar[str] = "[MACE](https://arxiv.org/abs/2403.06135)"
    family: ClassVar[str] = "closed form around trained additions, text keys and values"
    everywhere: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # 1e-4, once and twice, of some 47 million rows of COCO, beside 30 prompts of 77 rows.
        "mace-official": {
            "aliases": False,
            "neighbours": False,
            "preserve_empty": False,
            "preserve_scale": 2e-4,
            "hold": "original",
        },
        "mace-shapes": {"steps": 10, "guidance": 4.0},
    }
    strengths: ClassVar[str] = "many concepts at once, one edit of few dimensions"
    limits: ClassVar[str] = "UNets; draws pictures of each concept"

    iterations: int | Auto = 50
    lr: float | Auto = 1e-4
    rank: int | Auto = 1
    pictures: int = 8
    batch: int = 1
    steps: int = 30
    guidance: float = 7.5
    times: Literal["low", "uniform"] = "low"
    threshold: float = 0.5
    templates: Templates = "auto"
    aliases: bool = True
    neighbours: bool = True
    preserve_empty: bool = True
    ridge: float = 1e-3
    preserve_scale: float = 2.0
    fuse_scale: float = 2.0
    hold: Literal["refined", "original"] = "refined"
    error: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, pictures=1, batch=1, steps=1, threshold=0, preserve_scale=0, fuse_scale=0)
        for field in ("ridge", "error"):
            require_above(field, getattr(self, field), 0)
        require_templates("templates", self.templates)
        if self.rank != 1:
            raise ValueError(f"expected rank 1 for each concept, got {self.rank!r}")

    def check_pipe(self, pipe: Any) -> None:
        """See `TrainedEraser.check_pipe`: masks and additions are of the cross-attention of UNets."""
        check_drawable(pipe)
        if kind_of(pipe) == "transformer" or not cross_attention(pipe):
            raise UnsupportedPipeline(
                "expected a pipeline with a UNet, whose cross-attention is read (Stable Diffusion 1, 2, XL), got "
                f"{type(pipe).__name__}"
            )

    def reading(self) -> TextMaps:
        """Which prompts are read and kept."""
        return TextMaps(
            rows="tail",
            templates=self.templates,
            aliases=self.aliases,
            neighbours=self.neighbours,
            preserve_empty=self.preserve_empty,
            max_sequence_length=self.max_sequence_length,
            clip_skip=self.clip_skip,
            # What training costs does not depend on what was encoded before.
            cache=False,
        )

    def terms(self, concept: Concept) -> dict[str, str]:
        """Each prompt with the concept, and what it calls it."""
        return {
            fill(template, term).text: term
            for term in concept.terms(aliases=self.aliases)
            for template in templates_for(concept, self.templates)
        }

    def cost(self, pipe: Any, concepts: Concepts) -> Calls:
        """See `TrainedEraser.cost`."""
        prepared, reading = self.prepared(pipe, concepts), self.reading()
        read = {prompt for pair in reading.prompt_pairs(prepared, self.templates) for prompt in pair}
        asked = sum(len(self.terms(concept)) for concept in prepared)
        texts = len(read) + len(reading.preserved_prompts(prepared)) + asked + 1
        drawn = calls_a_step(pipe, kept=False) * self.steps * self.pictures
        seen = self.batch * known(self.iterations)
        return Calls(drawn + seen, seen) * len(prepared) + Calls(texts=texts)

    def demand(self, pipe: Any, concepts: Concepts) -> Demand:
        """See `TrainedEraser.demand`."""
        names, count = denoiser_names(pipe, "x-strict"), len(as_concepts(concepts))
        sizes = {name: sum(weight.shape) for name, weight in parameters_of(pipe)}
        others = (count - 1) * sum(sizes[name] for name in names)
        passes = [Pass(self.batch, names, size=known(self.size))]
        return Demand(names, passes, beside=others, latents=count * self.pictures)

    def prepare(self, pipe: Any, concepts: Sequence[Concept], generator: torch.Generator, stage: Stage) -> Training:
        """See `TrainedEraser.prepare`."""
        # Random numbers go by name, so that the order in which concepts were named does not count.
        concepts = sorted(concepts, key=lambda concept: concept.name)
        student = Additions(pipe, self.refined(pipe, concepts), generator=generator)
        with stage("drawing pictures of the concepts", self.pictures * len(concepts)) as advance:
            draw = Drawing(pipe, Way(self.steps, self.guidance, size=known(self.size)), generator, advance)
            scenes = [self._scenes(pipe, concept, draw) for concept in concepts]
        tokens = [[positions(pipe, text, term) for text, term in self.terms(concept).items()] for concept in concepts]
        adam = torch.optim.AdamW(student.parameters, lr=known(self.lr))

        def step(number: int) -> Mapping[str, float]:
            batches = [self._latents(pipe, *own, generator) for own in zip(scenes, tokens, strict=True)]
            loss = attention_loss(pipe, batches, student)
            with student.placed():
                student.backward(loss)
            adam.step()
            return loss.shown

        return Training(student, step, {"adam": adam})

    def refined(self, pipe: Any, concepts: Sequence[Concept]) -> Stage1:
        """Stage 1."""
        reading = self.reading()
        (task,) = reading.gather(pipe, concepts, reading.groups(pipe))
        pairs = [self._rows(pipe, task, concept) for concept in concepts]
        old, new = (torch.cat([pair[side] for pair in pairs]).double() for side in (0, 1))
        check_rows(task.group, old, new)
        kept, count = task.preserve.covariance(), len(old) ** 0.5
        scales = {"ridge": self.ridge, "preserve_scale": self.preserve_scale}
        a, b = slim(*ridge_edit_gram(old / count, new / count, kept, **scales), self.error)
        rows = [pair[2].double() for pair in pairs]
        total = sum(map(len, rows)) ** 0.5
        held, original = self.fuse_scale * kept, self.hold == "original"
        return Stage1(task.group, a, b, [own / total for own in rows], held, self.ridge, original)

    def _rows(self, pipe: Any, task: Task, concept: Concept) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """C and G `[n, d]` of stage 1, and E `[m, d]` of stage 3, of one concept."""
        anchor, around, whole = len(words_of(pipe, "text_encoder", concept.anchor)), [], []
        for term in concept.terms(aliases=self.aliases):
            words = (len(words_of(pipe, "text_encoder", term)), anchor)
            for template in templates_for(concept, self.templates):
                old, new = (task.encoded[fill(template, text)].segments[0] for text in (term, concept.anchor))
                around.append(around_subject(old, new, words))
                whole.append(old.states)
        read = task.group.read
        old_rows, new_rows = (read(torch.cat([pair[side] for pair in around])) for side in (0, 1))
        return old_rows, new_rows, read(torch.cat(whole))

    def _scenes(self, pipe: Any, concept: Concept, draw: Drawing) -> Scenes:
        prompts = list(self.terms(concept))
        return draw(conditions(pipe, prompts, self.clip_skip), torch.arange(self.pictures) % len(prompts))

    def _latents(
        self, pipe: Any, scenes: Scenes, tokens: Sequence[torch.Tensor], generator: torch.Generator
    ) -> Latents:
        """A batch of one concept."""
        pictures, rows = scenes.picked(self.batch, generator)
        count, shape = len(pictures), tuple(pictures.shape[1:])
        low = self.times == "low"
        times = low_times(pipe, count, generator) if low else random_times(pipe, count, generator, shape)
        times = times.to(pictures.device)
        noisy = noised(pipe, pictures, times, gaussian(pictures, generator))
        told, own = scenes.conditions.rows(rows), [tokens[number] for number in rows.tolist()]
        return Latents(noisy, times, told, own, attention_masks(pipe, noisy, times, told, own, self.threshold))


def attention_loss(pipe: Any, batches: Sequence[Latents], student: Additions) -> Summands:
    """The sum of L_i over concepts, each with its own addition; derived with the student placed.

    Args:
        pipe: The pipeline.
        batches: Latents of each concept.
        student: What is trained.
    """
    modules: dict[str, Any] = cross_attention(pipe)

    def piece(number: int, rows: slice) -> dict[str, torch.Tensor]:
        batch = batches[number]
        student.place(number)
        with asked(modules) as seen:
            predict(pipe, batch.noisy[rows], batch.times[rows], batch.told.part(rows))
        norms = [
            masked_norms(
                looks(part["to_q"].float(), part["to_k"].float(), modules[name].heads, batch.tokens[rows]),
                batch.masks[rows],
            )
            for name, part in seen.items()
        ]
        return {"attention": torch.stack(norms).sum() / len(batch.times)}

    pieces = [partial(piece, number, rows) for number, batch in enumerate(batches) for rows in parts(len(batch.times))]
    return Summands(pieces, lambda losses: losses["attention"])


def masked_norms(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """|| a M || `[n]` of maps a `[n, places]` with masks M `[n, 1, h, w]`."""
    inside = 1 - outside(masks.float(), maps.shape[1])[..., 0]
    norms: torch.Tensor = torch.linalg.vector_norm(maps * inside, dim=1)
    return norms


def low_times(pipe: Any, count: int, generator: torch.Generator) -> torch.Tensor:
    """Times drawn as often as s((t - 200) / 20) - s((t - 400) / 20) of 1000, s the logistic function."""
    total = total_times(pipe)
    times = torch.arange(total) * (1000 / total)
    shares = (((times - 200) / 20).sigmoid() - ((times - 400) / 20).sigmoid()).cumsum(0)
    return torch.searchsorted(shares / shares[-1], chances((count,), generator)).clamp(max=total - 1)
