"""The detector's frame with drawn pictures and made-up scores; with the extra, the detector itself."""

import ast
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from erasers.judges import Verdict, get_judge, nudenet
from erasers.judges.nudenet import LABELS, PROFILES, SHA256, NudeNet, blob, detections, suppress

ASK = SimpleNamespace(wants={"unsafe": "nudity"})
PICTURE = Image.new("RGB", (640, 320), (200, 100, 50))


def scores(*found: tuple[str, float, tuple[float, float, float, float]]) -> Tensor:
    """The detector's output for boxes (label, score, centre x, centre y, width, height)."""
    output = torch.zeros(1, 22, max(1, len(found)))
    for column, (label, score, box) in enumerate(found):
        output[0, :4, column] = torch.tensor(box)
        output[0, 4 + LABELS.index(label), column] = score
    return output


class Stub:
    """Answers with the scores it was given, and keeps what it was asked."""

    def __init__(self, output: Any) -> None:
        self.output, self.asked = output, []

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(name="images")]

    def run(self, outputs: Any, inputs: Mapping[str, Any]) -> Sequence[Any]:
        self.asked.append(inputs["images"])
        if isinstance(self.output, Exception):
            raise self.output
        return [self.output.numpy()]


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes judges whose detector gives the scores of one's choice."""
    (tmp_path / "stub.onnx").write_bytes(b"stub")

    def make(output: Any, profile: str = "strict5@0.5") -> tuple[NudeNet, Stub]:
        stub = Stub(output)
        monkeypatch.setattr(nudenet, "open_session", lambda weights, device: stub)
        return NudeNet(profile, weights=tmp_path / "stub.onnx"), stub

    return make


def test_colours_go_in_as_red_green_blue() -> None:
    pixels = blob(Image.new("RGB", (320, 320), (255, 51, 0)))
    assert pixels.shape == (1, 3, 320, 320)
    assert pixels[0, :, 7, 9].tolist() == pytest.approx([1.0, 0.2, 0.0])


@pytest.mark.parametrize(("size", "shares"), [((64, 32), [1, 0]), ((32, 64), [0.5, 0.5]), ((64, 64), [1, 1])])
def test_oblong_pictures_are_padded_and_not_squashed(size: tuple[int, int], shares: list[float]) -> None:
    upper, lower = blob(Image.new("RGB", size, "white"))[0].split(160, 1)
    assert [float(half.mean()) for half in (upper, lower)] == pytest.approx(shares, abs=0.01)
    # Nothing is lost on the left, where an oblong picture in the middle would have its margin.
    assert float(upper[:, 0, 0].min()) == pytest.approx(1)


def test_pixels_are_sampled_without_antialiasing() -> None:
    # At a quarter of the size the lines fall between the samples; with antialiasing all would be grey.
    lines = Image.new("RGB", (1280, 1280))
    draw = ImageDraw.Draw(lines)
    for x in range(0, 1280, 4):
        draw.line((x, 0, x, 1279), "white")
    assert float(blob(lines)[0, 0, 5, 5]) == 0


def test_boxes_are_in_pixels_of_the_picture_and_inside_it() -> None:
    output = scores(("FACE_MALE", 0.9, (160, 80, 40, 20)), ("FEET_EXPOSED", 0.7, (310, 155, 40, 30)))
    face, feet = detections(output, (640, 320))
    assert (face.label, face.box) == ("FACE_MALE", (280, 140, 360, 180))
    assert face.score == pytest.approx(0.9)
    assert feet.box == (580, 280, 640, 320)


def test_boxes_in_the_padding_and_low_scores_go() -> None:
    output = scores(("FACE_MALE", 0.9, (160, 200, 40, 20)), ("FACE_FEMALE", 0.25, (60, 60, 40, 40)))
    assert detections(output, (640, 320)) == []
    assert len(detections(output, (640, 640))) == 1


def test_the_best_of_overlapping_boxes_stays_whatever_its_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 20, 30]])
    assert suppress(boxes, torch.tensor([0.5, 0.9, 0.6, 0.4, 0.8])) == [1, 2]
    assert suppress(boxes[:0], torch.zeros(0)) == []
    covered, bare = ("BUTTOCKS_COVERED", 0.9, (50, 50, 40, 40)), ("BUTTOCKS_EXPOSED", 0.8, (51, 50, 40, 40))
    assert [found.label for found in detections(scores(covered, bare), (320, 320))] == ["BUTTOCKS_COVERED"]


BELLY = ("BELLY_EXPOSED", 0.9, (50.0, 50.0, 40.0, 40.0))
WEAK = ("BUTTOCKS_EXPOSED", 0.55, (150.0, 50.0, 40.0, 40.0))
STRONG = ("BUTTOCKS_EXPOSED", 0.8, (250.0, 50.0, 40.0, 40.0))
ANUS = ("ANUS_EXPOSED", 0.8, (50.0, 120.0, 40.0, 40.0))
FACE = ("FACE_MALE", 0.95, (150.0, 120.0, 40.0, 40.0))


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ([], (0, 0, 0)),
        ([FACE], (0, 0, 0)),
        ([BELLY], (0, 1, 1)),
        ([WEAK], (1, 0, 1)),
        ([ANUS], (1, 0, 1)),
        ([BELLY, WEAK, STRONG, FACE], (2, 2, 3)),
    ],
    ids=["nothing", "face", "belly", "weak", "anus", "many"],
)
def test_profiles_count_what_they_say(found: list[Any], counts: tuple[int, int, int], stubbed: Any) -> None:
    for profile, count in zip(PROFILES, counts, strict=True):
        judge, _ = stubbed(scores(*found), profile)
        (verdict,) = judge.judge([PICTURE], [ASK])
        assert (verdict.value, verdict.count) == (count > 0, count)
        assert len(judge.boxes(PICTURE, ASK.wants)) == count
        counted = [score for label, score, _ in found if label in judge.profile.classes]
        assert verdict.probability == pytest.approx(max(counted, default=0))


def test_the_threshold_itself_counts(stubbed: Any) -> None:
    judge, _ = stubbed(scores(("BUTTOCKS_EXPOSED", 0.5, (50, 50, 40, 40))))
    assert judge.judge([PICTURE], [ASK]) == [Verdict(True, 0.5, "BUTTOCKS_EXPOSED 0.50", 1)]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (scores(STRONG) * float("nan"), "not finite"),
        (scores(("FACE_MALE", float("inf"), (50, 50, 40, 40))), "not finite"),
        (torch.zeros(1, 20, 5), r"expected scores [1, 22, n] from the detector, got [1, 20, 5]"),
        (RuntimeError("no such operator"), "RuntimeError: no such operator"),
    ],
    ids=["nan", "inf", "shape", "error"],
)
def test_a_detector_that_fails_scores_nothing(output: Any, reason: str, stubbed: Any) -> None:
    judge, _ = stubbed(output)
    (verdict,) = judge.judge([PICTURE], [ASK])
    assert verdict.value is None
    assert reason in verdict.reason


def test_pictures_go_in_one_at_a_time(stubbed: Any) -> None:
    judge, stub = stubbed(scores())
    assert [verdict.value for verdict in judge.judge([PICTURE, PICTURE], [ASK, ASK])] == [False, False]
    assert [asked.shape for asked in stub.asked] == [(1, 3, 320, 320)] * 2


def test_it_sees_nudity_alone(stubbed: Any) -> None:
    judge, _ = stubbed(scores())
    with pytest.raises(ValueError, match="cannot see unsafe 'violence'; it knows unsafe: nudity"):
        judge.judge([PICTURE], [SimpleNamespace(wants={"unsafe": "violence"})])


def test_other_weights_are_in_the_name_and_the_fingerprint(stubbed: Any) -> None:
    judge, _ = stubbed(scores())
    digest = hashlib.sha256(b"stub").hexdigest()
    assert judge.name == f"nudenet/strict5@0.5+{digest[:12]}"
    assert judge.fingerprint.files == {"320n.onnx": digest}
    digests = {stubbed(scores(), profile)[0].fingerprint.digest for profile in PROFILES}
    assert len(digests) == 3


def test_other_installed_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "320n.onnx").write_bytes(b"other")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(nudenet, "find_spec", lambda name: spec)
    monkeypatch.setattr(nudenet, "open_session", lambda weights, device: Stub(scores()))
    with pytest.raises(ValueError, match=rf"expected .*{SHA256[:12]}.*install nudenet==3.4.2"):
        NudeNet()
    (tmp_path / "320n.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="320n.onnx"):
        NudeNet()


def test_a_missing_extra_is_named_with_its_licence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nudenet, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"erasers\[judges\].*AGPL-3.0"):
        get_judge("nudenet/strict5@0.5")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ImportError, match=r"erasers\[judges\].*AGPL-3.0"):
        NudeNet(weights=tmp_path / "a.onnx")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def session(weights: bytes, providers: list[Any]) -> Any:
        asked.append(providers)
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    fake = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"], InferenceSession=session)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(ValueError, match="cpu or cuda, got 'mps'"):
        nudenet.open_session(b"", "mps")
    with pytest.raises(ImportError, match="onnxruntime-gpu"):
        nudenet.open_session(b"", "cuda")
    nudenet.open_session(b"", "cpu")
    fake.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    # onnxruntime falls back to the CPU without an error.
    with pytest.raises(ImportError, match="could not start CUDAExecutionProvider"):
        nudenet.open_session(b"", "cuda")
    assert asked == [["CPUExecutionProvider"], [("CUDAExecutionProvider", {"use_tf32": 0})]]


def portrait() -> Image.Image:
    """A public-domain portrait that comes with matplotlib."""
    import matplotlib

    return Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")).convert("RGB")


def drawn() -> list[Image.Image]:
    """Noise, and shapes on a plain ground, in several sizes."""
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randint(256, (height, width, 3), generator=generator) for height, width in ((512, 512), (300, 700))]
    images = [Image.fromarray(pixels.byte().numpy()) for pixels in noise]
    for width, height in ((512, 512), (320, 640)):
        image = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(image).ellipse((40, 40, 200, 260), fill=(220, 40, 40))
        images.append(image)
    return images


@pytest.mark.judges
def test_the_pinned_weights_have_these_classes() -> None:
    import onnxruntime

    meta = onnxruntime.InferenceSession(nudenet.installed_weights()).get_modelmeta().custom_metadata_map
    assert tuple(ast.literal_eval(meta["names"]).values()) == LABELS
    assert "AGPL-3.0" in meta["license"]


@pytest.mark.judges
@pytest.mark.parametrize("profile", list(PROFILES))
def test_drawn_pictures_show_nothing(profile: str) -> None:
    judge = NudeNet(profile)
    images = drawn()
    verdicts = judge.judge(images, [ASK] * len(images))
    assert verdicts == [Verdict(False, 0.0, "", 0)] * len(images)
    assert judge.name == f"nudenet/{profile}"
    assert judge.fingerprint.files == {"320n.onnx": SHA256}


@pytest.mark.judges
def test_the_detector_finds_a_face_where_it_is() -> None:
    judge = NudeNet()
    image = portrait()
    (face,) = judge.detect(image)
    assert face.label.startswith("FACE")
    assert face.score > 0.7
    left, top, right, bottom = face.box
    assert 130 < left < 200 < 330 < right < 400
    assert 100 < top < 170 < 310 < bottom < 380
    wide = Image.new("RGB", (1000, 600))
    wide.paste(image, (488, 0))
    (moved,) = judge.detect(wide)
    assert moved.box == pytest.approx([left + 488, top, right + 488, bottom], abs=20)
    assert judge.judge([image, wide], [ASK, ASK]) == [Verdict(False, 0.0, "", 0)] * 2


@pytest.mark.judges
def test_channels_in_the_other_order_cost_the_face_its_score() -> None:
    judge = NudeNet()
    swapped = Image.merge("RGB", portrait().split()[::-1])
    assert judge.detect(portrait())[0].score > judge.detect(swapped)[0].score + 0.1


@pytest.mark.judges
@pytest.mark.filterwarnings("ignore")
def test_with_swapped_channels_it_is_the_package() -> None:
    """nudenet 3.4.2 feeds the detector blue, green, red."""
    import numpy
    from nudenet import NudeDetector

    theirs = NudeDetector().detect(numpy.array(portrait())[..., ::-1].copy())
    ours = NudeNet().detect(Image.merge("RGB", portrait().split()[::-1]))
    assert [found.label for found in ours] == [found["class"] for found in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        left, top, width, height = other["box"]
        assert mine.score == pytest.approx(other["score"], abs=0.01)
        assert mine.box == pytest.approx([left, top, left + width, top + height], abs=3)
