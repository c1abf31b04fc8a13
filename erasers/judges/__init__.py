"""Judges: what is in a picture. A judge gives one `Verdict` a picture; scores are made from verdicts elsewhere.

Judges come as pinned profiles, named `<judge>/<profile>`: `get_judge("oracle/shapes")`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from erasers import worlds

if TYPE_CHECKING:
    from PIL import Image

_JUDGES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "oracle": ("erasers.judges.oracle", "Oracle", ()),
    "nudenet": ("erasers.judges.nudenet", "NudeNet", ("strict5@0.5", "mace8-boxes@0.6", "uda9@0.5")),
    "q16": ("erasers.judges.q16", "Q16", ("vitl14",)),
    "clip_zeroshot": ("erasers.judges.clip_zeroshot", "ClipZeroShot", ()),
    "classifier": ("erasers.judges.classifier", "Classifier", ()),
}
"""Judge -> its module, its class and its pinned profiles beside those of worlds, the default first."""

_OPEN = ("clip_zeroshot", "classifier")
"""Judges that take any model; whoever gives one names the profile."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one picture.

    Args:
        value: True when the picture shows what its prompt wants; None when the judge could not say (unscored).
        probability: The judge's confidence that it shows it, in [0, 1], where the judge has one.
        reason: Why the picture is unscored, or what else the judge has to say.
        count: How many times the picture shows it, where the judge counts.
    """

    value: bool | None
    probability: float | None = None
    reason: str = ""
    count: int | None = None


@dataclass(frozen=True)
class Fingerprint:
    """All that a judge's verdicts depend on; two judges of one fingerprint say the same.

    Args:
        files: File -> sha256 of what was loaded.
        classes: Property -> value -> what the model is asked for it, or looks for.
        threshold: Score from which a value counts as shown; None where the most likely answer counts.
        rule: How a verdict comes from the scores.
        preprocessing: How a picture becomes the model's input.
    """

    files: Mapping[str, str]
    classes: Mapping[str, Any]
    threshold: float | None
    rule: str
    preprocessing: str

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON: the key under which verdicts are stored."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Takes:
    """What pictures a judge takes.

    Args:
        size: Width and height in pixels; None takes any, since the judge resizes.
        mode: Mode of the pictures. Grey ones (`L`) are taken, too; anything else is unscored.
    """

    size: tuple[int, int] | None = None
    mode: str = "RGB"


class Judge(Protocol):
    """Anything that looks at pictures. A broken picture gets an unscored verdict, never a guess."""

    @property
    def name(self) -> str:
        """`<judge>/<profile>`, under which its verdicts are reported."""

    @property
    def fingerprint(self) -> Fingerprint:
        """All that its verdicts depend on."""

    @property
    def takes(self) -> Takes:
        """What pictures it takes."""

    @property
    def sees(self) -> Mapping[str, Sequence[str]]:
        """Property -> the values that a prompt may want of it."""

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Any]) -> list[Verdict]:
        """One verdict a picture, in order; how many come together does not change them.

        Args:
            images: Pictures.
            prompts: One for each picture: its text and what it wants, e.g. `erasers.asks.PlainPrompt`.

        Raises:
            ValueError: Lengths differ, a prompt wants what the judge cannot see, or a picture has a size that the
                judge does not take.
        """


def of_worlds(judge: str) -> list[str]:
    """The worlds that are profiles of a judge: those that have an oracle, or a CLIP, of their own."""
    own = [world for world in map(worlds.get, worlds.list()) if world.judges]
    judging = {"oracle": own, "clip_zeroshot": [world for world in own if world.clip]}
    return [world.name for world in judging.get(judge, ())]


def list_judges() -> list[str]:
    """Names of the pinned profiles, and the judges that take a model of one's own, sorted."""
    profiles = {name: (*of_worlds(name), *pinned) for name, (_, _, pinned) in _JUDGES.items()}
    pinned = [f"{name}/{profile}" for name, own in profiles.items() for profile in own]
    return sorted([*pinned, *_OPEN])


def get_judge(name: str, **options: Any) -> Judge:
    """Build a judge.

    Args:
        name: `<judge>/<profile>`; `<judge>` alone is its default profile.
        **options: What that judge's class takes beside the profile, e.g. `device="cuda"`.

    Raises:
        ValueError: Unknown judge, profile or option.
        ImportError: The judge needs an extra that is not installed.
    """
    family, _, profile = name.partition("/")
    if family not in _JUDGES:
        raise ValueError(f"expected a judge among {', '.join(list_judges())}, got {name!r}")
    module, attribute, _ = _JUDGES[family]
    make = getattr(import_module(module), attribute)
    parameters = inspect.signature(make).parameters
    known = [option for option in parameters if option != "profile"]
    needed = [option for option in known if parameters[option].default is inspect.Parameter.empty]
    for option in options:
        if option not in known:
            raise ValueError(f"expected options of {family!r} among {', '.join(known)}, got {option!r}")
    if lacking := [option for option in needed if option not in options]:
        raise ValueError(f"expected the options {', '.join(lacking)} of the judge {name!r}, got none")
    return cast(Judge, make(profile, **options) if profile else make(**options))
