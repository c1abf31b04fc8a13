"""What the judges share: pictures one at a time, and an unscored verdict where there is nothing to go by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from PIL import Image

from erasers.judges import Fingerprint, Takes, Verdict


class PictureJudge(ABC):
    """Judges pictures one at a time: in a batch the last bits of a score depend on its neighbours.

    Subclasses set `name`, `fingerprint`, `takes` and `sees`, and look at one picture.
    """

    name: str
    fingerprint: Fingerprint
    takes: Takes = Takes()
    sees: Mapping[str, Sequence[str]]

    @abstractmethod
    def look(self, picture: Image.Image, wants: Mapping[str, str]) -> Verdict:
        """The verdict on one RGB picture; whatever this raises makes the picture unscored.

        Args:
            picture: Of the size that the judge takes.
            wants: Property -> value, at least one, all of them in `sees`.
        """

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Any]) -> list[Verdict]:
        """See `Judge.judge`."""
        if len(images) != len(prompts):
            raise ValueError(f"expected one prompt for each picture, got {len(prompts)} for {len(images)}")
        for prompt in prompts:
            self._check_wants(prompt.wants)
        for image in images:
            self._check_size(image)
        return [self._verdict(image, prompt.wants) for image, prompt in zip(images, prompts, strict=True)]

    def _check_wants(self, wants: Mapping[str, str]) -> None:
        for name, value in wants.items():
            if value not in self.sees.get(name, ()):
                raise ValueError(f"{self.name} cannot see {name} {value!r}; it knows {_some(self.sees)}")

    def _check_size(self, image: Any) -> None:
        expected = self.takes.size
        if expected and isinstance(image, Image.Image) and image.size != expected:
            sizes = [f"{width} x {height}" for width, height in (expected, image.size)]
            raise ValueError(f"expected {sizes[0]} pictures, got {sizes[1]}; {self.name} takes no other")

    def _verdict(self, image: Image.Image, wants: Mapping[str, str]) -> Verdict:
        if not wants:
            return Verdict(None, reason="the prompt wants nothing that a judge could see")
        try:
            verdict = self.look(readable(image), wants)
        except (MemoryError, torch.OutOfMemoryError):
            # Says something about the machine and nothing about the picture.
            raise
        except Exception as error:
            return Verdict(None, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if verdict.probability is not None and not isfinite(verdict.probability):
            return Verdict(None, reason=f"the judge's score is {verdict.probability}")
        return verdict


def readable(image: Any) -> Image.Image:
    """A picture in RGB, wholly read.

    Raises:
        TypeError: No picture.
        ValueError: An empty picture, or a mode whose conversion would have to guess (transparency, palettes, 16 bits).
        OSError: The file behind it is broken.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a picture, got {type(image).__name__}")
    image.load()
    if not all(image.size):
        raise ValueError(f"expected a picture, got one of {image.width} x {image.height} pixels")
    if image.mode not in ("RGB", "L"):
        raise ValueError(f"expected a picture of mode RGB or L, got {image.mode}; convert it first")
    return image.convert("RGB")


def pick_profile(judge: str, profile: str, known: Iterable[str]) -> str:
    """The profile, if it is one of the known ones.

    Raises:
        ValueError: It is not.
    """
    if profile not in known:
        raise ValueError(f"expected a profile of {judge} among {', '.join(known)}, got {profile!r}")
    return profile


def own_profile(profile: str) -> str:
    """A profile name that a caller gave.

    Raises:
        ValueError: Empty, or with a slash or blank in it.
    """
    if not profile or "/" in profile or profile.split() != [profile]:
        raise ValueError(f"expected the name of a profile without slashes and blanks, got {profile!r}")
    return profile


def _some(sees: Mapping[str, Sequence[str]]) -> str:
    """What a judge sees, in a line that stays short for a thousand classes."""
    parts = [f"{name}: {', '.join(values[:40])}{', ...' if len(values) > 40 else ''}" for name, values in sees.items()]
    return "; ".join(parts)
