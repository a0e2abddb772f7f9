"""The kernel out of a release's packages: the bare ELF image, and the modules the guest needs."""

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
    """A module as insmod(8) takes it. `file` is its name, such as "virtio_net.ko"."""

    file: str
    content: bytes


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
    """The wanted modules and all that they depend on, in the order of loading.

    `directory` is a /lib/modules/VERSION, its files compressed or not. Modules built into the
    kernel need no file. Raises ImageError for a module that is not there.
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
        order[name] = Module(path.name.partition(".")[0] + ".ko", content)

    for name in wanted:
        visit(name)
    return list(order.values())


def _decompressed(data: bytes, what: str) -> bytes:
    """Unpack what a release compressed, in whichever way. Raises ImageError."""
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
