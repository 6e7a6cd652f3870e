"""Judge Python and its packages: versions, copies, folders, and the packages of an image.

Versions follow PEP 440, with one liberty: a pre-release counts as the release that it leads to,
because NVIDIA's images have torch ``2.13.0a0+8145d630e8``. A pinned version fits only itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tst_megatron.nodes.doctor import fixes
from tst_megatron.nodes.doctor.facts import Copy, Image, Packages
from tst_megatron.nodes.doctor.finding import Finding, note, ok, problem
from tst_megatron.nodes.doctor.fixes import BUILD_AGAIN
from tst_megatron.nodes.doctor.probe import MODULES

OURS = "tst-megatron"

NOT_OF_TRAINING = {
    "matplotlib": ", for figures and not for training",
    "pyarrow": ", for data commands and not for training",
    "zstandard": ", for data commands and not for training",
}
"""Packages of every installation that training never imports."""


def fits(wanted: SpecifierSet, version: str) -> bool:
    """Tell whether a version is as wanted.

    Raises:
        InvalidVersion: PEP 440 does not allow the version.
    """
    parsed = Version(version)
    if wanted.contains(parsed, prereleases=True):
        return True
    is_one_version = any(each.operator in ("==", "===") for each in wanted)
    return not is_one_version and wanted.contains(Version(parsed.base_version))


def python_findings(packages: Packages) -> list[Finding]:
    """Check that the project runs on this Python."""
    if fits(SpecifierSet(packages.requires_python), packages.python):
        return [ok("Python", packages.python)]
    return [
        problem(
            "Python",
            packages.python,
            needed=packages.requires_python,
            fix="make the environment anew with that Python: uv sync --frozen fetches one",
        )
    ]


def requirement_findings(packages: Packages, modules: Mapping[str, str]) -> list[Finding]:
    """Check that each package that every run needs is installed in a required version.

    Args:
        packages: as installed.
        modules: where each module would be imported from.
    """
    if not packages.required:
        return [
            note(
                "packages",
                "this project is not installed and there is no pyproject.toml, so what it requires "
                "is not known",
                fix=BUILD_AGAIN
                if packages.image
                else f"uv sync --frozen, or uv pip install --python {packages.executable} WHEEL",
            )
        ]
    found, fitting = [], 0
    for text in packages.required.get("", ()):
        requirement = Requirement(text)
        wrong = _unmet(requirement, packages, modules)
        found += [wrong] if wrong else []
        fitting += wrong is None
    return [*found, ok("packages", f"{fitting} as required")]


def _unmet(
    requirement: Requirement, packages: Packages, modules: Mapping[str, str]
) -> Finding | None:
    name = canonicalize_name(requirement.name)
    found = _mismatch(requirement, packages)
    if found is None:
        return None
    fix = fixes.install(packages, str(requirement))
    origin = modules.get(MODULES.get(name, ""))
    if origin and name not in packages.copies:
        found = f"not installed, and yet imported from {origin}, in a version that is not known"
        fix = f"Take that folder off PYTHONPATH, then {fix}"
    grade = note if name in NOT_OF_TRAINING else problem
    return grade(name, found, needed=f"{requirement}{NOT_OF_TRAINING.get(name, '')}", fix=fix)


def _mismatch(requirement: Requirement, packages: Packages) -> str | None:
    """Describe what is installed instead of a requirement; None if the requirement is met."""
    name = canonicalize_name(requirement.name)
    if name not in packages.copies:
        return "not installed"
    version = packages.version(name)
    if version is None:
        return f"damaged: its metadata in {packages.copies[name][0].folder} have no version"
    try:
        return None if fits(requirement.specifier, version) else version
    except InvalidVersion:
        return f"{version}, which is no version by PEP 440"


def extra_findings(packages: Packages) -> list[Finding]:
    """List what extras lack. Training needs none of them; ``gpu`` has findings of its own."""
    found = []
    for extra, texts in packages.required.items():
        if extra in ("", "gpu"):
            continue
        requirements = [Requirement(text) for text in texts]
        lacking = [
            f"{requirement.name}: {wrong}"
            for requirement in requirements
            if (wrong := _mismatch(requirement, packages))
        ]
        if not lacking:
            found.append(ok(f"extra {extra}", "as required"))
            continue
        if not any(canonicalize_name(each.name) in packages.copies for each in requirements):
            found.append(ok(f"extra {extra}", "not installed, which training does not need"))
            continue
        found.append(
            note(
                f"extra {extra}",
                "; ".join(lacking),
                needed=f"{', '.join(texts)}, for some commands and not for training",
                fix=fixes.install(packages, f"{OURS}[{extra}]", all_of=f" --extra {extra}"),
            )
        )
    return found


def metadata_findings(packages: Packages) -> list[Finding]:
    """List damaged metadata, whose content is ignored."""
    if not packages.damaged:
        return []
    return [
        note(
            "metadata",
            "; ".join(packages.damaged),
            needed="metadata that can be read, of what the project leads to",
            fix="install those packages again, if training needs them",
        )
    ]


def indirect_findings(packages: Packages) -> list[Finding]:
    """Check the requirements of the packages that every run needs, by their own metadata.

    These are notes only. Images have some packages under other names, and a version that does not
    fit mostly works. Importing Megatron gives the certain answer.
    """
    names = [canonicalize_name(Requirement(text).name) for text in packages.required.get("", ())]
    # The direct requirements have findings of their own.
    reached, said, wrong = set(names), set(names), []
    while names:
        name = names.pop()
        for requirement in map(Requirement, packages.requires.get(name, ())):
            needed = canonicalize_name(requirement.name)
            mismatch = _mismatch(requirement, packages)
            if mismatch and not (needed in said and needed not in packages.copies):
                wrong.append(f"{requirement} of {name}: {mismatch}")
            if needed not in reached:
                reached.add(needed)
                names.append(needed)
    if not wrong:
        return []
    return [
        note(
            "indirect packages",
            "; ".join(sorted(wrong)),
            needed="what the packages above require in turn",
            fix=f"{BUILD_AGAIN if packages.image else 'install those, or uv sync --frozen'}; "
            "--imports tells for sure whether that is needed",
        )
    ]


# --- one module, several places -------------------------------------------------------------------


def _names(packages: Packages) -> set[str]:
    """Return the distributions whose copies matter to training."""
    texts = [text for each in packages.required.values() for text in each]
    return {canonicalize_name(Requirement(text).name) for text in texts} | MODULES.keys()


def copy_findings(packages: Packages, modules: Mapping[str, str]) -> list[Finding]:
    """List packages that are installed twice, imported from elsewhere, or the user's own."""
    return [*_twice(packages), *_shadowed(packages, modules), *_private(packages)]


def _twice(packages: Packages) -> Iterator[Finding]:
    for name in sorted(_names(packages) & packages.copies.keys()):
        copies = packages.copies[name]
        if len(copies) < 2 or _is_meant(packages.image, name, copies):
            continue
        places = "; ".join(f"{copy.version} in {copy.folder}" for copy in copies)
        yield note(
            name,
            f"installed {len(copies)} times: {places}. The first is used",
            needed="one copy",
            fix=f"{fixes.uninstall(packages, name)}, until none is left, then install it once",
        )


def _is_meant(image: Image | None, name: str, copies: Sequence[Copy]) -> bool:
    """Tell whether these are the base image's copy and the one that our build put before it."""
    replaced = image.replaced.get(name) if image else None
    return replaced is not None and {copy.version for copy in copies} == set(replaced)


def _shadowed(packages: Packages, modules: Mapping[str, str]) -> Iterator[Finding]:
    for name, module in MODULES.items():
        origin, copies = modules.get(module), packages.copies.get(name)
        if not origin or not copies or _is_in(origin, copies[0].folder):
            continue
        found = f"imported from {origin}, while {copies[0].version} is in {copies[0].folder}"
        root, _, _ = origin.rpartition(f"/{module.replace('.', '/')}")
        fix = f"take {root or '/'} off PYTHONPATH, or start elsewhere"
        if name == OURS:
            yield note(name, found, needed="one copy", fix=f"{fix}; or install that folder")
        else:
            yield problem(name, found, needed="the module of the installed version", fix=fix)


def _is_in(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _private(packages: Packages) -> Iterator[Finding]:
    if packages.user_site is None:
        return
    inside = [
        f"{name} {copies[0].version}"
        for name, copies in sorted(packages.copies.items())
        if name in _names(packages) and _is_in(copies[0].folder, packages.user_site)
    ]
    if inside:
        yield note(
            "user's packages",
            f"{', '.join(inside)} from {packages.user_site}, before those of the environment",
            needed="packages of the environment or image alone",
            fix="export PYTHONNOUSERSITE=1",
        )


# --- an image -------------------------------------------------------------------------------------


def image_findings(packages: Packages) -> list[Finding]:
    """Check that an image still has the packages that it was built with."""
    image = packages.image
    if image is None:
        return []
    if image.problem:
        return [
            problem(
                "image",
                image.problem,
                needed="what the image was built with, as its build wrote it",
                fix="Take the image again, or build it again",
            )
        ]
    changed = _changed(image, packages.copies)
    if not changed:
        return [ok("image", f"{len(image.versions)} packages as it was built")]
    return [
        problem(
            "image",
            "; ".join(changed),
            needed="the packages that the image was built with",
            fix="export PYTHONNOUSERSITE=1, unset PYTHONPATH, mount nothing over the image's "
            "packages; or build the image again",
        )
    ]


def _changed(image: Image, copies: Mapping[str, tuple[Copy, ...]]) -> list[str]:
    changed = []
    for distribution, built in sorted(image.versions.items()):
        here = copies.get(canonicalize_name(distribution))
        if here is None:
            changed.append(f"{distribution} {built} is gone")
        elif here[0].version != built:
            changed.append(f"{distribution} was {built} and is {here[0].version}")
    return changed
