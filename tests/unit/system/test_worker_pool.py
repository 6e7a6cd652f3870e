import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tst_megatron.system.processes.worker_pool import in_order


def half(item: int, advance) -> int:
    """Work that takes the longer, the earlier the item, and refuses odd ones above 100."""
    time.sleep(0.05 if item < 2 else 0)
    advance(item)
    if item == 101:
        raise ValueError("odd")
    if item == 102:
        raise OSError("disk")
    if item == 103:
        os.kill(os.getpid(), signal.SIGKILL)
    return item // 2


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    steps: list[int] = []
    items = [0, 8, 2, 101, 4, 102, 6]
    with closing(in_order(half, items, workers=workers, advance=steps.append)) as results:
        found = list(results)
    assert [item for item, _ in found] == items
    assert [result for _, result in found if isinstance(result, int)] == [0, 4, 1, 2, 3]
    assert [str(error) for _, error in found if isinstance(error, Exception)] == ["odd", "disk"]
    assert sum(steps) == sum(items)


def test_killed_worker_is_said() -> None:
    with (
        closing(in_order(half, [0, 103, 1], workers=2, advance=lambda n: None)) as results,
        pytest.raises(RuntimeError, match=r"a worker process was killed.*the same command goes on"),
    ):
        list(results)


def wait_long(item: int, advance) -> None:
    Path(os.environ["MARK"]).with_name(f"pid-{os.getpid()}").touch()
    time.sleep(600)


def test_workers_end_with_their_killed_parent(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_worker_pool import in_order, wait_long\n"
        "if __name__ == '__main__':\n"
        "    list(in_order(wait_long, [1, 2], workers=2, advance=print))\n"
    )
    (tmp_path / "main.py").write_text(code)
    environment = {**os.environ, "MARK": str(tmp_path / "mark")}
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py"], env=environment)
    deadline = time.monotonic() + 60
    while len(pids := [int(p.name[4:]) for p in tmp_path.glob("pid-*")]) < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
