"""Takes the kernel out of a release's packages: the bare ELF image, and the modules that the guest
needs."""

import fnmatch
import lzma
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import NamedTuple

from tapwright.errors import ImageError

_SETUP_MAGIC = b"HdrS"

_GZIP, _XZ, _LZMA, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x28\xb5\x2f\xfd"


class Module(NamedTuple):
    """A module as insmod(8) takes it. `file` is its name, such as "virtio_net.ko". `path` is its
    place below the directory of the kernel's modules, without the ending of a compressed file."""

    file: str
    content: bytes
    path: str = ""


def extract_elf(bzimage: bytes) -> bytes:
    """Unpack the ELF image (vmlinux) from a bzImage.

    A guest started from it by PVH does not spend seconds of emulated time on unpacking it.
    The payload's place is in the setup header (Documentation/arch/x86/boot.rst: setup_sects,
    payload_offset, payload_length). Raises ImageError.
    """
    if bzimage[0x202:0x206] != _SETUP_MAGIC:
        raise ImageError("the kernel package holds no bzImage")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The payload ends with four bytes that give the unpacked size.
    elf = _decompressed(bzimage[start : start + length - 4], "the kernel")
    if not elf.startswith(b"\x7fELF"):
        raise ImageError("the kernel's payload is not an ELF image")
    return elf


def select_modules(directory: Path, wanted: tuple[str, ...]) -> list[Module]:
    """Return the wanted modules and all that they depend on, in the order of loading.

    `directory` is a /lib/modules/VERSION, its files compressed or not. Modules built into the
    kernel need no file. Raises ImageError for a missing module.
    """
    files = {_name(path.name): path for path in sorted(directory.rglob("*.ko*"))}
    builtin = {_name(Path(line).name) for line in _lines(directory / "modules.builtin")}
    order: dict[str, Module] = {}

    def visit(name: str) -> None:
        if name in builtin or name in order:
            return
        if name not in files:
            raise ImageError(f"the kernel's packages have no module {name}")
        path = files[name]
        content = path.read_bytes()
        if path.suffix != ".ko":
            content = _decompressed(content, path.name)
        for dependency in _dependencies(content):
            visit(_name(dependency))
        file = path.name.partition(".")[0] + ".ko"
        order[name] = Module(file, content, str(path.relative_to(directory).with_name(file)))

    for name in wanted:
        visit(name)
    return list(order.values())


def names_below(directory: Path, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of all modules whose paths below `directory`, up to the first dot, match one
    of the patterns, in which `*` stands for slashes, too."""
    found = []
    for path in sorted(directory.rglob("*.ko*")):
        stem = str(path.relative_to(directory).with_name(path.name.partition(".")[0]))
        if any(fnmatch.fnmatchcase(stem, pattern) for pattern in patterns):
            found.append(_name(path.name))
    return tuple(found)


def add_soft_dependencies(directory: Path) -> None:
    """Write the soft dependencies of modules (modprobe.d(5): softdep), if they exist, into
    `modules.dep` as dependencies: busybox's modprobe reads nothing else. depmod(8) must have run on
    `directory`."""
    lines = (directory / "modules.dep").read_text().splitlines()
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
    paths = {_name(Path(path).name): path for path in needs}
    for line in (directory / "modules.softdep").read_text().splitlines():
        match line.split():
            case ["softdep", name, *others]:
                for other in others:
                    path = paths.get(_name(other))  # others are "pre:", "post:", aliases
                    if path and name in paths:
                        # The last entry is loaded first.
                        needs[paths[name]] += [path, *needs[path]]
    text = "".join(
        f"{path}:{''.join(f' {n}' for n in dict.fromkeys(needs[path]))}\n" for path in needs
    )
    (directory / "modules.dep").write_text(text)


def _decompressed(data: bytes, what: str) -> bytes:
    """Unpack what a release compressed, in any format. Raises ImageError."""
    try:
        if data.startswith((_XZ, _LZMA)):
            return lzma.LZMADecompressor().decompress(data)
        if data.startswith(_GZIP):
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(data)
    except (lzma.LZMAError, zlib.error) as error:
        raise ImageError(f"{what} can't be decompressed: {error}") from None
    if not data.startswith(_ZSTD):
        raise ImageError(f"{what} is compressed in none of the ways known: gzip, lzma, xz, zstd")
    if shutil.which("zstd") is None:
        raise ImageError(f"{what} is compressed by zstd, which is missing: install zstd")
    done = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True)
    if done.returncode:
        raise ImageError(f"{what} can't be decompressed: {done.stderr.decode().strip()}")
    return done.stdout


def _dependencies(module: bytes) -> list[str]:
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name for name in match.group(1).decode().split(",") if name] if match else []


def _name(file_name: str) -> str:
    return file_name.partition(".")[0].replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().split()
