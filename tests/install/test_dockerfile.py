"""The Dockerfile read as text: what it starts from, installs, keeps secret and leaves behind."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import image_record

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
HADOLINT = Path(sys.executable).parent / "hadolint"


def instructions(text):
    """(keyword, arguments) of each instruction, on one line each and without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


FOUND = instructions(TEXT)


def of(keyword):
    return [arguments for each, arguments in FOUND if each == keyword]


def lint(path):
    return subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)


def test_linter_finds_nothing():
    done = lint(ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_linter_finds_what_is_bad(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && sudo pip install a\n")
    done = lint(tmp_path / "Dockerfile")
    assert done.returncode == 1 and "DL3007" in done.stdout


def test_base_is_pinned_by_digest_in_one_place():
    (base,) = [each for each in of("ARG") if each.startswith("BASE_IMAGE=")]
    assert re.fullmatch(
        r"BASE_IMAGE=nvcr\.io/nvidia/pytorch:\d\d\.\d\d-py3@sha256:[0-9a-f]{64}", base
    )
    tracked = subprocess.run(
        ["git", "grep", "--files-with-matches", "--untracked", base.partition("=")[2]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert tracked.stdout.split() == ["Dockerfile"]


def test_every_stage_starts_from_that_base_or_from_another_stage():
    stages = [each.split(" AS ")[1] for each in of("FROM") if " AS " in each]
    assert [each.split()[0] for each in of("FROM")] == ["${BASE_IMAGE}", "lists", "${BASE_IMAGE}"]
    assert stages == ["lists", "wheel"]
    assert ":latest" not in TEXT


def test_torch_and_transformer_engine_are_never_named_in_an_install():
    installs = [each for each in of("RUN") if " install" in each or "build --wheel" in each]
    assert len(installs) == 5
    for each in installs:
        assert not re.search(r"install[^&]*\b(torch|transformer[-_]engine|apex)\b", each), each
        if "apt-get" not in each:
            assert "--require-hashes" in each or "--offline" in each, each


def test_no_secret_is_an_argument_or_a_variable():
    names = {re.match(r"\w+", each)[0] for each in of("ARG")}
    names |= {name for each in of("ENV") for name in re.findall(r"(\w+)=", each)}
    assert not [name for name in names if re.search("TOKEN|PASS|SECRET|KEY|INDEX|PROXY", name)]
    assert "://" not in "".join([*of("ARG"), *of("ENV"), *of("RUN")]), "no index of anybody's"


def test_what_changes_with_each_commit_comes_after_the_dependencies():
    final = FOUND[max(i for i, (keyword, _) in enumerate(FOUND) if keyword == "FROM") :]
    at = next(i for i, (_, text) in enumerate(final) if "--requirement" in text)
    before, after = final[:at], final[at + 1 :]
    assert not [text for _, text in before if "from=wheel" in text or "REVISION" in text]
    assert len([keyword for keyword, _ in after if keyword in ("RUN", "ADD")]) <= 2
    assert not [text for _, text in before if "wheel" in text or "image_record" in text]
    (copied,) = [text for text in of("COPY") if "uv.lock" in text]
    assert "tst_megatron" not in copied and "README.md" not in copied


def test_record_is_given_every_fact_of_the_builder():
    (run,) = [each for each in of("RUN") if "image_record.py write" in each]
    for name in image_record.FACTS:
        assert f'--{name.replace("_", "-")} "${name.upper()}"' in run
    labels = of("LABEL")[0]
    for name in ("source", "revision", "version", "created", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert 'tst-megatron.lock-sha256="${LOCK_SHA256}"' in labels


def test_image_runs_as_nobody_in_particular_without_a_network():
    assert of("USER") == ["65532:65532"] and json.loads(of("CMD")[0]) == ["tst-megatron", "doctor"]
    variables = dict(pair for each in of("ENV") for pair in re.findall(r"(\w+)=(\S+)", each))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        assert variables[name] == "1"
    assert variables["PYTHONNOUSERSITE"] == "1"
    # Open to all, and not /tmp, which may be the host's.
    assert variables["HOME"] == "/home/tst" and "mkdir -m 1777 /home/tst" in of("RUN")
    assert variables["LNAME"]
    assert "/root" not in TEXT


def test_last_run_is_the_check_and_comes_after_the_user():
    keywords = [keyword for keyword, _ in FOUND]
    assert "image_record.py check" in of("RUN")[-1]
    assert keywords.index("USER") < len(keywords) - 1 - keywords[::-1].index("RUN")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_home_is_left_empty_also_beside_a_folder_that_this_user_cannot_read(tmp_path):
    home = tmp_path / "home"
    (home / "of-root" / "inside").mkdir(parents=True)
    (home / "of-root").chmod(0o700)
    (home / "cache" / "inside").mkdir(parents=True)
    (home / "file").touch()
    for path in (home / "cache", home / "cache" / "inside", home / "file"):
        os.chown(path, 65532, 65532)
    home.chmod(0o1777)
    # By a relative name: other users cannot walk through pytest's own folder.
    command = ["sh", "-c", of("RUN")[-1].rpartition("&&")[2].replace("/tmp /home/tst", ".")]
    done = subprocess.run(command, cwd=home, user=65532, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in home.iterdir()] == ["of-root"]


def test_what_a_layer_depends_on_is_copied_and_not_mounted():
    # Whether podman and buildah take a layer from their cache does not depend on what is mounted.
    final = FOUND[max(i for i, (keyword, _) in enumerate(FOUND) if keyword == "FROM") :]
    mounts = {each for _, text in final for each in re.findall(r"--mount=type=bind,(\S+)", text)}
    assert mounts == {
        "from=lists,source=/build/uv,target=/run/uv",
        "from=lists,source=/build,target=/run/build",
    }
    texts = [f"{keyword} {text}" for keyword, text in final]
    read = ("dependencies.txt", "build.txt", "image_record.py", "image_apex.py", ".whl")
    for name in read:
        first = next(each for each in texts if name in each)
        assert first.startswith("COPY "), f"{name} is read before it is copied: {first}"
        assert not [each for each in texts if f"/run/build/{name}" in each]


def test_tools_can_be_read_from_a_checkout_of_its_owner_alone():
    copies = [each for each in of("COPY") if "tools/" in each and each.endswith("/tools/")]
    assert len(copies) == 2
    assert all(each.startswith("--chmod=0755 ") for each in copies)


def test_apex_is_compiled_for_the_gpus_asked_for_whatever_the_base_sets():
    arguments = {re.match(r"\w+", each)[0] for each in of("ARG")}
    assert "TORCH_CUDA_ARCH_LIST" not in arguments, "the base's variable would win"
    (run,) = [each for each in of("RUN") if "image_apex.py" in each]
    assert re.search(r'TORCH_CUDA_ARCH_LIST="\$APEX_CUDA_ARCH_LIST" +python \S+image_apex.py', run)


def test_apex_is_not_compiled_again_for_another_lock_or_tool():
    final = FOUND[max(i for i, (keyword, _) in enumerate(FOUND) if keyword == "FROM") :]
    at = next(i for i, (key, text) in enumerate(final) if key == "RUN" and "image_apex" in text)
    before = [text for keyword, text in final[: at + 1] if keyword in ("COPY", "RUN")]
    assert not [each for each in before if re.search(r"source=(/build|tools)[,\s]", each)]
    assert [each for each in before if "tools/" in each and "image_apex.py" not in each] == []
    (uv,) = [each for each in of("RUN") if "--target /build/uv" in each]
    assert "--no-compile" in uv, "bytecode holds times, which would make it another mount"


def test_only_what_is_copied_reaches_the_builder():
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word for each in of("COPY") for word in each.split()[:-1] if not word.startswith("--")
    }
    assert allowed == {each for each in copied if not each.startswith("/build/")}
    assert [each for each in allowed if not (ROOT / each).exists()] == []


def test_installer_takes_secrets_where_there_are_any_and_no_constraint(tmp_path):
    script = (ROOT / "tools" / "image_install.sh").read_text()
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    moved = tmp_path / "install.sh"
    moved.write_text(script.replace("/run/secrets", str(secrets)))
    environment = {"PIP_CONSTRAINT": "/etc/pip/constraint.txt", "PATH": "/usr/bin:/bin"}

    def variables():
        command = ["sh", str(moved), "env"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return {line.partition("=")[0] for line in done.stdout.splitlines()} - {"PWD", "_", "SHLVL"}

    assert variables() == {"PATH"}
    for name in ("pip.conf", "uv.toml", "ca.pem"):
        (secrets / name).touch()
    wanted = {"PATH", "PIP_CONFIG_FILE", "UV_CONFIG_FILE", "SSL_CERT_FILE", "PIP_CERT"}
    assert variables() == wanted


def test_builder_is_told_revision_version_and_lock():
    command = ["tools/image_build.sh", "echo", "build", "--tag", "name"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    revision = re.search(r"REVISION=([0-9a-f]{40})(-dirty)? ", done.stdout)
    assert revision and done.stdout.startswith("build --tag name --file Dockerfile ")
    assert "VERSION=0" in done.stdout and done.stdout.endswith(" .\n")
    lock = re.search(r"LOCK_SHA256=([0-9a-f]{64}) ", done.stdout)[1]
    assert lock == hashlib.sha256((ROOT / "uv.lock").read_bytes()).hexdigest()


def test_builder_must_be_named():
    command = ["tools/image_build.sh"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: name the builder: ")


def test_commit_of_apex_is_pinned_whole():
    (commit,) = [each for each in of("ARG") if each.startswith("APEX_COMMIT=")]
    assert re.fullmatch(r"APEX_COMMIT=[0-9a-f]{40}", commit)
    assert "BUILD_APEX=0" in of("ARG"), "a build that needs nothing of the network but an index"


def test_guide_names_every_build_argument_and_links_to_what_exists():
    path = ROOT / "docs" / "image.md"
    guide = path.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z_0-9`, ]+) \| `?([^|`]*)`? \|", guide, flags=re.MULTILINE)
    named = {name: default.strip() for cell, default in rows for name in re.findall(r"\w+", cell)}
    declared = dict(re.fullmatch(r"(\w+)=?\"?([^\"]*)\"?", each).groups() for each in of("ARG"))
    assert named.keys() == declared.keys()
    for name in ("BUILD_APEX", "APEX_CUDA_ARCH_LIST", "SOURCE"):
        assert named[name] == declared[name]
    targets = re.findall(r"\]\(([^)#:]+)[^)]*\)", guide)
    assert targets and [each for each in targets if not (path.parent / each).exists()] == []
    for script in re.findall(r"tools/[\w.]+", guide):
        assert (ROOT / script).exists(), script
