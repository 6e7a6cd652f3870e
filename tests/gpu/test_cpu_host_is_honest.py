"""The CPU host gives what a GPU gives: the same recipe, 20 steps on each, in fp32."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine import VISIBLE_DEVICES

sys.path.insert(0, str(Path(__file__).parent.parent / "megatron"))

import tiny  # noqa: E402

from tst_megatron.quickstart import GPU_WITHOUT_TRANSFORMER_ENGINE  # noqa: E402

pytestmark = pytest.mark.gpu

ON_GPU = (
    "profile=null",
    "use-cpu-initialization=true",
    "bias-dropout-fusion=false",
    "bias-swiglu-fusion=false",
    *GPU_WITHOUT_TRANSFORMER_ENGINE,
)


def on_gpu() -> dict[str, str]:
    """The environment with the GPUs that the tests hide."""
    shown = dict(os.environ)
    shown.pop("CUDA_VISIBLE_DEVICES", None)
    if VISIBLE_DEVICES is not None:
        shown["CUDA_VISIBLE_DEVICES"] = VISIBLE_DEVICES
    return shown


@pytest.fixture(autouse=True)
def a_gpu():
    probe = "import torch; raise SystemExit(not torch.cuda.is_available())"
    if not shutil.which("nvidia-smi"):
        pytest.skip("no CUDA device")
    if subprocess.run([sys.executable, "-c", probe], env=on_gpu(), check=False).returncode:
        pytest.skip("torch finds no CUDA device")


def test_losses_of_both_phases_agree_with_the_cpu_host(text, tmp_path):
    recipe = tiny.write_recipe(
        tmp_path / "tst.yaml", text, {"bag-size": 4, "superposition-steps": 10}
    )
    tiny.run(
        *("train", str(recipe), "--nproc", "1", "--run-folder", str(tmp_path / "cpu")),
        log=tmp_path / "cpu.log",
    )
    command = [sys.executable, "-m", "tst_megatron", "train", str(recipe), *ON_GPU]
    done = subprocess.run(
        [*command, "--nproc", "1", "--run-folder", str(tmp_path / "gpu")],
        env=on_gpu(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    on_cpu, on_device = tiny.metrics(tmp_path / "cpu"), tiny.metrics(tmp_path / "gpu")
    assert on_device[0]["device"] != "cpu"
    for name, steps in (("bag loss", slice(0, 10)), ("lm loss", slice(10, 20))):
        expected = [row[name] for row in on_cpu[steps]]
        # fp32 with other summation orders; 20 steps let the difference grow.
        assert [row[name] for row in on_device[steps]] == pytest.approx(expected, rel=2e-3)
