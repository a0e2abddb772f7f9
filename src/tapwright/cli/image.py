"""`tapwright image`: build and list guest images."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tapwright.cli import output


def add_commands(group: argparse.ArgumentParser, words: Sequence[str]) -> None:
    commands = group.add_subparsers(metavar="COMMAND", required=True, prog=group.prog)
    command = commands.add_parser(
        "build",
        help="build the guest image from Debian packages",
        description="Build the guest image from today's Debian packages. The same packages and "
        "the same Tapwright give the same bytes; an image that is there already is kept. With "
        "enable_template the template that sandboxes start from is made too.",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_build)
    command = commands.add_parser("list", help="list the images built so far")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_list)


def _build(arguments: argparse.Namespace) -> int:
    from tapwright import config
    from tapwright.image import store

    configuration = config.load(arguments.config)
    try:
        image = store.build_image(Path(configuration.image.store), output.show_progress)
        if configuration.factory.enable_template:
            _make_template(configuration)
    finally:
        output.end_progress()
    if arguments.json:
        output.print_json(_described(image))
    else:
        print(image.key)
    return 0


def _make_template(configuration: Any) -> None:
    import asyncio

    from tapwright.sandbox.guest import make_template
    from tapwright.sandbox.planning import Wish, plan

    output.need_root()
    spec = plan(configuration, Wish(), output.show_progress)
    asyncio.run(make_template(spec, output.show_progress))


def _list(arguments: argparse.Namespace) -> int:
    from tapwright import config
    from tapwright.image import store

    images = [
        _described(image)
        for image in store.listing(Path(config.load(arguments.config).image.store))
    ]
    if arguments.json:
        output.print_json(images)
        return 0
    rows = [
        (image["key"], image["kernel_package"], "yes" if image["current"] else "no")
        for image in images
    ]
    output.print_table(("IMAGE", "KERNEL", "CURRENT"), rows)
    return 0


def _described(image: Any) -> dict[str, Any]:
    packages = {entry["name"]: entry["version"] for entry in image.manifest["packages"]}
    kernels = [name for name in packages if name.startswith("linux-image-")]
    return {
        "key": image.key,
        "current": image.current,
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "kernel_package": " ".join(kernels),
        "packages": packages,
    }
