"""Commands that mend packages: with uv, whose environments have no pip; images are built again."""

from __future__ import annotations

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tst_megatron.nodes.doctor.facts import Packages

BUILD_AGAIN = "build the image again (docs/image.md)"
NEWER_IMAGE = "use a newer image: torch of an index would replace NVIDIA's"


def required(packages: Packages, name: str) -> str:
    """A distribution as every run requires it; its name alone where that is not known."""
    texts = packages.required.get("", ())
    named = (text for text in texts if canonicalize_name(Requirement(text).name) == name)
    return next(named, name)


def as_installed(packages: Packages, name: str) -> str:
    """A distribution in the version that is there, of an index; else as it is required."""
    try:
        return f"{name}=={Version(packages.version(name) or '').public}"
    except InvalidVersion:
        return required(packages, name)


def install(packages: Packages, what: str, *, options: str = "", all_of: str = "") -> str:
    """How a requirement comes to be met here.

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
    """How a broken distribution is replaced."""
    name = Requirement(what).name
    if not packages.image and name == "torch" and has_torch_of_an_image(packages):
        return "start its image anew: no index has this torch"
    return install(packages, what, options=f"--reinstall-package {name} ")


def uninstall(packages: Packages, name: str) -> str:
    """How a distribution is taken away."""
    if packages.image:
        return f"{BUILD_AGAIN} from a base without {name}"
    return f"uv pip uninstall --python {packages.executable} {name}"


def has_torch_of_an_image(packages: Packages) -> bool:
    """Whether torch is a pre-release, as NVIDIA's images have it and no index does."""
    try:
        return Version(packages.version("torch") or "").is_prerelease
    except InvalidVersion:
        return False
