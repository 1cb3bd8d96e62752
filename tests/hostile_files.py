"""Hostile and damaged model files, made at random from a seed, each read in a child of its own.

    python tests/hostile_files.py 200            # one line of JSON for each variant that fails, then a count
    python tests/hostile_files.py 200 --only 17  # what becomes of one

This process imports the library once and forks; a child makes its variant, reads it and says what came of it:
loaded, or refused in one line. Anything else fails: another exception, code that ran, a message of several
lines, too much memory or time, or a potential that was loaded with numbers that none has.
"""

import argparse
import copy
import gzip
import itertools
import json
import os
import pickletools
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch_files as made

SECONDS = 20
MEMORY = 2_000_000_000  # bytes of address space, beyond those of this process
LONGEST = 400  # characters of a message; the files lie in the working directory, so that paths are short
SEED = 20261128
RAN = {
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "socket.connect",
}

NASTY = [
    *(None, True, False, 0, 1, 2, 3, 4, -1, -3, 7, 0.5, 1e-30, 1e30, 1e308, 10**9, 10**12, 10**30, 10**5000),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "x" * 10**6, "\x1b[31m\nevil\r", "\u202e", "silu"),
    *([], {}, (), [1], [0], [-1], [1] * 10**4, [[]], {"a": 1}, {"\x1b[2J": None}, b"\x00", [None], ["x"]),
]
ARRAYS = [
    np.array(np.nan, np.float32), np.full(3, np.inf), np.zeros(0), np.ones((1, 10**6), np.float32),
    np.ones(4, np.int64), np.ones(4, bool), np.ones((1,) * 30), np.full((4, 4), 1e300), np.float32(1),
]  # fmt: skip
DOUBLED = b"K\x01" + b"2\x86" * 45  # a tuple of two, each of which is a tuple of two, and so on
SNIPPETS = [
    b"Nr\x00\x00\x00\x100", b"Np400000000\n0", DOUBLED + b"0", b"}" + DOUBLED + b"K\x01s0",
    DOUBLED + b"Q0", made.call("__builtin__", "frozenset", b"](" + DOUBLED + b"e") + b"0",
    made.call("os", "system", made.plain("touch CANARY")) + b"0",
    made.call("torch.os", "system", made.plain("touch CANARY")) + b"0",
    made.call("builtins", "eval", made.plain("open('CANARY', 'w')")) + b"0",
    made.call("builtins", "getattr", made.name("torch", "x"), made.plain("__globals__")) + b"0",
    made.call("builtins", "bytearray", made.plain(10**10)) + b"0", b"\x96\x00\x00\x00\x00\x10\x00\x00\x000",
    made.name("\x1b[31mevil", "\x1b[2J") + b"0", made.name("x" * 10**6, "y") + b"0",
    b"(" * 10**5 + b"1" * 10**5, b"]" * 10**5 + b"0" * 10**5, b"N" + b"\x85" * 10**5 + b"0",
    b"}N" + b"\x85" * 10**5 + b"Ns0",
    made.call("numpy", "dtype", DOUBLED) + b"0", made.call("torch", "device", DOUBLED) + b"0",
    made.call("torch", "Size", made.plain([1] * 1000)) + b"0",
    b"\x8b\x00\x00\x01\x00" + b"\xff" * 65536 + b"0",
    made.call("collections", "OrderedDict", b"](" + made.tuple_of(DOUBLED, b"N") + b"e") + b"0",
    b"\x82\x01", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x80\xff", b"0", b".", b"\x94" * 1000,
    *(
        made.tensor(made.storage("0", "FloatStorage", count), offset, size, stride) + b"0"
        for count, offset, size, stride in [
            (1, 0, (10**7,), (0,)), (1, 0, (2**62, 2**62), (0, 0)), (10**18, 0, (1,), (1,)),
            (1, -1, (1,), (1,)), (1, 0, (0, 2**60), (1, 1)), (1, 0, (1,) * 100, (1,) * 100),
        ]
    ),
    made.tensor(made.storage("0", "FloatStorage", 1), 0, (10**6,), (0,)) * 200 + b"0" * 200,
]  # fmt: skip


def pickle_of(path: Path) -> tuple[dict[str, bytes], str]:
    """The entries of a checkpoint, and the name of its pickle among them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    return entries, next(name for name in entries if name.endswith("/data.pkl"))


def rewrite(path: Path, change) -> None:
    """Replaces the pickle of the checkpoint at `path` by what `change` makes of it; the sums are right."""
    entries, name = pickle_of(path)
    entries[name] = change(entries[name])
    with zipfile.ZipFile(path, "w") as archive:
        for key, content in entries.items():
            archive.writestr(key, content)


def changed_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Bytes replaced, removed, doubled or cut off."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at = rng.randrange(len(raw)) if raw else 0
        match rng.randrange(6):
            case 0:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                raw[at : at + 1] = bytes([(raw[at] if raw else 0) ^ 1 << rng.randrange(8)])
            case 2:
                del raw[at : at + rng.choice([1, 4, 100])]
            case 3:
                raw[at:at] = raw[at : at + rng.choice([1, 4, 100, 1000])]
            case 4:
                raw[at : at + 4] = b"\xff\xff\xff\x7f"
            case 5:
                del raw[at if rng.random() < 0.3 else len(raw) :]
    return bytes(raw)


def changed_opcodes(raw: bytes, rng: random.Random) -> bytes:
    """Opcodes removed, doubled, swapped or given other numbers, or a snippet between two of them."""
    starts = [position for _, _, position in pickletools.genops(raw)] + [len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(starts)]
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(1, len(pieces) - 1)
        match rng.randrange(5):
            case 0:
                del pieces[at]
            case 1:
                pieces.insert(at, pieces[at])
            case 2:
                other = rng.randrange(1, len(pieces) - 1)
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case 3:
                numbers = [k for k, piece in enumerate(pieces) if piece[:1] in b"KMJ\x8aGq"]
                value = rng.choice([0, -1, 2**31 - 1, 10**9, 10**30, float("nan"), 1e308, None, "x", [], ()])
                pieces[rng.choice(numbers)] = made.plain(value)
            case 4:
                pieces.insert(at, rng.choice(SNIPPETS))
    return b"".join(pieces)


def places(value, path=()):
    """The paths to all that lies in dictionaries and lists within `value`."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(inner, (*path, key))


def put(value, rng: random.Random, nasty) -> None:
    """Replaces, removes or adds something within the dictionaries and lists of `value`."""
    for _ in range(rng.choice([1, 1, 1, 3])):
        found = list(places(value))
        if not found:
            return
        *above, last = rng.choice(found)
        home = value
        for key in above:
            home = home[key]
        match rng.randrange(8):
            case 0 if isinstance(home, dict):
                del home[last]
            case 1 if isinstance(home, dict):
                home[rng.choice([5, "new", "\x1b[31m\n", "x" * 10**4, ""])] = rng.choice(nasty)
            case _:
                home[last] = rng.choice(nasty)


def spoilt(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """An array with another type, shape or with numbers that are none."""
    array = array.copy()
    match rng.randrange(6):
        case 0 if array.size:
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -np.inf])
        case 1:
            array = array.astype(rng.choice([np.int32, np.bool_, np.float16, np.float64]))
        case 2:
            array = array.reshape(-1)[:-1]
        case 3:
            array = array[None]
        case 4:
            array = array.T
        case 5:
            array = rng.choice(ARRAYS)
    return np.asarray(array)


class Made:
    """The honest files of each kind, and what is made of them."""

    def __init__(self, home: Path):
        self.home = home
        self.chgnet, self.m3gnet = made.small_chgnet(), made.small_m3gnet()
        self.mattersim, self.matgl_chgnet = made.small_mattersim(), made.small_matgl_chgnet()
        made.save(home / "chgnet.pt", self.chgnet)
        made.save(home / "mattersim.pth", self.mattersim)
        made.save_matgl(home / "m3gnet", *self.m3gnet)
        made.save_matgl(home / "matgl-chgnet", *self.matgl_chgnet)
        golden = Path(__file__).parent / "golden"
        for name in ("density", "soft", "two-heads"):
            packed = golden / "mace" / f"{name}.model.gz"
            (home / f"{name}.model").write_bytes(gzip.decompress(packed.read_bytes()))
        packed = golden / "chgnet" / "widths.pth.tar.gz"
        (home / "options.tar").write_bytes(gzip.decompress(packed.read_bytes()))
        from weights_convert import torch_zip
        from weights_convert.conversion import convert_file

        self.options = torch_zip.read(home / "options.tar")

        self.files = [
            "chgnet.pt",
            "options.tar",
            "m3gnet",
            "matgl-chgnet",
            "mattersim.pth",
            "density.model",
            "soft.model",
            "two-heads.model",
        ]
        self.folders = [f"of_{file}" for file in self.files[:-1]]
        for file in self.files:
            potential = convert_file(home / file, head="pbe" if "heads" in file else None)
            if f"of_{file}" in self.folders:
                potential.save(home / f"of_{file}")

    def variant(self, rng: random.Random) -> Path:
        """A new file or folder in the working directory."""
        way = rng.choice([self.raw, self.program, self.opcodes, self.values, self.attributes, self.converted])
        return way(rng)

    def copied(self, name: str) -> Path:
        target = Path(f"v{Path(name).suffix}")
        source = self.home / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
        return target

    def archive(self, rng) -> tuple[Path, Path]:
        """A copy of what is to be read, and the archive in it."""
        target = self.copied(rng.choice([*self.files[:-1] * 3, self.files[-1]]))  # the last is large
        return target, target / "state.pt" if target.is_dir() else target

    def raw(self, rng) -> Path:
        target, file = self.archive(rng)
        file.write_bytes(changed_bytes(file.read_bytes(), rng))
        return target

    def program(self, rng) -> Path:
        target, file = self.archive(rng)
        rewrite(file, lambda raw: changed_bytes(raw, rng))
        return target

    def opcodes(self, rng) -> Path:
        target, file = self.archive(rng)
        if rng.random() < 0.5:
            snippet = b"".join(rng.choices(SNIPPETS, k=rng.choice([1, 1, 3])))
            rewrite(file, lambda raw: raw[:2] + snippet + raw[2:])
        else:
            rewrite(file, lambda raw: changed_opcodes(raw, rng))
        return target

    def values(self, rng) -> Path:
        """Options and tensors of CHGNet, MatterSim, M3GNet and matgl's CHGNet."""
        target = Path("v")
        kind = rng.choice(["chgnet", "options", "mattersim", "m3gnet", "matgl-chgnet"])
        if kind == "mattersim":
            checkpoint = copy.deepcopy(self.mattersim)
            self._change(rng, checkpoint["model"], checkpoint["model_args"], checkpoint)
            return made.save(Path("v.pth"), checkpoint)
        if kind in ("chgnet", "options"):
            checkpoint = copy.deepcopy(self.chgnet if kind == "chgnet" else self.options)
            model = checkpoint["model"]
            self._change(rng, model["state_dict"], model["model_args"], checkpoint)
            return made.save(Path("v.pt"), checkpoint)
        state, options = copy.deepcopy(self.m3gnet if kind == "m3gnet" else self.matgl_chgnet)
        self._change(rng, state, options["kwargs"]["model"]["init_args"], options)
        made.save_matgl(target, {key: x for key, x in state.items() if isinstance(x, np.ndarray)}, {})
        (target / "model.json").write_text(json.dumps(options, default=str))
        return target

    def _change(self, rng, state, options, whole) -> None:
        match rng.randrange(3):
            case 0:
                name = rng.choice(list(state))
                state[name] = spoilt(state[name], rng)
            case 1:
                options[rng.choice(list(options))] = rng.choice(NASTY)
            case 2:
                put(whole, rng, NASTY)

    def attributes(self, rng) -> Path:
        """Attributes and tensors of MACE, changed after they were read."""
        from weights_convert import torch_zip

        file = self.copied(rng.choice(["density.model", "soft.model"] * 2 + ["two-heads.model"]))
        checkpoint = torch_zip.read(file)
        homes = []

        def collect(record, level=0) -> None:
            for part in (
                record.state,
                *(record.state.get(p) for p in ("_parameters", "_buffers", "_modules")),
            ):
                if isinstance(part, dict):
                    homes.append(part)
            for inner in (record.state.get("_modules") or {}).values():
                if isinstance(inner, torch_zip.Record) and isinstance(inner.state, dict):
                    collect(inner, level + 1)

        collect(checkpoint)
        for _ in range(rng.choice([1, 1, 2])):
            home = rng.choice([home for home in homes if home])
            name = rng.choice([key for key in home if not str(key).startswith("__")] or list(home))
            value = home[name]
            if isinstance(value, np.ndarray) and rng.random() < 0.7:
                home[name] = spoilt(value, rng)
            elif isinstance(value, list | tuple) and value and rng.random() < 0.5:
                home[name] = [*value[:-1], rng.choice(NASTY)]
            else:
                home[name] = rng.choice([*NASTY, checkpoint, *ARRAYS])
        torch_zip.read = lambda _: checkpoint
        return file

    def converted(self, rng) -> Path:
        """Folders that Potential.save wrote."""
        target = self.copied(rng.choice(self.folders))
        manifest, tensors = target / "manifest.json", target / "model.safetensors"
        match rng.randrange(5):
            case 0:
                manifest.write_bytes(changed_bytes(manifest.read_bytes(), rng))
            case 1:
                tensors.write_bytes(changed_bytes(tensors.read_bytes(), rng))
            case 2:
                import safetensors.numpy

                found = safetensors.numpy.load_file(tensors)
                name = rng.choice(list(found))
                found[name] = np.ascontiguousarray(spoilt(found[name], rng))
                safetensors.numpy.save_file(found, tensors)
            case _:
                said = json.loads(manifest.read_text())
                options = said["hyperparameters"]
                if rng.random() < 0.6:
                    options[rng.choice(list(options))] = rng.choice(NASTY)
                else:
                    put(said, rng, NASTY)
                manifest.write_text(json.dumps(said, default=str))
        return target


def outcome(files: Made, index: int) -> dict[str, object]:
    """What becomes of one variant: `fault` is empty where it is as it should be."""
    from jaxmlip.system.borders import RefusedError
    from jaxmlip.zoo.load import load

    sys.set_int_max_str_digits(0)  # to make variants
    rng = random.Random(f"{SEED} {index}")
    path = files.variant(rng)
    sys.set_int_max_str_digits(4300)
    ran: list[str] = []
    sys.addaudithook(lambda event, _: ran.append(event) if event in RAN else None)
    said, fault, began = "loaded", "", time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            potential = load(path, head=rng.choice([None, None, "pbe"]) if path.is_file() else None)
            fault = unsound(potential)
        except RefusedError as error:
            said = str(error)
            if isinstance(error.__cause__, MemoryError | RecursionError):
                fault = f"{type(error.__cause__).__name__} rather than a bound"
        except (FileNotFoundError, ValueError) as error:
            said = str(error)
            fault = "" if "is neither" in said or "has one head" in said else traceback.format_exc()
        except BaseException:
            fault = traceback.format_exc()
    lines = [said, *(str(warning.message) for warning in told)]
    if ran or Path("CANARY").exists():
        fault = f"something ran: {ran}"
    elif any(len(line) > LONGEST or not line.isprintable() for line in lines):
        fault = "a message is too long or not one line of text"
    elif len(told) > 1:
        fault = f"{len(told)} warnings"
    return {"said": said, "fault": fault, "seconds": time.perf_counter() - began, "path": str(path)}


def unsound(potential) -> str:
    """What is wrong with a potential that was loaded."""
    import jax

    from jaxmlip.models import limits

    limits.check(potential.model.config)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(potential.params)]
    if not all(leaf.dtype.kind == "f" and np.isfinite(leaf.astype(np.float32)).all() for leaf in leaves):
        return "loaded with numbers that are no weights"
    if not potential.elements or not potential.name.isprintable():
        return "loaded without elements or with a name that is no text"
    return ""


def in_a_child(files: Made, index: int) -> dict[str, object]:
    """As `outcome`, in a process of its own with little memory and time."""
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if not child:
            os.chdir(folder)
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
            signal.alarm(SECONDS)
            try:
                found = outcome(files, index)
            except BaseException:
                found = {"said": "", "fault": "the variant was not made: " + traceback.format_exc()}
            with os.fdopen(writing, "w") as pipe:
                json.dump(found, pipe)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        status = os.waitpid(child, 0)[1]
    if not text:
        ended = signal.Signals(status & 127).name if status & 127 else f"exit code {status >> 8}"
        return {"index": index, "said": "", "fault": f"ended by {ended}: too long, or out of memory"}
    return {"index": index, **json.loads(text)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    with tempfile.TemporaryDirectory() as home:
        files = Made(Path(home))
        if arguments.only is not None:
            print(json.dumps(in_a_child(files, arguments.only), indent=1))
            return
        loaded, slowest = 0, 0.0
        for index in range(arguments.count):
            found = in_a_child(files, index)
            loaded += found["said"] == "loaded"
            slowest = max(slowest, found.get("seconds", SECONDS))
            if found["fault"]:
                print(json.dumps(found))
        print(json.dumps({"tried": arguments.count, "loaded": loaded, "slowest": round(slowest, 2)}))


if __name__ == "__main__":
    main()
