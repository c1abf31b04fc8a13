"""Files of other trainers that describe an erasing LoRA: those of LECO, of ai-toolkit's sliders and of kohya's scripts.

Formats as read by p1atdev/LECO (`config_util.py`, `prompt_util.py`), ostris/ai-toolkit (`ConceptSliderTrainer.py`,
`toolkit/config_modules.py`) and kohya-ss/sd-scripts (`train_leco.py`, `library/leco_train_util.py`,
`docs/train_leco.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from erasers.files.reading import read_toml, read_yaml
from erasers.methods.leco.eraser import LECO
from erasers.methods.leco.pair import Pair

_MOST_PAIRS = 1000
_KOHYA = {"rank": 8, "alpha": 4.0, "iterations": 500, "steps": 40, "clip": 1.0, "layers": "blocks"}
"""What the guide of kohya's script runs; defaults of the script itself are those of other trainings."""
_METHODS = {"full": "attention", "xattn": "cross", "noxattn": "self", "selfattn": "self", "innoxattn": "self"}
"""LECO's training methods, of its LoRAs of attention alone."""
_OPTIMIZERS = {"adam": "adam", "adamw": "adamw", "adam8bit": "adam", "adamw8bit": "adamw"}


@dataclass(frozen=True)
class Recipe:
    """A LoRA that a file describes.

    Args:
        pairs: The prompts.
        options: Of `LECO`.
        model: The model that the file names; "" where it names none.
        unused: Keys of the file that mean nothing here.
    """

    method: ClassVar[str] = LECO.name

    pairs: tuple[Pair, ...]
    options: Mapping[str, Any]
    model: str
    unused: tuple[str, ...]

    def eraser(self, **options: Any) -> LECO:
        """The eraser, with options of one's own over those of the file."""
        return LECO(**{"pairs": self.pairs, **self.options, **options})

    @property
    def names(self) -> list[str]:
        """What goes where the LoRA is on: what is erased, or what is moved away from, or else what is added."""
        pairs = [pair for pair in self.pairs if pair.multiplier > 0 and pair.guidance_scale]
        gone = [pair.positive if pair.action == "erase" else pair.unconditional for pair in pairs]
        for said in (gone, [pair.positive for pair in pairs]):
            names = dict.fromkeys(name.strip() for name in said if name and name.strip())
            if names:
                return list(names)
        return []


def read_recipe(path: str | Path) -> Recipe:
    """The LoRA that a file describes; prompts of a configuration lie beside it, under the name that it gives.

    Args:
        path: YAML, JSON or TOML of one of the three.

    Raises:
        ValueError: None of them, a key that is missing, unknown or of another type, or what cannot be trained here.
        OSError: It cannot be read.
    """
    path = Path(path)
    content = _content(path)
    try:
        return _read(content, path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _content(path: Path) -> Any:
    return read_toml(path) if path.suffix.lower() == ".toml" else read_yaml(path)


def _read(content: Any, path: Path) -> Recipe:
    if isinstance(content, list):
        return Recipe(_leco_pairs(content, {}), {}, "", ())
    if isinstance(content, dict):
        if "config" in content:
            return _aitoolkit(_Table(content))
        flat = _flat(content)
        if "prompts_file" in flat and path.suffix.lower() == ".toml":
            return _kohya(_Table(flat), path)
        if "prompts_file" in content:
            return _leco(_Table(content), path)
        if {"prompts", "targets", "slider", "target", "target_class"} & set(content):
            return Recipe(_kohya_pairs(content), _KOHYA, "", ())
    raise ValueError(
        "expected LECO's list of prompts or its configuration with prompts_file, ai-toolkit's job with config, or "
        "kohya's [[prompts]], [[targets]] or its configuration with prompts_file, got "
        + (f"a table of {', '.join(map(str, content))}"[:200] if isinstance(content, dict) else "something else")
    )


class _Table:
    """A table of a file, of which every key is taken, or told.

    Args:
        content: What there is.
        where: Its name in the file; "" at the top.
    """

    def __init__(self, content: Any, where: str = "") -> None:
        if not isinstance(content, dict):
            raise ValueError(f"expected a table as {where or 'the file'}, got {str(content)[:60]!r}")
        self.content, self.where = content, where
        self._taken: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def name(self, key: str) -> str:
        """The key as the file has it, with the tables that it is in."""
        return f"{self.where}.{key}" if self.where else key

    def text(self, key: str, default: str | None = None) -> str:
        """A text; an error without a default where there is none."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise ValueError(f"expected text as {self.name(key)}, got {value!r:.60}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, also where YAML takes one such as 1e-4 for a text."""
        value = self.take(key, default)
        try:
            if isinstance(value, bool) or not isfinite(float(value)):
                raise ValueError
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(f"expected a number as {self.name(key)}, got {value!r:.60}") from None

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.number(key, default)
        if value != int(value):
            raise ValueError(f"expected a whole number as {self.name(key)}, got {value}")
        return int(value)

    def flag(self, key: str) -> bool:
        """True or false; false where there is none."""
        value = self.take(key, False)
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false as {self.name(key)}, got {value!r:.60}")
        return value

    def choice(self, key: str, choices: Mapping[str, Any], default: str) -> Any:
        """What one of some words stands for; upper case does not matter."""
        value = self.text(key, default)
        if value.lower() not in choices:
            raise ValueError(f"expected {self.name(key)} among {', '.join(choices)}, got {value!r:.60}")
        return choices[value.lower()]

    def table(self, key: str, *, needed: bool = True) -> _Table:
        """A table in it; an empty one where there is none, unless it is needed."""
        return _Table(self.take(key, None if needed else {}), self.name(key))

    def items(self, key: str) -> list[Any]:
        """A list with at least one item."""
        value = self.take(key, None)
        if not isinstance(value, list) or not value:
            raise ValueError(f"expected a list as {self.name(key)}, got {value!r:.60}")
        return value

    def left(self) -> tuple[str, ...]:
        """The keys that were not taken."""
        return tuple(self.name(str(key)) for key in self.content if key not in self._taken)

    def refuse_others(self) -> None:
        """Refuse keys that were not taken: a slip there would train something else."""
        if left := self.left():
            raise ValueError(f"unknown keys: {', '.join(left)}; known are {', '.join(sorted(self._taken))}")

    def take(self, key: str, default: Any) -> Any:
        """A value of any type; an error without a default where there is none."""
        self._taken.add(key)
        value = self.content.get(key)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"expected {self.name(key)}, got none")
        return value


# LECO


def _leco(top: _Table, path: Path) -> Recipe:
    model, network, train = top.table("pretrained_model"), top.table("network"), top.table("train", needed=False)
    network.choice("type", {"lierla": None}, "lierla")
    options = {
        "rank": network.whole("rank", 4),
        "alpha": network.number("alpha", 1.0),
        "layers": network.choice("training_method", _METHODS, "full"),
        "iterations": train.whole("iterations", 500),
        "lr": train.number("lr", 1e-4),
        "steps": train.whole("max_denoising_steps", 50),
        **_way_of_learning(train, "optimizer", "lr_scheduler"),
        **_clip_skip(model),
    }
    shared = {"size": train.whole("resolution")} if "resolution" in train else {}
    if "batch_size" in train:
        shared["batch"] = train.whole("batch_size")
    pairs = _leco_pairs(_beside(path, top.text("prompts_file")), shared)
    name = model.text("name_or_path")
    for table in (model, network, train):
        _refuse_unknown(table, {"v2", "v_pred", "precision", "noise_scheduler"})
    unused = [
        *model.left(),
        *network.left(),
        *train.left(),
        *(key for key in ("save", "logging", "other") if key in top),
    ]
    top.table("save", needed=False), top.table("logging", needed=False), top.table("other", needed=False)
    top.refuse_others()
    return Recipe(pairs, options, name, tuple(unused))


def _leco_pairs(content: Any, shared: Mapping[str, Any]) -> tuple[Pair, ...]:
    if not isinstance(content, list) or not 0 < len(content) <= _MOST_PAIRS:
        raise ValueError(f"expected 1 to {_MOST_PAIRS} prompts in a list, got {str(content)[:60]!r}")
    tables = [_Table(item, f"prompt {number}") for number, item in enumerate(content, start=1)]
    return tuple(_pair(table, shared) for table in tables)


def _pair(table: _Table, shared: Mapping[str, Any]) -> Pair:
    """The pair of a prompt of LECO, or of kohya with its two keys more."""
    target, unconditional = table.text("target"), table.text("unconditional", "")
    pair = _made(
        table,
        target=target,
        positive=table.text("positive", target),
        unconditional=unconditional,
        neutral=table.text("neutral", unconditional),
        action=table.choice("action", {"erase": "erase", "enhance": "enhance"}, "erase"),
        guidance_scale=table.number("guidance_scale", 1.0),
        **{**shared, **_size(table, "resolution"), **_batch(table)},
        multiplier=table.number("multiplier", 1.0),
        weight=table.number("weight", 1.0),
    )
    _refuse_dynamic(table)
    table.refuse_others()
    return pair


def _made(table: _Table, **fields: Any) -> Pair:
    try:
        return Pair(**fields)
    except ValueError as error:
        raise ValueError(f"{table.where or 'the prompt'}: {error}") from None


def _size(table: _Table, key: str) -> dict[str, int]:
    """The side of pictures in pixels, of a number or of two that are one."""
    if key not in table:
        return {}
    return {"size": _side(table.name(key), table.take(key, None))}


def _side(name: str, value: Any) -> int:
    sides = value if isinstance(value, list) else [value]
    if not sides or any(type(side) is not int for side in sides) or len(set(sides)) != 1 or len(sides) > 2:
        raise ValueError(f"expected {name} as the side of a square in pixels, got {value!r:.60}")
    return int(sides[0])


def _batch(table: _Table) -> dict[str, int]:
    return {"batch": table.whole("batch_size")} if "batch_size" in table else {}


def _refuse_dynamic(table: _Table) -> None:
    for key in ("dynamic_resolution", "dynamic_crops"):
        if table.flag(key):
            raise ValueError(f"{table.name(key)} is not done here, pictures have one size; set it to false")


# kohya


def _kohya(top: _Table, path: Path) -> Recipe:
    rate = top.number("learning_rate", 1e-4)
    options = {
        **_KOHYA,
        "rank": top.whole("network_dim", 8),
        "alpha": top.number("network_alpha", 4.0),
        "iterations": top.whole("max_train_steps", 500),
        "lr": top.number("unet_lr", rate),
        "steps": top.whole("max_denoising_steps", 40),
        "guidance": top.number("leco_denoise_guidance_scale", 3.0),
        "clip": top.number("max_grad_norm", 1.0),
        "gradient_checkpointing": top.flag("gradient_checkpointing"),
        **_way_of_learning(top, "optimizer_type", "lr_scheduler"),
        **_clip_skip(top),
    }
    top.choice("network_module", {"networks.lora": None}, "networks.lora")
    for key in ("network_weights", "network_args"):
        if key in top:
            raise ValueError(f"{key} is not read: the LoRA starts at nothing, and is of linear layers")
    pairs = _kohya_pairs(_beside(path, top.text("prompts_file")))
    return Recipe(pairs, options, top.text("pretrained_model_name_or_path", ""), top.left())


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of kohya's sections side by side, as its scripts take them."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _kohya_pairs(content: Any) -> tuple[Pair, ...]:
    top = _Table(content)
    if "prompts" in top:
        items, top_level = top.items("prompts"), content
    else:
        top = top.table("slider") if "slider" in top else top
        top_level = top.content
        items = top.items("targets") if "targets" in top else [top_level]
    shared = {key: value for key, value in top_level.items() if key not in ("prompts", "targets", "slider")}
    pairs: list[Pair] = []
    for number, item in enumerate(items, start=1):
        own = _Table(item, f"{'prompt' if 'prompts' in content else 'target'} {number}")
        both = _Table({**shared, **own.content}, own.where)
        pairs += _slider(both) if "target_class" in own.content else [_pair(both, {})]
    if len(pairs) > _MOST_PAIRS:
        raise ValueError(f"expected at most {_MOST_PAIRS} pairs, got {len(pairs)}")
    return tuple(pairs)


def _slider(table: _Table) -> list[Pair]:
    """Both directions of a slider: the LoRA toward its positive prompt, the LoRA turned round away from it."""
    positive, negative = table.text("positive", "").strip(), table.text("negative", "").strip()
    if not (positive or negative):
        raise ValueError(f"expected {table.name('positive')} or {table.name('negative')}, got neither")
    for key in ("neutral_prompt_file", "prompt_file"):
        if key in table:
            raise ValueError(f"{table.name(key)} is not read; write its lines as neutrals = [...]")
    neutrals = table.items("neutrals") if "neutrals" in table else [table.text("neutral", "")]
    resolutions = table.items("resolutions") if "resolutions" in table else None
    sizes: list[dict[str, int]] = [_size(table, "resolution")]
    if resolutions:
        sizes = [{"size": _side(table.name("resolutions"), value)} for value in resolutions]
    multiplier = table.number("multiplier", 1.0)
    there, back = ("erase", "enhance") if not positive else ("enhance", "erase")
    fields: dict[str, Any] = {
        "target": table.text("target_class"),
        "positive": positive or negative,
        "unconditional": negative if positive else "",
        "guidance_scale": table.number("guidance_scale", 1.0),
        "weight": table.number("weight", 1.0),
        **_batch(table),
    }
    _refuse_dynamic(table)
    table.refuse_others()
    return [
        _made(table, **fields, **size, neutral=neutral, action=action, multiplier=strength)
        for size in sizes
        for neutral in neutrals
        for action, strength in ((there, multiplier), (back, -multiplier))
    ]


# ai-toolkit


def _aitoolkit(top: _Table) -> Recipe:
    config = top.table("config")
    processes = config.items("process")
    if len(processes) != 1:
        raise ValueError(f"expected one process in config.process, got {len(processes)}")
    process = _Table(processes[0], "config.process[0]")
    process.choice("type", {"concept_slider": None}, "")
    network, train = process.table("network"), process.table("train")
    slider, model = process.table("slider"), process.table("model", needed=False)
    network.choice("type", {"lora": None}, "lora")
    rank = network.whole("linear", network.whole("rank", 4))
    options = {
        "rank": rank,
        "alpha": network.number("linear_alpha", network.number("alpha", 1.0)),
        "layers": "blocks",
        "drawn_by": "frozen",
        "iterations": train.whole("steps", 1000),
        "lr": train.number("lr", 1e-6),
        "clip": train.number("max_grad_norm", 1.0),
        "gradient_checkpointing": train.flag("gradient_checkpointing"),
        **_way_of_learning(train, "optimizer", "lr_scheduler"),
    }
    pairs = _both_ways(slider, train.whole("batch_size", 1))
    name = model.text("name_or_path", "")
    unused = tuple(key for table in (top, config, process, network, train, model) for key in table.left())
    return Recipe(pairs, options, name, unused)


def _both_ways(slider: _Table, batch: int) -> tuple[Pair, ...]:
    """The losses of a slider: of the LoRA and of the LoRA turned round, each with the anchor's on the same latents.

    Of each, two thirds are the class, which is enhanced and erased to one end, and a third is the anchor.
    """
    target, scale = slider.text("target_class", ""), slider.number("guidance_strength", 3.0)
    anchored = slider.number("anchor_strength", 1.0)
    moved: dict[str, Any] = {
        "target": target,
        "neutral": target,
        "positive": slider.text("positive_prompt", ""),
        "unconditional": slider.text("negative_prompt", ""),
        "guidance_scale": scale,
        "batch": batch,
        "weight": 2 / 3,
    }
    anchor = slider.text("anchor_class", "") if "anchor_class" in slider else None
    slider.text("anchor_class", "")
    slider.refuse_others()
    if moved["positive"] == moved["unconditional"]:
        raise ValueError("expected slider.positive_prompt and slider.negative_prompt that differ, got the same")
    pairs: list[Pair] = []
    for action, multiplier in (("enhance", 1.0), ("erase", -1.0)):
        pairs.append(_made(slider, **moved, action=action, multiplier=multiplier))
        if anchor is not None:
            kept: dict[str, Any] = {
                "target": anchor,
                "neutral": anchor,
                "guidance_scale": 0.0,
                "weight": anchored / 3,
                "beside": True,
            }
            pairs.append(replace(pairs[-1], positive=anchor, **kept))
    return tuple(pairs)


# What several have


def _way_of_learning(table: _Table, optimizer: str, schedule: str) -> dict[str, Any]:
    return {
        "optimizer": table.choice(optimizer, _OPTIMIZERS, "adamw"),
        "schedule": table.choice(schedule, {"constant": "constant", "cosine": "cosine"}, "constant"),
    }


def _clip_skip(table: _Table) -> dict[str, int]:
    """Layers that are left out; the trainers count the last one that is read, from 1."""
    return {"clip_skip": table.whole("clip_skip") - 1} if "clip_skip" in table else {}


def _refuse_unknown(table: _Table, ignored: set[str]) -> None:
    unknown = [key for key in table.left() if key.rpartition(".")[2] not in ignored]
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(unknown)}")


def _beside(path: Path, name: str) -> Any:
    """The content of the file of that name beside a configuration, whatever folder the configuration says."""
    file = path.parent / Path(name.replace("\\", "/")).name
    if not file.is_file():
        raise ValueError(f"expected the prompts_file {file.name} beside it, got none; it is looked for in that folder")
    return _content(file)
