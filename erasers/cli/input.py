"""What the `erase` command makes of its arguments: concepts, options, devices and paths, checked before any loading."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasers.cli import threads
from erasers.cli.files import concept_of, read_concepts, read_images, read_lines
from erasers.cli.output import show_warning
from erasers.concept import KINDS, Concept, as_concepts, preset_options
from erasers.eraser import eraser_class, get_eraser, list_erasers, options_for, parse_options, preset_for
from erasers.files.report_folder import check_report_folder

if TYPE_CHECKING:
    from erasers.eraser import Eraser
    from erasers.worlds import World

DTYPES = ("auto", "float32", "float16", "bfloat16")
FORMS = ("lora", "kohya", "delta")
_LONGEST_NAME = 120
"""Bytes of the concepts in a default name of a file."""
_DEVICE = re.compile(r"(auto|cpu|mps|(cuda|xpu)(:\d+)?)")


def suggest(word: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` when a known word is close, else nothing."""
    close = get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build_eraser(
    method: str, settings: Sequence[str], concepts: Sequence[Concept], model: str | Path = ""
) -> tuple[Eraser, str]:
    """The eraser with the options of `--set` over those its paper gives for the concepts, or that suit the model.

    Args:
        method: A method or preset.
        settings: As given.
        concepts: What is erased.
        model: As for `load_pipeline`; an embedded one has settings of its own.

    Returns:
        The eraser, and what the user should know about its options ("" when nothing).

    Raises:
        ValueError: Unknown method or option, or a bad value.
    """
    check_method(method)
    cls = eraser_class(method)
    known = [field.name for field in fields(cls)]
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if "=" in setting and key not in known:
            raise ValueError(f"{method} has no option {key!r}{suggest(key, known)}; it has {', '.join(known)}")
    options = parse_options(method, settings)
    presets = [preset_options(concept.name, method) for concept in concepts]
    agreed, note = presets[0], ""
    if any(preset != agreed for preset in presets):
        agreed, note = {}, f"the concepts have different presets for {method}; its defaults are used (see --set)"
    elif agreed:
        values = ", ".join(f"{key}={value}" for key, value in (agreed | options).items())
        note = f"preset for {', '.join(concept.name for concept in concepts)}: {values}"
    if own := options_for(method, model):
        agreed, note = {**agreed, **own}, f"settings for the embedded model: {preset_for(method, model)}"
    return get_eraser(method, **{**agreed, **options}), note


def check_checkpoint(path: Path, eraser: Eraser) -> None:
    """Refuse a checkpoint that cannot be written, or that the method would not use.

    Raises:
        ValueError: A method that does not train, a folder, or a file in a folder that does not exist.
    """
    if not eraser.trains:
        raise ValueError(f"{eraser.name} does not train, so it has no --checkpoint")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"expected a file in an existing folder as --checkpoint, got {path}")


def read_memory(text: str | None, eraser: Eraser) -> int | None:
    """Bytes of `--memory`.

    Raises:
        ValueError: A method that does not train, or another text than a size.
    """
    if text is not None and not eraser.trains:
        raise ValueError(f"{eraser.name} does not train, so it has no --memory")
    return bytes_of(text)


def bytes_of(memory: str | None) -> int | None:
    """Bytes of a size such as 24GB.

    Raises:
        ValueError: Another text.
    """
    if memory is None:
        return None
    from erasers.diffusion.needs import parse_memory

    return parse_memory(memory)


def check_method(method: str) -> None:
    """Refuse a method that is not registered, without loading one.

    Raises:
        ValueError: Lists the methods and the nearest one.
    """
    known = list_erasers()
    if method.partition("-")[0] not in known:
        raise ValueError(
            f"unknown method {method!r}{suggest(method, known)}; known are {', '.join(known)}; see erase methods"
        )


def build_concepts(
    names: Sequence[str],
    *,
    world: World | None = None,
    anchors: Sequence[str] = (),
    aliases: Sequence[str] = (),
    kinds: Sequence[str] = (),
    preserve: Sequence[str] = (),
    preserve_file: Path | None = None,
    concepts_file: Path | None = None,
    images: Sequence[str] = (),
) -> tuple[Concept, ...]:
    """The concepts of `--concept` and of a table, with what the other options say about them.

    Args:
        names: Those of `--concept`.
        world: Of an embedded model: every word has to be one of it, and a word brings its anchor.
        anchors: One for all, or `CONCEPT=ANCHOR`.
        aliases: For the only concept, or `CONCEPT=ALIAS`.
        kinds: One for all, or `CONCEPT=KIND`.
        preserve: For all concepts.
        preserve_file: The same, one a line.
        concepts_file: A table of further concepts.
        images: A folder for the only concept, or `CONCEPT=FOLDER`.

    Raises:
        ValueError: No or empty concepts, words that the world does not know, or a file that is none of these.
    """
    listed = read_concepts(concepts_file) if concepts_file else []
    if not (names or listed):
        raise ValueError("no concept; say what goes, e.g. --concept star (erase --help has examples)")
    if any(not name.strip() for name in names):
        raise ValueError("an empty --concept; say what goes, e.g. --concept star")
    entries = [*({"concept": name.strip()} for name in names), *listed]
    keys = [str(entry["concept"]) for entry in entries]
    anchor_of, alias_of = _per_concept("--anchor", anchors, keys), _per_concept("--alias", aliases, keys)
    images_of, kind_of = _per_concept("--images", images, keys), _per_concept("--kind", kinds, keys)
    kept = (*preserve, *(read_lines(preserve_file, "--preserve-file") if preserve_file else ()))
    if world:
        given = [word.partition("=")[2] if "=" in word else word for word in (*anchors, *aliases)]
        for word in (*given, *kept, *(text for entry in listed for text in _texts_of(entry))):
            _check_vocabulary(world, word)
    found = []
    for key, entry in zip(keys, entries, strict=True):
        kind = _only("--kind", kind_of, key)
        if kind is not None and kind not in KINDS:
            raise ValueError(f"expected --kind among {', '.join(KINDS)}, got {kind!r}{suggest(kind, KINDS)}")
        entry = entry if kind is None else {**entry, "kind": kind}
        concept = concept_of(entry, _concept_in(world, key) if world else Concept.of(key))
        anchor = _only("--anchor", anchor_of, key)
        concept = replace(concept, anchor=concept.anchor if anchor is None else anchor)
        concept = replace(concept, aliases=(*concept.aliases, *alias_of.get("", ()), *alias_of.get(key, ())))
        folders = (*images_of.get("", ()), *images_of.get(key, ()))
        pictures = tuple(picture for folder in folders for picture in read_images(Path(folder)))
        found.append(replace(concept, preserve=(*concept.preserve, *kept), images=(*concept.images, *pictures)))
    return as_concepts(found)


def _only(option: str, values: Mapping[str, Sequence[str]], key: str) -> str | None:
    """The one value of a concept, its own or that for all; None where there is none.

    Raises:
        ValueError: Several.
    """
    given = values.get(key, values.get("", ()))
    if len(given) > 1:
        raise ValueError(f"expected one {option} for {key}, got {', '.join(map(repr, given))}")
    return given[0] if given else None


def _texts_of(entry: Mapping[str, Any]) -> list[str]:
    """The texts of an entry beside its name and kind."""
    values = [value for key, value in entry.items() if key not in ("concept", "kind")]
    return [text for value in values for text in ((value,) if isinstance(value, str) else value)]


def anchor_notes(concepts: Sequence[Concept], anchors: Sequence[str]) -> list[str]:
    """What each concept becomes that was given no `--anchor`."""
    if any("=" not in text for text in anchors):
        return []
    given = {text.partition("=")[0] for text in anchors}
    chosen = [concept for concept in concepts if concept.name not in given]
    return [
        f"{one.name}: {one.anchor or 'nothing in particular'} was chosen as its anchor; --anchor names another"
        for one in chosen
    ]


def check_device(device: str) -> str:
    """A device name that torch can read.

    Raises:
        ValueError: It cannot.
    """
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"unknown device {device!r}; expected auto, cpu, mps, cuda or cuda:N, xpu or xpu:N")
    return device


def check_dtype(dtype: str) -> str:
    """A dtype name.

    Raises:
        ValueError: Not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}{suggest(dtype, DTYPES)}; expected {', '.join(DTYPES)}")
    return dtype


def check_form(form: str) -> str:
    """A form in which a patch is written for others.

    Raises:
        ValueError: Not one of `FORMS`.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}{suggest(form, FORMS)}; expected {', '.join(FORMS)}")
    return form


def pick_device(device: str) -> str:
    """The device to use; `auto` is the first accelerator there is.

    Raises:
        ValueError: This machine has no such device.
    """
    import torch

    present = [name for name in ("cuda", "xpu", "mps") if getattr(torch, name).is_available()]
    if device == "auto":
        return present[0] if present else "cpu"
    kind, _, index = device.partition(":")
    count = getattr(torch, kind).device_count() if kind in present else 0
    if kind != "cpu" and (kind not in present or int(index or 0) >= count):
        raise ValueError(f"no device {device!r} on this machine; it has {', '.join(['cpu', *present])}")
    return device


def pick_dtype(dtype: str, device: str, *, gradients: bool = False) -> str:
    """The dtype to load a model in; `auto` is half precision on an accelerator and float32 on a CPU.

    Where gradients are taken, that is bfloat16 on a device that computes in it, for float16 has no room for small ones.
    """
    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32"
    return "bfloat16" if gradients and _has_bfloat16(device) else "float16"


def _has_bfloat16(device: str) -> bool:
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "xpu" and bool(torch.xpu.is_bf16_supported())


def check_out_file(path: Path, option: str = "--out") -> Path:
    """A file that can be written.

    Raises:
        ValueError: It is a folder.
        FileNotFoundError: Its folder does not exist.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; expected a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{option} {path}: the folder {path.parent} cannot be written")
    return path


def report_folder(given: str | None) -> Path | None:
    """The folder of `--report`, which a report may write to; None when there is no such option.

    Raises:
        ValueError: An empty text.
        FileExistsError: From `check_report_folder`.
    """
    if given is None:
        return None
    if not given.strip():
        raise ValueError("an empty --report; give the folder of the report, e.g. --report report")
    return check_report_folder(Path(given))


def check_drawable(concepts: Sequence[Concept]) -> None:
    """Refuse to report on what is not drawn; such concepts can be erased without a report.

    Raises:
        ValueError: The names of a concept combine sexual content and minors.
    """
    from erasers.evaluation.refusal.refusal import refuse_minors

    try:
        refuse_minors(" ".join(term for concept in concepts for term in concept.terms()))
    except ValueError as error:
        raise ValueError(f"--report: {error}; without --report the concept is erased all the same") from None


def default_out(concepts: Sequence[Concept], method: str) -> Path:
    """`<concept>-<method>.safetensors`; several concepts are joined by `+`.

    Letters, their marks and digits of any script stay and spaces become `_`; what else a name has, or what is too long
    of it, is told apart by a hash, so that different concepts have different files.
    """
    names = [unicodedata.normalize("NFC", concept.name) for concept in concepts]
    plain = "+".join(_in_a_file(name) for name in names)
    short = plain.encode()[:_LONGEST_NAME].decode(errors="ignore")
    if short == plain and all(_in_a_file(name).replace("_", " ") == name for name in names):
        return Path(f"{plain}-{method}.safetensors")
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    return Path(f"{short}-{digest}-{method}.safetensors")


def _in_a_file(name: str) -> str:
    kept = (letter if unicodedata.category(letter)[0] in "LMN" else "_" for letter in name)
    return re.sub("_+", "_", "".join(kept)).strip("_") or "_"


def load_model(model: str, device: str, dtype: str, *, gradients: bool = False, **options: Any) -> Any:
    """The pipeline of `--model`, on its device and of its dtype; libraries say nothing while it loads and afterwards.

    Args:
        model: As on the command line.
        device: As on the command line.
        dtype: As on the command line.
        gradients: Whether gradients will be taken.
        **options: As `model_options` gives them.

    Raises:
        ValueError: No such device.
        ModelNotFound: No such model.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from erasers.pipeline import load_pipeline

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"erasers\.")
    warnings.showwarning = show_warning
    where = pick_device(device)
    pipe = load_pipeline(model, dtype=pick_dtype(dtype, where, gradients=gradients), device=where, **options)
    threads.suit(pipe)
    return pipe


def _per_concept(option: str, values: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Values by concept name; those under "" are for every concept."""
    found: dict[str, list[str]] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if equals and key not in names:
            raise ValueError(f"{option} {value!r}: no --concept {key!r}{suggest(key, names)}; got {', '.join(names)}")
        if not equals and option in ("--alias", "--images") and len(names) > 1:
            raise ValueError(
                f"{option} {value!r}: with several concepts say whose it is, e.g. {option} {names[0]}={value}"
            )
        found.setdefault(key if equals else "", []).append(text if equals else value)
    return found


def _concept_in(world: World, word: str) -> Concept:
    try:
        return world.concept(word)
    except ValueError as error:
        raise ValueError(f"{error}{suggest(word, world.words)}") from None


def _check_vocabulary(world: World, text: str) -> None:
    if unknown := world.unknown_words(text):
        close = suggest(unknown[0], world.vocabulary)
        raise ValueError(f"{world.name} does not know the word {unknown[0]!r} of {text!r}{close}")
