"""`tapwright image`: build, list, export and import guest images."""

import argparse
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapwright.cli import output

if TYPE_CHECKING:
    from tapwright.image.store import Image


def add_commands(group: argparse.ArgumentParser, words: Container[str]) -> None:
    commands = group.add_subparsers(metavar="COMMAND", required=True, prog=group.prog)
    command = commands.add_parser(
        "build",
        help="build the guest image from packages of Debian or Ubuntu",
        description="Build the guest image from today's packages of the host's Debian or Ubuntu. "
        "The same packages and the same Tapwright give the same bytes; an image that exists "
        "already stays. Sandboxes use the image that was built or imported last. Where a "
        "configuration sets enable_template = true, the command also makes the template that "
        "sandboxes start from; otherwise the first sandbox makes it.",
    )
    command.add_argument(
        "--suite",
        default="",
        metavar="NAME",
        help="build from packages of this release, such as trixie (default: the host's)",
    )
    command.add_argument(
        "--mirror",
        default="",
        metavar="URL",
        help="take the release of --suite from this mirror (default: the host's own)",
    )
    command.add_argument("--json", action="store_true", help="print the image as JSON")
    command.set_defaults(run=_build)
    command = commands.add_parser(
        "export",
        help="write the image that sandboxes use to a file",
        description="Write the image that sandboxes use to one file, for `tapwright image import` "
        "on hosts that have no apt.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="the file to write")
    command.set_defaults(run=_export)
    command = commands.add_parser(
        "import",
        help="read an image from a file, for sandboxes to use",
        description="Read an image that `tapwright image export` wrote. Sandboxes use that image "
        "from then on. The command refuses a file that is not complete.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="a file that export wrote")
    command.add_argument("--json", action="store_true", help="print the image as JSON")
    command.set_defaults(run=_import)
    command = commands.add_parser(
        "list",
        help="list the images of this host",
        description="List the images of this host, and which one sandboxes use.",
    )
    command.add_argument("--json", action="store_true", help="print the images as JSON")
    command.set_defaults(run=_list)


def _build(arguments: argparse.Namespace) -> None:
    from tapwright import config
    from tapwright.errors import UsageError
    from tapwright.image import store

    if arguments.mirror and not arguments.suite:
        raise UsageError("--mirror is the mirror of a release: name the release with --suite")
    configuration = config.load(arguments.config)
    try:
        image = store.build_image(
            Path(configuration.image.store),
            output.show_progress,
            arguments.suite,
            arguments.mirror,
        )
        # Without that key, building an image needs neither QEMU nor root, for example to export it.
        is_wanted = "[factory] enable_template" in configuration.given
        if is_wanted and configuration.factory.enable_template:
            _make_template(configuration)
    finally:
        output.end_progress()
    _show(image, arguments.json)


def _show(image: Any, as_json: bool) -> None:
    if as_json:
        output.print_json(_described(image))
    else:
        print(image.key)


def _make_template(configuration: Any) -> None:
    import asyncio

    from tapwright.sandbox.planning import Wish, plan
    from tapwright.supervisor.guest import make_template

    output.need_root()
    spec = plan(configuration, Wish(), output.show_progress)
    asyncio.run(make_template(spec, output.show_progress))


def _export(arguments: argparse.Namespace) -> None:
    from tapwright.errors import ImageError
    from tapwright.image import store, transfer

    directory = _store(arguments)
    image = store.find(directory)
    if image is None:
        raise ImageError(f"there is no image in {directory}: build one (tapwright image build)")
    transfer.export_image(image, arguments.file)


def _import(arguments: argparse.Namespace) -> None:
    from tapwright.image import transfer

    _show(transfer.import_image(arguments.file, _store(arguments)), arguments.json)


def _list(arguments: argparse.Namespace) -> None:
    from tapwright.image import store

    images = [_described(image) for image in store.listing(_store(arguments))]
    if arguments.json:
        output.print_json(images)
        return
    rows = [
        (
            image["key"],
            image["release"],
            image["kernel_package"],
            "yes" if image["current"] else "no",
        )
        for image in images
    ]
    output.print_table(("IMAGE", "RELEASE", "KERNEL", "CURRENT"), rows)


def _store(arguments: argparse.Namespace) -> Path:
    from tapwright import config

    return Path(config.load(arguments.config).image.store)


def _described(image: "Image") -> dict[str, Any]:
    packages = image.packages
    kernels = [name for name in packages if name.startswith("linux-image-")]
    return {
        "key": image.key,
        "current": image.current,
        "release": image.release,
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "disk": str(image.disk),
        "kernel_package": " ".join(kernels),
        "packages": packages,
    }
