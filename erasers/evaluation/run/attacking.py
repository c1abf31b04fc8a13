"""The stage of a task in which its attacks run: every state of the model on the same prompts, with the same budget.

What an attack did to a prompt is kept under all that it depends on, so that it is done once, by whichever process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch

from erasers.attacks import Attack
from erasers.attacks.running import Outcome, attack_prompts
from erasers.diffusion.supported import check_drawable
from erasers.evaluation.drawing import generate
from erasers.evaluation.refusal.refusal import is_refused
from erasers.evaluation.run.stage import Stage
from erasers.evaluation.run.states import Scene
from erasers.evaluation.store import Journal, key_of
from erasers.evaluation.tasks.attacks import Plan
from erasers.evaluation.tasks.task import Sample
from erasers.models.calls import tokens_a_prompt
from erasers.progress import Advance


@dataclass(frozen=True)
class Siege:
    """An attack on some prompts of a case, which is made ready once for all states of the model."""

    case: str
    plan: Plan
    attack: Attack
    samples: Sequence[Sample]


class Attacking:
    """The attacks of a task on its way.

    Args:
        stage: With the states of the model.

    Raises:
        UnsupportedPipeline: A pipeline that the task's attacks do not support.
        ValueError: An attack that draws more pictures than its control.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.outcomes = stage, Journal(stage.out / "outcomes")
        if any(plan.attack.encoder != "none" for plan in stage.task.attacks.values()):
            check_drawable(stage.pipe)
        self.sieges = [siege for case in stage.draws for siege in self._sieges(case)]

    def _sieges(self, case: str) -> Iterator[Siege]:
        """Those of a case, in the order of the task."""
        task = self.stage.task
        concepts, prompts = task.concepts(case), attacked(self.stage.draws[case])
        attacks = {label: plan.against(concepts, task.model) for label, plan in task.attacks.items()}
        images = {label: attack.budget().images for label, attack in attacks.items()}
        for label, plan in task.attacks.items():
            if plan.control and images[label] > images[plan.control]:
                wanted = f"a control of at least {images[label]} images"
                raise ValueError(f"attacks.{label}: expected {wanted}, got {images[plan.control]} of {plan.control}")
            samples = prompts[: plan.samples]
            groups = _by_concept(samples) if attacks[label].once else _batches(samples, task.sampling.batch)
            for group in groups:
                yield Siege(case, plan, attacks[label], group)

    def left(self) -> int:
        """Prompts of this process's share that are to be attacked, each once for every state of the model."""
        mine, _ = self.stage.share.split(self.sieges)
        return sum(len(siege.samples) for siege in mine for _ in self._unfinished(siege))

    def work(self, advance: Advance = lambda count: None) -> None:
        """Do this process's share of what is missing, then help with what others have not done yet."""
        with tokens_a_prompt(self.stage.pipe, self.stage.task.sampling.tokens):
            for share in self.stage.share.split(self.sieges):
                for siege in share:
                    self.outcomes.refresh()
                    self._do(siege, advance)

    @property
    def components(self) -> dict[str, list[str]]:
        """Label -> the components of the pipeline that the attack is on: see `Attack.attacked`."""
        return {label: list(plan.attack.attacked(self.stage.pipe)) for label, plan in self.stage.task.attacks.items()}

    def results(self, scene: Scene, case: str) -> dict[str, list[dict[str, Any]]]:
        """Label -> what the attack did to each prompt of a case, as results have it.

        Raises:
            ValueError: Something has not been done yet.
        """
        outcomes: dict[str, list[dict[str, Any]]] = {}
        for siege in (siege for siege in self.sieges if siege.case == case):
            for sample, key in zip(siege.samples, self.keys(siege, scene), strict=True):
                outcome = self._outcome(key)
                if outcome is None:
                    problem = f"expected {siege.plan.label} on every prompt, got none on {sample.text!r}"
                    raise ValueError(f"{problem}; run the task again")
                outcomes.setdefault(siege.plan.label, []).append({"text": sample.text, "seed": sample.seed, **outcome})
        return outcomes

    def _do(self, siege: Siege, advance: Advance) -> None:
        todo = list(self._unfinished(siege))
        if not todo:
            return
        attack = siege.attack
        prepared = attack.prepare(self.stage.pipe, siege.samples, draw=self._draw, generator=_seeded(0))
        for scene in todo:
            with scene.enter():
                outcomes = attack_prompts(
                    attack,
                    self.stage.pipe,
                    siege.samples,
                    prepared,
                    self.stage.judge,
                    draw=self._draw,
                    # Not of the attack: all of them are replicated on the same fresh seeds.
                    generators=[_seeded(_number(sample)) for sample in siege.samples],
                    replicate=siege.plan.replicate,
                    allowed=self._may_draw,
                    memory=self.stage.memory,
                )
            self._keep(self.keys(siege, scene), outcomes, attack.budget().images)
            advance(len(outcomes))

    def _keep(self, keys: Sequence[str], outcomes: Sequence[Outcome], limit: int) -> None:
        entries = []
        for key, outcome in zip(keys, outcomes, strict=True):
            picture = None
            if outcome.post and outcome.picture is not None:
                picture = key_of({"outcome": key})
                self.stage.store.add_image(picture, outcome.picture)
            entries.append((key, _to_json(outcome) | {"limit": limit, "picture": picture}))
        self.outcomes.add(entries)

    def _unfinished(self, siege: Siege) -> Iterator[Scene]:
        """The states of the model that a siege has not been done on."""
        for scene in self.stage.scenes:
            if siege.case in scene.cases and any(self._outcome(key) is None for key in self.keys(siege, scene)):
                yield scene

    def _outcome(self, key: str) -> Any:
        """What came of an attack; None where it has to be made again, as its picture is not as it was kept."""
        outcome = self.outcomes.get(key)
        whole = outcome is None or outcome["picture"] is None or self.stage.store.has_image(outcome["picture"])
        return outcome if whole else None

    def keys(self, siege: Siege, scene: Scene) -> list[str]:
        """What each outcome is kept under."""
        facts = {"attack": siege.attack.name, "config": siege.attack.config(), "replicate": siege.plan.replicate}
        facts |= {"prompts": [_identity(sample) for sample in siege.samples]}
        facts |= {"judge": self.stage.judge.fingerprint.digest, **self.stage.picture_facts(scene)}
        return [key_of(facts | {"prompt": _identity(sample)}) for sample in siege.samples]

    def _may_draw(self, text: str) -> bool:
        """Whether a text that an attack made may be drawn."""
        return not is_refused(text, adult=self.stage.task.adult)

    def _draw(self, pipe: Any, arguments: Mapping[str, Any], seeds: Sequence[int]) -> list[Any]:
        """See `erasers.attacks.Draw`."""
        prompt = arguments["prompt"]
        texts = prompt if isinstance(prompt, list) else [prompt] * len(seeds)
        asks = [Sample("", text, seed, {}) for text, seed in zip(texts, seeds, strict=True)]
        draw = partial(generate, pipe, asks, **asdict(self.stage.task.sampling))
        more = {name: value for name, value in arguments.items() if name not in ("prompt", "latents")}
        return [image for images in draw(latents=arguments.get("latents"), arguments=more) for image in images]


def attacked(draws: Sequence[Sample]) -> list[Sample]:
    """The explicit prompts, those of several concepts taking turns."""
    concepts = _by_concept([sample for sample in draws if sample.split == "explicit"])
    return [sample for turn in zip_longest(*concepts) for sample in turn if sample is not None]


def _by_concept(samples: Sequence[Sample]) -> list[list[Sample]]:
    concepts: dict[str, list[Sample]] = {}
    for sample in samples:
        concepts.setdefault(key_of(sample.wants), []).append(sample)
    return list(concepts.values())


def _batches(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "pre": outcome.pre,
        "value": outcome.post,
        "image": outcome.image,
        "replicated": outcome.replicated,
        "seeds": outcome.seeds,
        "unscored": outcome.unscored,
        "spent": asdict(outcome.spent),
        "prompt": outcome.text,
    }


def _identity(sample: Sample) -> list[Any]:
    return [sample.text, sample.seed, dict(sample.wants)]


def _number(sample: Sample) -> int:
    """Of a prompt: a seed for what an attack draws by chance."""
    return int(key_of(_identity(sample))[:15], 16)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
