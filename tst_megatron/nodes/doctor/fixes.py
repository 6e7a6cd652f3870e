"""Name the commands that repair packages: uv in an environment, a new build for an image."""

from __future__ import annotations

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tst_megatron.nodes.doctor.facts import Packages

BUILD_AGAIN = "build the image again (docs/image.md)"
NEWER_IMAGE = "use a newer image: torch of an index would replace NVIDIA's"


def required(packages: Packages, name: str) -> str:
    """Return the requirement on a distribution; only its name where that is not known."""
    texts = packages.required.get("", ())
    named = (text for text in texts if canonicalize_name(Requirement(text).name) == name)
    return next(named, name)


def as_installed(packages: Packages, name: str) -> str:
    """Pin a distribution to its installed version; else return the requirement on it."""
    try:
        return f"{name}=={Version(packages.version(name) or '').public}"
    except InvalidVersion:
        return required(packages, name)


def install(packages: Packages, what: str, *, options: str = "", all_of: str = "") -> str:
    """Return the command that installs a requirement here.

    Args:
        packages: as installed.
        what: the requirement.
        options: of ``uv pip install``, with a space behind them.
        all_of: an option of ``uv sync --frozen``, with a space in front.
    """
    if packages.image:
        return BUILD_AGAIN
    if Requirement(what).name == "torch" and has_torch_of_an_image(packages):
        return NEWER_IMAGE
    command = f"uv pip install --python {packages.executable} {options}'{what}'"
    return f"{command}, or uv sync --frozen{all_of} for all of uv.lock"


def reinstall(packages: Packages, what: str) -> str:
    """Return the command that replaces a broken distribution."""
    name = Requirement(what).name
    if not packages.image and name == "torch" and has_torch_of_an_image(packages):
        return "start its image anew: no index has this torch"
    return install(packages, what, options=f"--reinstall-package {name} ")


def uninstall(packages: Packages, name: str) -> str:
    """Return the command that removes a distribution."""
    if packages.image:
        return f"{BUILD_AGAIN} from a base without {name}"
    return f"uv pip uninstall --python {packages.executable} {name}"


def has_torch_of_an_image(packages: Packages) -> bool:
    """Tell whether torch is a pre-release, which NVIDIA's images have and no index has."""
    try:
        return Version(packages.version("torch") or "").is_prerelease
    except InvalidVersion:
        return False
