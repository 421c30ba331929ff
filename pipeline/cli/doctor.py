"""`oneshot doctor`: looks at what a run needs before it starts."""

import importlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from rich.text import Text

from components.evaluator.evidence import evidence, lack_of_evidence
from components.evaluator.settings import one_shot_metric
from components.trainer.outlook import expected
from data_ingest.durable import write_atomically
from data_ingest.errors import InputError, ReadError
from data_ingest.records.catalog import count_reasons, told_reasons
from data_ingest.sampling.protocols import EVAL_SPLIT, TRAIN_SPLIT
from data_ingest.sampling.splits import FEW_CLASSES
from data_ingest.sources.dataset import Dataset, refuse_wildcards
from data_ingest.sources.kinds import form_of
from data_ingest.sources.layout import ImageReader
from data_ingest.sources.resolve import find, on_disk
from pipeline.cli.shared import CONFIGURED, DATA, OUTPUT, Context, add_command, named_path
from pipeline.config import PipelineConfig
from pipeline.releases.label_file import served_model
from pipeline.runs.status import ExitCode
from pipeline.runs.workspace import Workspace, new_run_id
from pipeline.settings import PushSettings
from serving.saved_model.versions import outdated

_PYTHONS: Final = ((3, 10), (3, 13))
"""Oldest and newest version that the stack is published for."""
_SHOWN_PACKAGES: Final = ("tfx", "tensorflow", "keras", "apache-beam", "ml-metadata", "numpy")
# Their native parts are the ones that scripts/bootstrap.py may have to adapt; importing them shows.
_NATIVE_MODULES: Final = {
    "ml-metadata": "ml_metadata.metadata_store.metadata_store",
    "tensorflow-data-validation": "tensorflow_data_validation",
}
_MOST_IMAGES_READ: Final = 20_000
_SHOWN: Final = 16
"""Images on a contact sheet."""
_SAMPLED: Final = 32
"""That are looked at for them, since some may be of no use."""
_FATAL_DISK_BYTES: Final = 2**30
_SPARSE_DISK_BYTES: Final = 4 * 2**30
_SPARSE_MEMORY_BYTES: Final = 3 * 2**30
_FATAL_ADDRESSES_BYTES: Final = 3 * 2**30
_SPARSE_ADDRESSES_BYTES: Final = 8 * 2**30


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    fatal: bool  # a run cannot succeed unless this is ok
    detail: str  # what was found, in one line
    remedy: str = ""  # what to do about it; empty where it is ok

    @property
    def stops_a_run(self) -> bool:
        return self.fatal and not self.ok


def add_parsers(commands: Any) -> None:
    """Adds the command to those of `oneshot`."""
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        OUTPUT,
        CONFIGURED,
        DATA,
        text="find out what would stop a run here",
    )
    parser.add_argument(
        "--contact-sheet",
        type=named_path,
        metavar="FILE",
        help="write a PNG of some images, and beside each what the network would see of it",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="replace a damaged metadata.db by what the output folder still tells of the history",
    )


def _doctor(context: Context) -> ExitCode:
    """Looks at what is installed, the devices, the data, the disk and the output folder, and says
    what would stop a run and what to do about it.

    Exit code 1: something would.
    """
    config, output = context.config, context.workspace.root
    if context.options.repair:
        return _repair(context)
    with context.quiet_libraries():
        of_data, dataset = check_data(config, data=context.options.data, environ=os.environ)
        checks = diagnose(of_data, output=output)
        checks.append(check_history(context))
        checks.append(check_model(context.workspace, context.config.push))
    context.show([asdict(check) for check in checks], *told(checks))
    if (sheet := context.options.contact_sheet) is not None:
        with context.quiet_libraries():
            write_contact_sheet(sheet, config, dataset)
    return ExitCode.FAILED if any(check.stops_a_run for check in checks) else ExitCode.DONE


def _repair(context: Context) -> ExitCode:
    from pipeline.runs.metadata_store import locate
    from pipeline.runs.repair import damage, repair

    config, workspace = context.config, context.workspace
    location = locate(config.metadata, workspace)
    file = location.sqlite_file
    if file is None:
        raise InputError(f"{location}: a server's database is repaired by its own means")
    with location.lease().held(run_id=new_run_id(), command="doctor"):
        reason = damage(file, workspace)
        if not reason:
            context.show({"damage": ""}, f"Nothing is wrong with {file}.")
            return ExitCode.DONE
        with context.quiet_libraries():
            done = repair(file, workspace, pipeline_name=config.pipeline_name)
    context.show(
        {"damage": reason, **asdict(done), "damaged": str(done.damaged)},
        f"{file} was {reason}. The new one knows {done.runs} runs and the versions "
        f"{', '.join(map(str, done.versions)) or '(none)'}; labels are as they were.",
        "Lost: the cache, so that every step runs again; who promoted and rolled back what; and "
        "what could not be read of the runs, such as their spans. The damaged file and all "
        f"artifacts are in {done.damaged}: delete that folder when you miss nothing.",
    )
    return ExitCode.DONE


def diagnose(of_data: Sequence[Check], *, output: Path) -> list[Check]:
    """Looks at all that a run needs besides data, of which there are checks; changes nothing."""
    root = Path(__file__).resolve().parents[2]
    adapted = adapted_modules(Path(sys.prefix))
    return [
        check_python(sys.version_info[:2]),
        check_packages(root / "requirements.lock"),
        *(
            check_native_module(package, module, adapted=adapted)
            for package, module in _NATIVE_MODULES.items()
        ),
        check_devices(),
        check_memory(Path("/proc/meminfo")),
        *of_data,
        check_writable(output),
        check_disk(output),
    ]


def told(checks: Sequence[Check]) -> Iterator[Text]:
    """A line for each check, with the remedy under those that need one, and a closing line."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = ("ok  ", "green") if check.ok else ("FAIL", "bold red")
        if not check.ok and not check.fatal:
            mark = ("note", "yellow")
        yield Text.assemble(mark, f" {check.name:<{width}}  {check.detail}")
        if check.remedy:
            yield Text(f"{'':<{width + 7}}{check.remedy}")
    stopping = [check.name for check in checks if check.stops_a_run]
    if stopping:
        yield Text(f"A run would fail: see {', '.join(stopping)}.", "bold red")
    else:
        yield Text("Nothing here would stop a run.")


def _check(name: str, ok: bool, detail: str, *, remedy: str, fatal: bool = True) -> Check:
    return Check(name, ok, fatal, detail, "" if ok else remedy)


def check_python(version: tuple[int, ...]) -> Check:
    """Whether the packages are published for this Python."""
    oldest, newest = _PYTHONS
    return _check(
        "python",
        oldest <= version[:2] <= newest,
        f"{'.'.join(map(str, version))} at {sys.executable}",
        remedy="install Python 3.10 to 3.13, then `make PYTHON=python3.11 setup`",
    )


def check_packages(lock: Path, installed: Callable[[str], str] = metadata.version) -> Check:
    """Whether the pinned versions are the installed ones.

    Args:
      lock: pins, one `name==version ; marker` a line, below it indented what else is said of it.
        Without it (a package installed elsewhere) the versions are only shown.
      installed: gives a package's version, or raises `PackageNotFoundError`.
    """
    lines = lock.read_text().splitlines() if lock.is_file() else []
    pins = [Requirement(line.rstrip("\\")) for line in lines if line and line[0] not in " #"]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    missing, different = [], []
    for pin in pins:
        try:
            version = installed(pin.name)
        except metadata.PackageNotFoundError:
            missing.append(pin.name)
            continue
        if not pin.specifier.contains(version, prereleases=True):
            different.append(f"{pin.name} {version} instead of {str(pin.specifier)[2:]}")
    faults = {"missing": missing, "not as pinned": different}
    found = [f"{fault}: {', '.join(names[:10])}" for fault, names in faults.items() if names]
    if not found:
        shown = ", ".join(f"{name} {installed(name)}" for name in _SHOWN_PACKAGES)
        found = [shown, f"{len(pins)} as pinned"]
    return _check(
        "packages",
        not (missing or different),
        "; ".join(found),
        remedy="`make setup` brings .venv up to date; if it does not: `make clean setup`",
        fatal=bool(missing) or not different,
    )


def check_native_module(
    package: str, module: str, *, adapted: Mapping[str, Sequence[str]]
) -> Check:
    """Whether a package with a native part can be imported, and whether that part was adapted.

    `adapted` is what `adapted_modules` has found: symbol versions this host lacks, by file.
    """
    try:
        importlib.import_module(module)
    except Exception as error:
        return _check(
            package,
            False,
            f"cannot be imported: {type(error).__name__}: {error}",
            remedy="`make clean setup` installs and adapts it anew",
        )
    folder = module.partition(".")[0]
    lacks = [name for path, names in adapted.items() if path.startswith(folder) for name in names]
    how = f"adapted to this host, which lacks {', '.join(lacks)}" if lacks else "as published"
    return Check(package, ok=True, fatal=True, detail=f"loads; its native part is {how}")


def adapted_modules(environment: Path) -> dict[str, list[str]]:
    """What the set-up noted down in an environment: adapted files, and why; empty where none."""
    try:
        stamp = json.loads((environment / "oneshot-setup.json").read_text())
    except (OSError, ValueError):
        return {}
    return {str(path): [str(name) for name in names] for path, names in stamp["adapted"].items()}


def check_devices(driver: Path = Path("/proc/driver/nvidia/version")) -> Check:
    """What TensorFlow computes on; a GPU that it does not see is worth a note."""
    try:
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
    except Exception as error:
        return _check(
            "devices",
            False,
            f"TensorFlow does not work: {type(error).__name__}: {error}",
            remedy="`make clean setup` installs it anew",
        )
    cores = f"{len(os.sched_getaffinity(0))} CPU cores"
    if not gpus and driver.exists():
        return _check(
            "devices",
            False,
            f"{cores}; there is an NVIDIA driver, but TensorFlow sees no GPU",
            remedy="`make setup GPU=1` adds CUDA",
            fatal=False,
        )
    found = ", ".join(str(name or "GPU") for name in names) if gpus else "no GPU"
    return Check("devices", ok=True, fatal=True, detail=f"{cores}, {found}")


def check_memory(meminfo: Path) -> Check:
    """Whether there is room for TensorFlow, TFX and the images, and they may use it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _SPARSE_ADDRESSES_BYTES:
        return _check(
            "memory",
            False,
            f"limited to {limit / 2**30:.1f} GiB of addresses (ulimit -v)",
            remedy="`ulimit -v unlimited`: TensorFlow reserves far more addresses than memory",
            fatal=limit < _FATAL_ADDRESSES_BYTES,
        )
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return Check("memory", ok=True, fatal=False, detail="unknown")
    return _check(
        "memory",
        available >= _SPARSE_MEMORY_BYTES,
        f"{available / 2**30:.1f} GiB available",
        remedy="close other programs: a run takes about 3 GiB",
        fatal=False,
    )


def check_data(
    config: PipelineConfig, *, data: Path | None, environ: Mapping[str, str]
) -> tuple[list[Check], Dataset | None]:
    """Where a run would take its images from, and whether it could train on and judge by them.

    From `data`, else from where `config` and `environ` say; no server is asked. Besides, the images
    that are here.
    """
    try:
        found = on_disk(config.dataset, data=data, environ=environ)
        described = found.description if found else find(config.dataset, data=data, environ=environ)
    except InputError as error:
        remedy = "name a folder or zip of images: --data PATH, or OMNIGLOT_DIR=PATH"
        return [_check("data", False, str(error), remedy=remedy)], None
    check = Check("data", ok=True, fatal=True, detail=described)
    return [check, *(() if found is None else check_images(config, found))], found


def check_images(config: PipelineConfig, dataset: Dataset) -> Iterator[Check]:
    """What a run would refuse of images that are here, what it would bless nothing for, and what
    can be expected of so many classes.

    Omniglot's images are known; of one's own each is read, where they are not more than 20,000.
    """
    from data_ingest.records.plan import make_plan
    from data_ingest.records.read import catalog_of_images, catalog_of_names, list_inputs

    try:
        inputs = list_inputs(dataset.containers(), writer_pattern=config.dataset.writer_pattern)
        count = sum(len(portion.images) for portion in inputs.portions)
        reads = dataset.source == "folder" and count <= _MOST_IMAGES_READ
        plan = make_plan(
            (catalog_of_images if reads else catalog_of_names)(inputs),
            config.pairs,
            official=inputs.official.trials,
            max_rejected_share=config.dataset.max_rejected_share,
        )
    except (InputError, ReadError) as error:
        yield _check("images", False, str(error), remedy="put that right, and ask again")
        return
    remedy = "put that right, or choose another --data"
    how = "each read" if reads else "by their names"
    detail = plan.problem or f"{count:,}, {how}"
    if not plan.problem and plan.catalog.rejected:
        counts = count_reasons(bad[1:] for bad in plan.catalog.rejected)
        detail += f"; left out: {told_reasons(counts)}"
    yield _check("images", not plan.problem, detail, remedy=remedy)
    if plan.problem:
        return
    train, held_out = (len(plan.index_of(split).genuine) for split in (TRAIN_SPLIT, EVAL_SPLIT))
    yield _check(
        "classes",
        min(train, held_out) >= FEW_CLASSES,
        f"{expected(train, dataset.kind)}; {held_out} held out to choose weights",
        remedy=f"add classes: of fewer than {FEW_CLASSES} no validation tells anything",
        fatal=False,
    )
    asked = evidence(config.evaluate, plan.protocols)
    there = sorted(one_shot_metric(*trials) for trials in plan.protocols if trials[1])
    yield _check(
        "trials",
        not asked.lacking,
        lack_of_evidence(asked.lacking, there) if asked.lacking else ", ".join(there),
        remedy="a run would train, and bless nothing",
        fatal=False,
    )


def write_contact_sheet(path: Path, config: PipelineConfig, found: Dataset | None) -> None:
    """Writes what the network would see of some images, spread over the classes.

    Raises:
      InputError: there are no images here, none can be used, or `path` cannot be written.
    """
    if found is None:
        raise InputError("--contact-sheet: there are no images here yet: name some by --data")
    files = found.images()
    picked = (files[number * len(files) // _SAMPLED] for number in range(_SAMPLED))
    form = form_of(found.kind, config.dataset.max_side, config.dataset.crop)
    with ImageReader(form) as reader:
        images = [encoded for _, _, encoded in islice(reader.sound(dict.fromkeys(picked)), _SHOWN)]
    if not images:
        raise InputError("--contact-sheet: none of the images looked at can be used")
    from components.trainer.contact_sheet import contact_sheet

    drawn = contact_sheet(images, config.train.recipe(found.kind).preprocessing)
    try:
        write_atomically(path, drawn)
    except OSError as error:
        raise InputError(f"--contact-sheet: {error}") from error


def check_writable(output: Path) -> Check:
    """Whether a run could write where it is to write."""
    try:
        refuse_wildcards(output.absolute(), named_by="--output")
    except InputError as error:
        return _check("output", False, str(error), remedy="name another folder: --output DIR")
    place = _existing_part(output)
    writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return _check(
        "output",
        writable,
        f"{output}" if writable else f"{place} is not a folder that you may write to",
        remedy="name another folder: --output DIR",
    )


def check_disk(output: Path) -> Check:
    """Whether what a run makes fits on the disk."""
    free = shutil.disk_usage(_existing_part(output)).free
    return _check(
        "disk",
        free >= _SPARSE_DISK_BYTES,
        f"{free / 2**30:.1f} GiB free for {output}",
        remedy="free some space, or name a folder on a larger disk: --output DIR",
        fatal=free < _FATAL_DISK_BYTES,
    )


def check_history(context: Context) -> Check:
    """Whether ML Metadata's file can be read; a server is not asked."""
    try:
        location = context.metadata
    except InputError as error:
        return Check("history", ok=False, fatal=True, detail=str(error))
    return Check("history", ok=True, fatal=True, detail=str(location))


def check_model(workspace: Workspace, settings: PushSettings) -> Check:
    """Whether the model that is served sees images as this release does."""
    try:
        folder = served_model(workspace, settings)
    except InputError as error:
        return _check("model", False, str(error), remedy="correct or delete it", fatal=False)
    if folder is None:
        return Check("model", ok=True, fatal=False, detail="none is pushed yet")
    lacking = outdated(folder)
    return _check(
        "model",
        not lacking,
        f"version {folder.name} {'is of an earlier release' if lacking else 'is up to date'}",
        remedy=f"`oneshot run` exports one that {lacking}",
        fatal=False,
    )


def _existing_part(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())
