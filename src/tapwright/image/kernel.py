"""The kernel out of Debian's package: the bare ELF image, and the modules the guest needs."""

import lzma
import re
import struct
from pathlib import Path

from tapwright.errors import ImageError

_SETUP_MAGIC = b"HdrS"


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
    payload = bzimage[start : start + length - 4]
    try:
        elf = lzma.decompress(payload, lzma.FORMAT_AUTO)
    except lzma.LZMAError as error:
        raise ImageError(f"the kernel is not xz-compressed as Debian's is: {error}") from None
    if not elf.startswith(b"\x7fELF"):
        raise ImageError("the kernel's payload is not an ELF image")
    return elf


def select_modules(directory: Path, wanted: tuple[str, ...]) -> list[Path]:
    """The files of the wanted modules and all that they depend on, in the order of loading.

    `directory` is a /lib/modules/VERSION. Modules built into the kernel need no file.
    Raises ImageError for a module that is not there.
    """
    files = {_name(path.name): path for path in sorted(directory.rglob("*.ko"))}
    builtin = {_name(Path(line).name) for line in _lines(directory / "modules.builtin")}
    order: list[Path] = []

    def visit(name: str) -> None:
        if name in builtin:
            return
        if name not in files:
            raise ImageError(f"the kernel package has no module {name}")
        path = files[name]
        if path not in order:
            for dependency in _dependencies(path):
                visit(_name(dependency))
            order.append(path)

    for name in wanted:
        visit(name)
    return order


def _dependencies(module: Path) -> list[str]:
    match = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name for name in match.group(1).decode().split(",") if name] if match else []


def _name(file_name: str) -> str:
    return file_name.removesuffix(".ko").replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().split()
