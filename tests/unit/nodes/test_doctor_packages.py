"""Versions as PEP 440 and NVIDIA's images have them, copies, folders, images."""

import doctor_facts as of
import pytest
from doctor_facts import by_level, healthy
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from tst_megatron.nodes.doctor.diagnose import findings_of
from tst_megatron.nodes.doctor.facts import Copy, Image, Probe
from tst_megatron.nodes.doctor.packages import fits


@pytest.mark.parametrize(
    ("wanted", "version", "is_fitting"),
    [
        (">=2.11", "2.13.0a0+8145d630e8", True),
        (">=2.11", "2.11.0a0+eb65b36914", True),
        (">=2.11", "2.11.0+cu130", True),
        (">=2.11", "2.10.0a0+b4e4ee81d3", False),
        ("<5.15,>=5", "5.15.0", False),
        ("<5.15,>=5", "5.15.0rc1", False),
        ("<5.15,>=5", "5.0.0rc1", True),
        ("==0.19.2", "0.19.2+local", True),
        ("==0.19.2", "0.19.2rc1", False),
        ("==0.19.2", "0.19.3", False),
        ("", "1.0a1", True),
    ],
)
def test_version_fits_as_pep_440_has_it_but_for_pre_releases(wanted, version, is_fitting):
    assert fits(SpecifierSet(wanted), version) is is_fitting


def test_version_that_is_none_is_refused():
    with pytest.raises(InvalidVersion):
        fits(SpecifierSet(">=1"), "unknown")


def problems(facts):
    return by_level(facts, "bf16", "problem")


def notes(facts):
    return by_level(facts, "bf16", "note")


@pytest.mark.parametrize(
    ("version", "found"),
    [("1.26.4", "1.26.4"), ("local-build", "local-build, which is no version by PEP 440")],
)
def test_wrong_version_of_any_requirement_is_a_problem(version, found):
    (finding,) = problems(of.with_packages(healthy(), copies=of.copies(numpy=version)))
    assert (finding.check, finding.found, finding.needed) == ("numpy", found, "numpy>=2")
    assert finding.fix.startswith("uv pip install --python python 'numpy>=2'")


@pytest.mark.parametrize("name", ["matplotlib", "pyarrow", "zstandard"])
def test_missing_package_that_training_does_not_import_is_a_note(name):
    facts = of.with_packages(healthy(), required={"": (name,)})
    assert problems(facts) == []
    (finding,) = notes(facts)
    assert (finding.check, finding.found) == (name, "not installed")
    assert finding.needed.endswith("not for training")


def broken(facts):
    return of.with_probe(facts, "torch", Probe(problem="ImportError: x"))


NGC = {"torch": "2.13.0a0+8145d630e8.nv26.6"}


@pytest.mark.parametrize(
    ("facts", "fix"),
    [
        (broken(of.with_packages(healthy(), copies=of.copies(**NGC))), "start its image anew"),
        (of.with_packages(healthy(), copies=of.copies(torch="2.10.0a0+1")), "use a newer image"),
        (broken(of.with_packages(healthy(), copies=of.copies(torch="2.11.0+cu130"))), "uv pip"),
        (broken(healthy()), "uv pip install --python python --reinstall-package torch"),
    ],
)
def test_torch_of_an_image_is_not_replaced_by_one_of_an_index(facts, fix):
    (finding,) = problems(facts)
    assert finding.fix.startswith(fix)
    assert "'torch==2.1" not in finding.fix or "'torch==2.11.0'" in finding.fix


@pytest.mark.parametrize(
    "change",
    [
        lambda f: of.with_packages(f, copies=of.copies(numpy="1.0", torch="2.9.0")),
        broken,
        lambda f: of.with_modules(f, **{"megatron.training": None}),
        lambda f: of.with_probe(f, "megatron", Probe(problem="ImportError: x")),
        lambda f: of.with_probe(f, "transformer engine", None),
        lambda f: of.with_packages(f, copies=of.copies(transformer_engine="1.0")),
        lambda f: of.with_torch(f, cuda=None),
        lambda f: of.with_torch(f, nccl="2.1.0"),
        of.namesake,
        lambda f: of.with_packages(f, requires={"torch": ("absent",)}),
    ],
)
def test_image_is_built_again_and_nothing_installed_into_it(change):
    facts = change(healthy())
    facts = of.with_packages(facts, image=Image())
    found = [each for each in findings_of(facts, "bf16") if each.level != "ok" and each.fix]
    assert any("build the image again" in each.fix for each in found)
    assert not any("pip " in each.fix or "uv " in each.fix for each in found)


def test_damaged_metadata_are_a_problem():
    copies = {**of.copies(), "numpy": (Copy(version=None, folder=of.SITE),)}
    (finding,) = problems(of.with_packages(healthy(), copies=copies))
    assert finding.found == f"damaged: its metadata in {of.SITE} have no version"


def test_all_missing_requirements_are_named_at_once():
    facts = of.with_packages(healthy(), copies=of.copies(numpy=None, transformers=None))
    assert [each.check for each in problems(facts)] == ["transformers", "numpy"]


def test_module_without_a_distribution_is_named_with_its_folder():
    facts = of.with_packages(healthy(), copies=of.copies(megatron_core=None))
    facts = of.with_modules(
        facts, **{"megatron.core": "/src/Megatron-LM/megatron/core/__init__.py"}
    )
    (finding,) = problems(facts)
    assert "imported from /src/Megatron-LM/megatron/core/__init__.py" in finding.found
    assert finding.fix.startswith("Take that folder off PYTHONPATH, then uv pip install")


def test_project_that_is_not_installed_says_that_its_requirements_are_not_known():
    (finding,) = notes(of.with_packages(healthy(), required={}))
    assert "what it requires is not known" in finding.found and "uv sync" in finding.fix


def test_lacking_extra_is_a_note_with_its_install_line():
    required = {**of.REQUIRED, "data": ("zstandard", "pyarrow", "numpy"), "eval": ("lm-eval",)}
    (finding,) = notes(of.with_packages(healthy(), required=required))
    assert finding.check == "extra data"
    assert finding.found == "zstandard: not installed; pyarrow: not installed"
    assert "uv pip install --python python 'tst-megatron[data]'" in finding.fix


def test_extra_that_nobody_asked_for_is_no_note_and_a_wrong_version_of_it_is():
    facts = of.with_packages(healthy(), required={**of.REQUIRED, "eval": ("lm-eval==0.4.13",)})
    assert notes(facts) == []
    (finding,) = notes(of.with_packages(facts, copies=of.copies(lm_eval="0.4.9")))
    assert finding.found == "lm-eval: 0.4.9"


def test_what_packages_require_in_turn_is_a_note_through_all_of_them():
    requires = {"torch": ("numpy<2",), "numpy": ("absent>=3",), "transformer-engine": ("no-more",)}
    (finding,) = notes(of.with_packages(healthy(), requires=requires))
    assert finding.found == "absent>=3 of numpy: not installed; numpy<2 of torch: 2.3.0"


def test_what_is_missing_is_said_once():
    facts = of.with_packages(
        healthy(), requires={"torch": ("numpy",)}, copies=of.copies(numpy=None)
    )
    assert [each.check for each in problems(facts)] == ["numpy"]
    assert notes(facts) == []


# --- copies ---------------------------------------------------------------------------------------


def test_two_copies_are_a_note_that_says_which_is_used():
    copies = of.copies()
    copies["torch"] += (Copy(version="2.12.0", folder="/usr/lib/python3/dist-packages"),)
    (finding,) = notes(of.with_packages(healthy(), copies=copies))
    assert finding.found == (
        f"installed 2 times: 2.11.0 in {of.SITE}; 2.12.0 in /usr/lib/python3/dist-packages. "
        "The first is used"
    )
    assert finding.fix.startswith("uv pip uninstall --python python torch, until none is left")


def test_copy_that_an_image_laid_over_its_base_is_meant():
    copies = of.copies()
    copies["torch"] += (Copy(version="2.9.0", folder="/usr/lib/python3/dist-packages"),)
    for of_base, number in (("2.9.0", 0), ("2.8.0", 1)):
        image = Image(replaced={"torch": (of_base, "2.11.0")})
        facts = of.with_packages(healthy(), copies=copies, image=image)
        assert len([each for each in notes(facts) if each.check == "torch"]) == number


def test_another_megatron_on_the_path_is_a_problem():
    place = "/src/Megatron-LM/megatron/core/__init__.py"
    (finding,) = problems(of.with_modules(healthy(), **{"megatron.core": place}))
    assert finding.found == f"imported from {place}, while 0.19.2 is in {of.SITE}"
    assert finding.fix == "take /src/Megatron-LM off PYTHONPATH, or start elsewhere"


def test_another_copy_of_this_project_is_a_note():
    facts = of.with_modules(healthy(), tst_megatron="/src/tst/tst_megatron/__init__.py")
    assert problems(facts) == []
    (finding,) = notes(facts)
    assert "imported from /src/tst/tst_megatron/__init__.py" in finding.found


def test_packages_of_the_user_are_a_note_with_the_variable():
    home = "/home/someone/.local/lib/python3.12/site-packages"
    copies = {**of.copies(), "numpy": (Copy(version="2.3.0", folder=home),)}
    facts = of.with_packages(healthy(), copies=copies, user_site=home)
    (finding,) = notes(of.with_modules(facts, numpy=f"{home}/numpy/__init__.py"))
    assert finding.found.startswith(f"numpy 2.3.0 from {home}")
    assert finding.fix == "export PYTHONNOUSERSITE=1"
    assert notes(of.with_packages(healthy(), user_site=home)) == []


def test_path_that_cannot_be_searched_is_a_problem():
    facts = of.with_probe(healthy(), "modules", Probe(problem="SyntaxError: in megatron"))
    assert "SyntaxError: in megatron" in problems(facts)[0].found


# --- images ---------------------------------------------------------------------------------------


def test_image_that_is_as_it_was_built_is_fine():
    image = Image(versions={"torch": "2.11.0", "megatron_core": "0.19.2"}, has_apex=True)
    assert problems(of.with_packages(healthy(), image=image)) == []
