"""The rules for names (section 2, "Parameters")."""

_MAX_IFNAME_BYTES = 15


def is_name(text: str) -> bool:
    """Whether the text is a valid name of a network, or id of a container; they have one rule."""
    return text.isascii() and text[:1].isalnum() and all(c.isalnum() or c in "_.-" for c in text)


def is_interface_name(text: str) -> bool:
    """Whether the kernel accepts the name for an interface (libcni, pkg/utils/utils.go)."""
    return (
        0 < len(text.encode(errors="replace")) <= _MAX_IFNAME_BYTES
        and text not in (".", "..")
        and not any(c in "/:\0" or c.isspace() for c in text)
    )
