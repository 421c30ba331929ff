"""What would stop a run, and what only deserves a note."""

import io
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from components.evaluator.evidence import NOT_ENOUGH_EVIDENCE
from data_ingest.errors import InputError
from pipeline.cli import doctor
from pipeline.cli.doctor import Check
from pipeline.config import PipelineConfig, load_config
from pipeline.runs.workspace import Workspace
from pipeline.settings import PushSettings
from serving.saved_model.contract import EXTRA, MODEL_CARD, PREPROCESSING_VERSION
from tests.pair_records import drawing, png


def _printed(checks: list[Check]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80).print(*doctor.told(checks), sep="\n", soft_wrap=True)
    return stream.getvalue()


def _versions(**installed: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    return version


def test_this_environment_can_run(tmp_path: Path) -> None:
    config = load_config(None, ["dataset.source=synthetic"])
    of_data, _ = doctor.check_data(config, data=None, environ={})
    checks = doctor.diagnose(of_data, output=tmp_path / "output")
    assert [check.name for check in checks if check.fatal and not check.ok] == []
    assert not (tmp_path / "output").exists()
    assert "Nothing here would stop a run." in _printed(checks)


@pytest.mark.parametrize(
    ("version", "accepted"),
    [((3, 9), False), ((3, 10), True), ((3, 13), True), ((3, 14), False)],
)
def test_pythons_without_published_packages_stop_a_run(
    version: tuple[int, int], accepted: bool
) -> None:
    check = doctor.check_python(version)
    assert check.ok is accepted
    assert check.fatal
    assert bool(check.remedy) is not accepted


def test_a_missing_package_stops_a_run_and_another_version_is_noted(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "# pins\nbird==1.0 \\\n    --hash=sha256:ab\n    # via fish\n"
        "fish==2.0 ; python_version >= '3' \\\n    --hash=sha256:cd \\\n    --hash=sha256:ef\n"
        "old==1.0 ; python_version < '3'\n"
    )
    different = doctor.check_packages(lock, _versions(bird="1.1", fish="2.0"))
    assert (different.ok, different.fatal) == (False, False)
    assert "bird 1.1 instead of 1.0" in different.detail
    missing = doctor.check_packages(lock, _versions(fish="2.0"))
    assert (missing.ok, missing.fatal) == (False, True)
    assert "missing: bird" in missing.detail
    assert "make setup" in missing.remedy


def test_the_installed_packages_are_the_pinned_ones() -> None:
    check = doctor.check_packages(Path(__file__).parents[3] / "requirements.lock")
    assert check.ok, check.detail
    assert "tfx 1.21.0" in check.detail


def test_a_native_module_that_does_not_load_stops_a_run() -> None:
    check = doctor.check_native_module("bird", "no_such_module_of_birds", adapted={})
    assert (check.ok, check.fatal) == (False, True)
    assert "no_such_module_of_birds" in check.detail


def test_an_adapted_module_is_named_with_what_the_host_lacks(tmp_path: Path) -> None:
    stamp = {"adapted": {"json/native.so": ["GLIBC_9.9"]}}
    (tmp_path / "oneshot-setup.json").write_text(json.dumps(stamp))
    adapted = doctor.adapted_modules(tmp_path)
    assert "lacks GLIBC_9.9" in doctor.check_native_module("json", "json", adapted=adapted).detail
    assert "as published" in doctor.check_native_module("csv", "csv", adapted=adapted).detail
    assert doctor.adapted_modules(tmp_path / "elsewhere") == {}


def test_a_gpu_that_tensorflow_does_not_see_is_noted(tmp_path: Path) -> None:
    driver = tmp_path / "version"
    assert doctor.check_devices(driver).ok
    driver.touch()
    check = doctor.check_devices(driver)
    assert (check.ok, check.fatal) == (False, False)
    assert "GPU=1" in check.remedy


def test_little_memory_is_noted(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8000000 kB\nMemAvailable:   1048576 kB\n")
    check = doctor.check_memory(meminfo)
    assert (check.ok, check.fatal) == (False, False)
    assert "1.0 GiB" in check.detail
    assert doctor.check_memory(tmp_path / "none").detail == "unknown"


@pytest.mark.parametrize(
    ("gib", "ok", "fatal"), [(2, False, True), (4, False, False), (8, True, False)]
)
def test_too_few_addresses_are_told(
    gib: int, ok: bool, fatal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (gib * 2**30, gib * 2**30))
    check = doctor.check_memory(tmp_path / "none")
    assert (check.ok, check.fatal) == (ok, fatal)
    assert ok or f"{gib}.0 GiB of addresses (ulimit -v)" in check.detail


def test_data_that_cannot_be_had_stops_a_run(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    (check,), found = doctor.check_data(PipelineConfig(), data=missing, environ={})
    assert found is None
    assert (check.ok, check.fatal) == (False, True)
    assert str(missing) in check.detail
    assert "--data" in check.remedy


def test_the_kind_of_the_images_is_told(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"person{number}").mkdir()
        Image.effect_noise((60, 80), 90).save(tmp_path / f"person{number}" / "1.png")
    for kind, told in (("auto", "photographs (mid-tones up to "), ("drawing", "drawings (")):
        config = load_config(None, [f"dataset.kind={kind}"])
        (check, *_), _ = doctor.check_data(config, data=tmp_path, environ={})
        assert check.ok
        assert f"; {told}" in check.detail


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty classes of three images."""
    folder = tmp_path_factory.mktemp("drawings")
    for name in range(40):
        (folder / f"c{name:02}").mkdir()
        for writer in range(3):
            pixels = drawing(name, writer)
            pixels[:6, : 2 * name + 2] = 0
            (folder / f"c{name:02}" / f"{writer}.png").write_bytes(png(pixels))
    return folder


def looked_at(folder: Path, *overrides: str) -> dict[str, Check]:
    overrides = ("dataset.kind=drawing", *overrides)
    config = load_config(None, overrides)
    checks, _ = doctor.check_data(config, data=folder, environ={})
    return {check.name: check for check in checks}


def test_images_are_read_and_classes_counted(drawings: Path) -> None:
    checks = looked_at(drawings, "pairs.holdout_share=0.4")
    assert [check.name for check in checks.values() if not check.ok] == []
    assert checks["images"].detail == "120, each read"
    assert checks["classes"].detail.startswith("17 classes to train: ")
    assert "within_12way_accuracy" in checks["trials"].detail


def test_few_held_out_classes_and_thresholds_without_trials_are_noted(drawings: Path) -> None:
    checks = looked_at(drawings, "evaluate.thresholds={within_30way_accuracy: {min: 0.5}}")
    noted = [check for check in checks.values() if not check.ok]
    assert [(check.name, check.fatal) for check in noted] == [
        ("classes", False),
        ("trials", False),
    ]
    assert "5 held out" in noted[0].detail
    assert NOT_ENOUGH_EVIDENCE in noted[1].detail


@pytest.mark.parametrize("fault", ["few", "broken", "deep"])
def test_images_that_a_run_would_refuse_stop_it(fault: str, drawings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(drawings, folder)
    if fault == "few":
        for name in sorted(folder.iterdir())[3:]:
            shutil.rmtree(name)
    if fault == "broken":
        for path in folder.glob("c0[0-4]/0.png"):
            path.write_bytes(path.read_bytes()[:60])
    if fault == "deep":
        shutil.copytree(folder / "c00", folder / "group" / "c00")
    refused = list(looked_at(folder).values())[-1]
    said = {"few": "too few classes", "broken": "5 of 120 images", "deep": "depth"}
    assert (refused.ok, refused.fatal) == (False, True)
    assert said[fault] in refused.detail


def test_a_file_where_the_output_should_go_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert doctor.check_writable(tmp_path / "new" / "output").ok
    for name in ("taken/output", "output [1]"):
        check = doctor.check_writable(tmp_path / name)
        assert (check.ok, check.fatal) == (False, True)


def test_a_nearly_full_disk_stops_a_run_and_a_filling_one_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": 0}
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda place: type("Usage", (), {"free": free["bytes"]}),
    )
    outcomes = []
    for free["bytes"] in (2**29, 2 * 2**30, 2**40):
        check = doctor.check_disk(tmp_path / "output")
        outcomes.append((check.ok, check.fatal))
    assert outcomes == [(False, True), (False, False), (True, False)]


def test_a_served_model_of_an_earlier_release_is_noted(tmp_path: Path) -> None:
    workspace, settings = Workspace(tmp_path), PushSettings()
    assert doctor.check_model(workspace, settings).detail == "none is pushed yet"
    cards = {3: {}, 4: {"preprocessing_version": PREPROCESSING_VERSION}}
    for version, card in cards.items():
        extra = workspace.serving_model / str(version) / EXTRA
        extra.mkdir(parents=True)
        (extra / MODEL_CARD).write_text(json.dumps(card))
    newest = doctor.check_model(workspace, settings)
    assert (newest.ok, newest.detail) == (True, "version 4 is up to date")
    workspace.models_config.write_text(
        "model_config_list { config { name: 'siamese' base_path: '/models/siamese' "
        "version_labels { key: 'stable' value: 3 } } }"
    )
    stable = doctor.check_model(workspace, settings)
    assert (stable.ok, stable.fatal) == (False, False)
    assert stable.detail == "version 3 is of an earlier release"
    assert "`oneshot run` exports one that decodes indexed PNGs" in stable.remedy
    workspace.models_config.write_text("model_config_list {")
    unreadable = doctor.check_model(workspace, settings)
    assert (unreadable.ok, unreadable.fatal) == (False, False)
    assert "models.config" in unreadable.detail


def test_the_closing_line_names_what_would_stop_a_run() -> None:
    text = _printed(
        [
            Check("disk", ok=False, fatal=True, detail="full [of] files", remedy="tidy up"),
            Check("memory", ok=False, fatal=False, detail="little"),
        ]
    )
    assert "A run would fail: see disk." in text
    assert "full [of] files" in text
    assert "tidy up" in text


def test_a_contact_sheet_shows_what_the_network_would_see(drawings: Path, tmp_path: Path) -> None:
    config = load_config(None, ("dataset.kind=drawing",))
    sheet = tmp_path / "sheet.png"
    _, found = doctor.check_data(config, data=drawings, environ={})
    doctor.write_contact_sheet(sheet, config, found)
    with Image.open(sheet) as opened:
        assert min(opened.size) > 300
    with pytest.raises(InputError, match="--contact-sheet: there are no images here yet"):
        doctor.write_contact_sheet(sheet, config, None)
    with pytest.raises(InputError, match=r"--contact-sheet: .*sheet\.png"):
        doctor.write_contact_sheet(sheet / "a", config, found)
