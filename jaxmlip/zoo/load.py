"""`load`: a potential by the name of a public model, or by the path of a folder or a checkpoint."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jaxmlip.models.mace import MACE
from jaxmlip.potential import Potential
from jaxmlip.system.runtime import set_up_process
from jaxmlip.zoo.cache import load_known
from jaxmlip.zoo.dispersion import split_name, with_dispersion
from weights_convert.published import MODELS


def load(
    name_or_path: str | Path,
    dtype: str = "float32",
    head: str | None = None,
    products: Literal["xla", "cuequivariance"] = "xla",
    dispersion: str | None = None,
) -> Potential:
    """The potential called `name_or_path`, computing in float32 or float64.

    A name of `MODELS` is looked for among the models converted before, then in the folder that the
    environment variable JAXMLIP_WEIGHTS names, then fetched from its published place; it is converted once.
    Any other text is the path of a folder that Potential.save wrote, or of a checkpoint (a file, or a folder
    for an architecture that is published as one), which is converted in memory. `head` selects the head of a
    checkpoint, or of a public model, with several. With `products` a MACE uses the kernels of
    cuequivariance-jax for NVIDIA GPUs.
    `dispersion`, "d3bj", adds what `jaxmlip.zoo.dispersion.with_dispersion` says; so does the same at the end
    of the name, as in "chgnet-0.3.0+d3bj".

    Raises ValueError for an unknown name, for `head` with anything that has none, without it for a public
    model with several, for `products` with anything but a MACE and for `dispersion` as `with_dispersion`
    does; ImportError if those kernels are not installed; FileNotFoundError if the path does not exist;
    FetchError if a file cannot be obtained or is not the published one; ManifestError for a folder and
    weights_convert.torch_zip.CheckpointError for a file that cannot be read.
    """
    set_up_process()
    if isinstance(name_or_path, str) and not Path(name_or_path).expanduser().exists():
        name_or_path, named = split_name(name_or_path)
        if named and dispersion not in (None, named):
            raise ValueError(f"found dispersion={dispersion!r} and {named!r} in the name, needed one.")
        dispersion = named or dispersion
    potential = _load(name_or_path, head).astype(dtype)
    potential = potential if products == "xla" else _with_products(potential, products)
    return potential if dispersion is None else with_dispersion(potential, dispersion)


def load_each(models: Sequence[str], dtype: str = "float32", heads: Sequence[str] = ()) -> list[Potential]:
    """The potential of each of `models`, with distinct names, computing in `dtype`.

    `heads` belong to the models that are checkpoint files or public ones with heads, one for each in their
    order; a single one is for all of them. Raises ValueError if their number differs, if a model is given
    twice, and as `load` does.
    """
    bases = [m if Path(m).expanduser().exists() else split_name(m)[0] for m in models]
    files = [bool(MODELS[m].heads) if m in MODELS else Path(m).expanduser().is_file() for m in bases]
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
    heads = MODELS[name_or_path].heads if known else {}
    if heads and head not in heads:
        raise ValueError(
            f"found head={head!r}, needed one of those that {name_or_path} has: {', '.join(heads)}. On the "
            f"command line: --head {next(iter(heads))}."
        )
    if head is not None and (known or path.is_dir()) and not heads:
        raise ValueError(
            f"found head={head!r}, but {name_or_path} has one head; only a checkpoint file can have several."
        )
    if known:
        return load_known(name_or_path, head) if heads else load_known(name_or_path)
    if path.exists():
        from weights_convert.conversion import convert_file, is_checkpoint  # late, because it imports jaxmlip

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
