"""What a task does before it becomes a rank: secrets, and folders that programs are loaded from."""

import os
import subprocess
import time

import pytest


def rank(checkout, *command, **variables):
    """Run one task as srun would."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(checkout),
        "SLURM_LOCALID": "0",
        "SLURM_JOB_ID": "7",
        "TST_SCRATCH": str(checkout / "scratch"),
        **variables,
    }
    (checkout / "scratch").mkdir(exist_ok=True)
    return subprocess.run(
        ["bash", "slurm/lib/rank.sh", *(command or ("env", "-0"))],
        env={name: value for name, value in environment.items() if value != "unset"},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


def variables_of(done):
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)


def write_secrets(checkout, text, mode=0o600):
    path = checkout / "secrets"
    path.write_bytes(text.encode())
    path.chmod(mode)
    return str(path)


# --- secrets --------------------------------------------------------------------------------------


def test_secrets_are_read_and_not_run(checkout):
    text = (
        "# keys\n\nA=abc\nexport B='with spaces'\n  C=\"double # quotes\"  \r\nD=\n"
        "E=$(touch>ran)`date>ran`\nF=a=b'c\"d\\e$HOME\nG=''\nH=last"
    )
    seen = variables_of(rank(checkout, TST_SECRETS=write_secrets(checkout, text)))
    assert {name: seen[name] for name in "ABCDEFGH"} == {
        "A": "abc",
        "B": "with spaces",
        "C": "double # quotes",
        "D": "",
        "E": "$(touch>ran)`date>ran`",
        "F": "a=b'c\"d\\e$HOME",
        "G": "",
        "H": "last",
    }
    assert not (checkout / "ran").exists()


@pytest.mark.parametrize(
    "line",
    [
        "A=abc canary",
        "A='canary",
        'A="canary',
        "A='can'ary'",
        "canary",
        "A canary=1",
        "1A=canary",
        "A-B=canary",
        "=canary",
        "UID=canary",
        "A='abc' # canary",
    ],
)
def test_bad_line_of_the_secrets_is_named_by_its_number_alone(checkout, line):
    text = f"GOOD=canary-1\n{line}\n\nA=1\n{line}\n"
    done = rank(checkout, TST_SECRETS=write_secrets(checkout, text))
    assert done.returncode == 2 and done.stdout == ""
    assert "secrets: not NAME=VALUE in line 2 5. A value with spaces needs quotes" in done.stderr
    assert "canary" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602, 0o601, 0o666])
def test_secrets_that_others_can_read_or_change_are_refused(checkout, mode):
    done = rank(checkout, TST_SECRETS=write_secrets(checkout, "A=canary\n", mode))
    assert done.returncode == 2 and f"has mode {mode:o}" in done.stderr
    assert "chmod 600 it" in done.stderr and "canary" not in done.stderr


# --- folders that programs are loaded from --------------------------------------------------------


def caches(checkout, **variables):
    done = rank(checkout, **variables)
    seen = variables_of(done)
    triton, inductor = seen["TRITON_CACHE_DIR"], seen["TORCHINDUCTOR_CACHE_DIR"]
    folder = os.path.dirname(triton)
    assert os.path.dirname(inductor) == folder
    assert os.stat(folder).st_uid == os.getuid() and os.stat(folder).st_mode & 0o777 == 0o700
    return folder, done.stderr


def test_ranks_of_a_node_share_caches_that_nobody_else_can_write_to(checkout):
    shared, said = caches(checkout)
    assert shared == f"{checkout}/scratch/tst-{os.getuid()}-7" and said == ""
    assert caches(checkout, SLURM_LOCALID="1") == (shared, "")
    assert caches(checkout, SLURM_JOB_ID="8")[0] != shared


def foreign(path):
    path.mkdir(mode=0o700)
    os.chown(path, 65534, -1)


OCCUPIED = {
    "open-to-all": lambda path: (path.mkdir(), path.chmod(0o777)),
    "open-to-the-group": lambda path: (path.mkdir(), path.chmod(0o770)),
    "a-file": lambda path: path.touch(mode=0o700),
    "a-link": lambda path: path.symlink_to(path.parent),
    "a-link-to-nothing": lambda path: path.symlink_to("nowhere"),
    "somebody-elses": foreign,
}


@pytest.mark.parametrize("how", OCCUPIED)
def test_caches_that_somebody_else_may_have_made_are_not_used(checkout, how):
    if how == "somebody-elses" and os.geteuid() != 0:
        pytest.skip("only root makes a folder that is another user's")
    place = checkout / "scratch" / f"tst-{os.getuid()}-7"
    place.parent.mkdir()
    OCCUPIED[how](place)
    other, said = caches(checkout)
    assert other != str(place) and os.path.dirname(other) == str(place.parent)
    assert f"{place} is not a folder of this user alone" in said and len(said.splitlines()) == 1
    assert not place.is_dir() or place.is_symlink() or not any(place.iterdir())


def test_old_caches_are_deleted_and_no_link_is_followed(checkout):
    scratch, mine = checkout / "scratch", f"tst-{os.getuid()}"
    elsewhere = checkout / "elsewhere"
    for folder in (f"{mine}-1", f"{mine}-2", f"tst-{os.getuid()}0-1", "other"):
        (scratch / folder / "triton").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (scratch / f"{mine}-1" / "link").symlink_to(elsewhere)
    (scratch / f"{mine}-3").symlink_to(elsewhere)
    old = time.time() - 9 * 24 * 3600
    for path in scratch.iterdir():
        if path.name != f"{mine}-2":
            os.utime(path, (old, old), follow_symlinks=False)
    os.utime(elsewhere, (old, old))
    assert rank(checkout).returncode == 0
    left = {path.name for path in scratch.iterdir()}
    assert left == {f"{mine}-2", f"{mine}-3", f"{mine}-7", f"tst-{os.getuid()}0-1", "other"}
    assert (elsewhere / "kept").exists()


def test_home_that_is_not_this_users_alone_is_exchanged(checkout, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    assert variables_of(rank(checkout, HOME=str(own)))["HOME"] == str(own)
    own.chmod(0o1777)
    for home in (str(own), str(tmp_path / "absent"), "unset"):
        seen = variables_of(rank(checkout, HOME=home))["HOME"]
        assert seen == f"{checkout}/scratch/tst-{os.getuid()}-7/home"
        assert os.stat(seen).st_mode & 0o777 == 0o700


def test_rank_whose_node_has_no_place_for_caches_fails(checkout):
    done = rank(checkout, TST_SCRATCH=str(checkout / "absent"))
    assert done.returncode == 1 and "absent" in done.stderr and done.stdout == ""
