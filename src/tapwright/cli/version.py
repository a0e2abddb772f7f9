"""What `--version` prints, in the form in which container engines read it."""

from tapwright import __version__

_OCI_VERSION = "1.2.0"
TEXT = f"tapwright version {__version__}\nspec: {_OCI_VERSION}"
