"""Spans unlike those before them are found; spans that only bring new groups are not alarmed."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.stats import t as student
from scipy.stats import ttest_ind

from data_ingest.errors import InputError
from data_ingest.settings import DatasetSettings, PairSettings
from data_ingest.sources import layout
from data_ingest.sources.glyphs import write_glyphs
from data_ingest.sources.images import ImageRejected, stored_form
from data_ingest.sources.kinds import Form
from data_ingest.spans.image_figures import FIGURES, ImageFigures, divergence, measure_images
from data_ingest.spans.store import SpanStore
from data_ingest.spans.turns import STROKES, turned
from pipeline.cli.main import main
from pipeline.config import PipelineConfig
from pipeline.retraining import drift
from pipeline.retraining.drift import (
    ACCURACY_DROP,
    DIVERGENCE,
    LABEL_SHIFT,
    TURNED,
    UNEXPECTED,
    check_drift,
)
from pipeline.runs.workspace import Workspace
from pipeline.settings import DriftSettings

ALPHABETS = 5
PAIRS = PairSettings(ways=(5,))
Gray = npt.NDArray[np.uint8]


def inverted(gray: Gray) -> Gray:
    return 255 - gray


def noisy(gray: Gray) -> Gray:
    specks = np.random.default_rng(int(gray.sum())).random(gray.shape) < 0.1
    return np.where(specks, 255 - gray, gray).astype(np.uint8)


def half_blank(gray: Gray) -> Gray:
    kept = gray.copy()
    kept[:, : gray.shape[1] // 2] = 255
    return kept


def cropped(gray: Gray) -> Gray:
    return gray[20:-20, 20:-20]


def spoiled(source: Path, target: Path, spoil: Callable[[Gray], Gray]) -> Path:
    with zipfile.ZipFile(source) as clean, zipfile.ZipFile(target, "w") as changed:
        for name in clean.namelist():
            with Image.open(io.BytesIO(clean.read(name))) as image:
                gray = spoil(np.asarray(image.convert("L")))
            stream = io.BytesIO()
            Image.fromarray(gray).convert("1").save(stream, "PNG")
            changed.writestr(name, stream.getvalue())
    return target


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with two spans, and beside it the images of a third."""
    folder = tmp_path_factory.mktemp("drift")
    store = SpanStore(folder / "output" / "spans")
    for number in (1, 2, 3):
        source = folder / f"{number}.zip"
        write_glyphs(
            source,
            alphabets=ALPHABETS,
            characters=6,
            writers=5,
            seed=1,
            first_alphabet=1 + (number - 1) * ALPHABETS,
        )
        if number < 3:
            store.land(number, [source], pairs=PAIRS, max_rejected_share=0.0)
    return folder


@pytest.fixture
def output(landed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(landed / "output", tmp_path / "output"))


@pytest.fixture
def store(output: Path) -> SpanStore:
    return SpanStore(output / "spans")


def land(store: SpanStore, *sources: Path) -> int:
    return store.land(None, sources, pairs=PAIRS, max_rejected_share=0.1).number


def check(store: SpanStore, number: int, **options: Any) -> drift.DriftReport:
    model = options.pop("model", None)
    dataset = DatasetSettings(writer_pattern=options.pop("writer_pattern", None))
    config = PipelineConfig(drift=DriftSettings(**options), dataset=dataset)
    return check_drift(config, Workspace(store.root.parent), number, model=model)


def test_new_groups_alone_are_no_drift(store: SpanStore, landed: Path) -> None:
    for number in (2, land(store, landed / "3.zip")):
        report = check(store, number)
        assert report.findings == ()
        measured = {(one.feature, one.measure) for one in report.measurements}
        assert {feature for feature, _ in measured} >= set(FIGURES)
        assert ("turn_180", TURNED) in measured


def test_images_that_can_no_longer_be_used_are_left_out_and_counted(
    store: SpanStore, landed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def form(data: bytes, form: Form) -> bytes:
        if data in bad or not bad:
            raise ImageRejected("nothing is drawn on it")
        return stored_form(data, form)

    (path, *_) = store.span(1).containers
    with zipfile.ZipFile(path) as archive:
        bad = {archive.read(name) for name in archive.namelist()[:3]}
    monkeypatch.setattr(layout, "stored_form", form)
    (note, _) = check(store, 1).notes
    assert note == "3 images of this span cannot be used: `oneshot spans check` names them"
    bad = set()
    with pytest.raises(InputError, match="span 1: none of its images can be used"):
        check(store, 1)


@pytest.mark.parametrize(
    ("spoil", "feature", "measure"),
    [
        (inverted, "paper", UNEXPECTED),
        (inverted, "brightness", DIVERGENCE),
        (noisy, "roughness", DIVERGENCE),
        (half_blank, "ink_x", DIVERGENCE),
        (cropped, "width", DIVERGENCE),
    ],
)
def test_spoiled_images_are_drift(
    store: SpanStore,
    landed: Path,
    tmp_path: Path,
    spoil: Callable[[Gray], Gray],
    feature: str,
    measure: str,
) -> None:
    number = land(store, spoiled(landed / "3.zip", tmp_path / "bad.zip", spoil))
    report = check(store, number)
    assert (feature, measure) in {(one.feature, one.measure) for one in report.findings}
    assert not report.blocked


def test_images_stored_in_another_way_are_named_by_tfdv(
    store: SpanStore, landed: Path, tmp_path: Path
) -> None:
    target = tmp_path / "jpeg.zip"
    with zipfile.ZipFile(landed / "3.zip") as clean, zipfile.ZipFile(target, "w") as changed:
        for name in clean.namelist():
            stream = io.BytesIO()
            Image.open(io.BytesIO(clean.read(name))).convert("L").save(stream, "JPEG", quality=95)
            changed.writestr(name.replace(".png", ".jpg"), stream.getvalue())
    report = check(store, land(store, target))
    (found,) = [one for one in report.findings if one.measure == UNEXPECTED]
    assert (found.feature, found.value) == ("form", 1.0)
    assert "JPEG gray" in found.message


def test_a_few_odd_images_are_tolerated_by_both_rules(
    store: SpanStore, landed: Path, tmp_path: Path
) -> None:
    spoil_every_fortieth = iter(range(10_000))

    def sometimes(gray: Gray) -> Gray:
        return inverted(gray) if next(spoil_every_fortieth) % 40 == 0 else gray

    number = land(store, spoiled(landed / "3.zip", tmp_path / "few.zip", sometimes))
    report = check(store, number)
    assert report.findings == ()
    (paper,) = [
        one for one in report.measurements if (one.feature, one.measure) == ("paper", UNEXPECTED)
    ]
    assert 0 < paper.value < 0.05
    assert paper.message == ""


def test_tfdv_measures_the_divergence_of_the_ranges(store: SpanStore) -> None:
    report = check(store, 2)
    old, new = (
        measure_images([store.span(number).containers], limit=5000).share("ink")
        for number in (1, 2)
    )
    values = sorted({*old, *new})
    expected = divergence(
        *(np.array([shares.get(value, 0.0) for value in values]) for shares in (new, old))
    )
    (ink,) = [one for one in report.measurements if one.feature == "ink"]
    assert ink.value == pytest.approx(expected, abs=1e-6)


def test_known_groups_in_other_shares_are_a_shift_of_labels(
    store: SpanStore, landed: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.zip"
    with zipfile.ZipFile(landed / "1.zip") as clean, zipfile.ZipFile(again, "w") as changed:
        groups = sorted({name.split("/")[1] for name in clean.namelist()})
        for name in clean.namelist():
            group = name.split("/")[1]
            if group in (groups[0], groups[1]) and (group == groups[0] or "_01" in name):
                changed.writestr(name, clean.read(name))
    report = check(store, land(store, again))
    (shift,) = [one for one in report.findings if one.measure == LABEL_SHIFT]
    # One group has a fifth of its images, the other all: 5 to 1 instead of 1 to 1.
    assert shift.value == pytest.approx(5 / 6 - 1 / 2, abs=0.01)
    assert shift.feature == "group"


def test_a_block_excludes_the_span_until_a_person_readmits_it(
    store: SpanStore, landed: Path, tmp_path: Path
) -> None:
    number = land(store, spoiled(landed / "3.zip", tmp_path / "bad.zip", inverted))
    assert check(store, number, action="block").blocked
    excluded = store.span(number).excluded
    assert excluded is not None
    assert "brightness" in excluded
    store.readmit(number)
    report = check(store, number, action="block")
    assert report.findings
    assert not report.blocked
    assert store.span(number).excluded is None


def test_an_excluded_span_is_not_what_others_are_compared_with(
    store: SpanStore, landed: Path, tmp_path: Path
) -> None:
    bad = land(store, spoiled(landed / "3.zip", tmp_path / "bad.zip", inverted))
    check(store, bad, action="block")
    number = land(store, landed / "1.zip")
    report = check(store, number)
    assert report.reference == (1, 2)
    assert report.findings == ()
    assert check(store, number, reference_spans=1).reference == (2,)


def test_a_first_span_has_nothing_to_drift_from(store: SpanStore) -> None:
    report = check(store, 1, action="block")
    assert (report.measurements, report.notes) == ((), ("no earlier span to compare with",))
    assert not report.blocked


def test_the_report_is_written_whole(store: SpanStore) -> None:
    report = check(store, 2)
    written = json.loads((store.root.parent / "drift" / "span-2.json").read_text())
    assert written == json.loads(json.dumps(report.document()))
    assert written["reference"] == [1]


class PixelModel:
    """Compares drawings pixel by pixel, through the signatures of an export."""

    def __init__(self, directory: Path) -> None:
        self.scale = -1.0 if directory.name == "contrary" else 1.0

    def __enter__(self) -> "PixelModel":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if signature == "embed":
            return {"embedding": np.stack([self._pixels(data) for data in inputs["image"]])}
        apart = np.abs(inputs["embedding_a"] - inputs["embedding_b"]).sum(axis=1)
        return {"logit": -self.scale * apart}

    @staticmethod
    def _pixels(data: bytes) -> npt.NDArray[np.float32]:
        small = Image.open(io.BytesIO(data)).convert("L").resize((12, 12), Image.Resampling.BOX)
        return np.asarray(small, np.float32).ravel()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(drift, "LoadedModel", PixelModel)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").touch()
    return tmp_path / "model"


def accuracy_drop(report: drift.DriftReport) -> drift.Measurement:
    (found,) = [one for one in report.measurements if one.measure == ACCURACY_DROP]
    return found


def test_accuracy_is_compared_on_classes_that_no_model_is_trained_on(
    store: SpanStore, landed: Path, model: Path
) -> None:
    report = check(store, land(store, landed / "3.zip"), model=model, trials=120)
    assert report.accuracy is not None
    assert report.accuracy["way"] == 6
    assert report.accuracy["span"]["n"] == 120
    assert report.accuracy["reference"]["accuracy"] > 1.5 / 6
    drop = accuracy_drop(report)
    difference = report.accuracy["reference"]["accuracy"] - report.accuracy["span"]["accuracy"]
    assert drop.value == pytest.approx(difference)
    assert not drop.exceeded


def test_drawings_under_wrong_labels_are_found_by_accuracy_alone(
    store: SpanStore, landed: Path, tmp_path: Path, model: Path
) -> None:
    """Every image is as it should be; only what it is called is not."""
    mixed = tmp_path / "mixed.zip"
    with zipfile.ZipFile(landed / "3.zip") as clean, zipfile.ZipFile(mixed, "w") as changed:
        names = clean.namelist()
        shuffled = np.random.default_rng(1).permutation(len(names))
        for name, other in zip(names, shuffled, strict=True):
            changed.writestr(name, clean.read(names[other]))
    report = check(store, land(store, mixed), model=model, trials=200)
    assert [one.measure for one in report.findings] == [ACCURACY_DROP]


def test_a_span_without_such_classes_is_measured_on_all_of_it(
    store: SpanStore, landed: Path, tmp_path: Path, model: Path
) -> None:
    trained = next(name for name, side in store.span(1).new.items() if side == "background")
    one = tmp_path / "one.zip"
    with zipfile.ZipFile(landed / "1.zip") as clean, zipfile.ZipFile(one, "w") as kept:
        for name in clean.namelist():
            if f"/{trained}/" in name:
                kept.writestr(name, clean.read(name))
    report = check(store, land(store, one), model=model, trials=50)
    assert report.accuracy is not None
    assert report.accuracy["span"]["groups"] == 1


def test_a_span_too_small_for_trials_is_told_apart_from_one_without_drift(
    store: SpanStore, landed: Path, tmp_path: Path, model: Path
) -> None:
    single = tmp_path / "single.zip"
    with zipfile.ZipFile(landed / "3.zip") as clean, zipfile.ZipFile(single, "w") as kept:
        kept.writestr("g/c/one.png", clean.read(clean.namelist()[0]))
    report = check(store, land(store, single), model=model)
    assert report.accuracy is None
    assert any("accuracy was not measured" in note for note in report.notes)


def test_the_writers_of_accuracys_trials_are_those_of_the_configuration(
    store: SpanStore, landed: Path, model: Path
) -> None:
    number = land(store, landed / "3.zip")
    for pattern, measured in ((r"_(\d+)\.png$", True), (r"(\.png)$", False)):
        report = check(store, number, model=model, writer_pattern=pattern)
        assert (report.accuracy is not None) == measured


def test_a_folder_without_a_model_is_refused(store: SpanStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no saved_model\.pb here"):
        check(store, 2, model=tmp_path)
    assert not (store.root.parent / "drift").exists()


def figures_of(groups: str, quarters: int, *, classes: str | None = None) -> ImageFigures:
    """Images whose strokes lie in one corner, which turns move to another."""
    generator = np.random.default_rng(len(groups))
    strokes = generator.random((len(groups), *STROKES), np.float32) * 0.2
    strokes[:, 0, 0, 0] = 1
    return ImageFigures(tuple(groups), tuple(classes or groups), {}, turned(strokes, quarters))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turned_drawings_are_found_without_a_model(quarters: int) -> None:
    old, new = figures_of("aabbccddee", 0), figures_of("ffgg", quarters)
    found = {one.feature for one in drift.compare_turns(new, old) if one.exceeded}
    assert (f"turn_{90 * quarters}" in found) == (quarters > 0)
    if not quarters:
        assert not found


def test_what_looks_turned_needs_several_groups_to_tell() -> None:
    new, few = figures_of("ffgg", 1), figures_of("aabb", 0, classes="abcd")
    assert drift.compare_turns(new, few) == []
    alone = figures_of("xxxxxx", 0, classes="abcdef")
    assert drift.compare_turns(new, alone) == []
    (quarter, _, _) = drift.compare_turns(figures_of("xxxx", 1, classes="kkll"), alone)
    assert quarter.exceeded


@pytest.mark.parametrize(("now", "before"), [("eeeeffff", "aaaabbbbccccdddd"), ("ff", "aabbcc")])
def test_turns_are_limited_by_a_t_test_of_groups_and_by_a_share(
    monkeypatch: pytest.MonkeyPatch, now: str, before: str
) -> None:
    judged = [np.random.default_rng(3).random(len(names)) < 0.5 for names in (now, before)]
    monkeypatch.setattr(drift, "looks_turned", lambda *_: judged)
    new, old = figures_of(now, 0), figures_of(before, 0)
    shares = [
        [judged[side][[n == name for n in names]].mean() for name in sorted(set(names))]
        for side, names in enumerate((now, before))
    ]
    expected = ttest_ind(*shares, alternative="greater")
    for one in drift.compare_turns(new, old):
        assert one.value == pytest.approx(np.mean(shares[0]) - np.mean(shares[1]))
        error = one.value / expected.statistic
        limit = error * student.ppf(1 - 0.01 / 3, expected.df)
        assert one.threshold == pytest.approx(max(0.2, limit))


def test_groups_that_are_all_alike_tolerate_a_share() -> None:
    one, *_ = drift.compare_turns(figures_of("ffgg", 0), figures_of("aabbccddee", 0))
    assert one.threshold == pytest.approx(0.2)


def test_labels_are_compared_by_class_where_there_are_no_groups() -> None:
    new, old = (
        ImageFigures(("",) * len(classes), tuple(classes), {}, np.zeros((0, *STROKES), np.float32))
        for classes in ("aab", "abbbb")
    )
    (found,) = drift.compare_labels(new, old, DriftSettings(), unit="class")
    assert found.value == pytest.approx(2 / 3 - 1 / 5)


def test_the_command_tells_drift_and_its_exit_code_a_block(
    output: Path,
    landed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = spoiled(landed / "3.zip", tmp_path / "bad.zip", inverted)
    assert main(["ingest", "--next", str(bad)]) == 0
    capsys.readouterr()
    assert main(["drift", "--span", "2"]) == 0
    assert capsys.readouterr().out.endswith("not measured\nno drift\n")
    assert main(["drift", "--span", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {one["feature"] for one in document["findings"]} == {"paper", "brightness"}
    assert main(["drift", "--span", "3", "--set", "drift.action=block"]) == 3
    assert "oneshot spans readmit 3" in capsys.readouterr().out
    assert main(["drift", "--span", "4"]) == 2
    assert "there is no span 4" in capsys.readouterr().err
