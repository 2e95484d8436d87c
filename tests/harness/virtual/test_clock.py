from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.virtual.clock import (
    PAGE_ENV,
    ClockPage,
    board_clock_environment,
    build_shim,
    require_touched_pages,
)
from harness.virtual.errors import RackError

# The same short work at stretch 1 and at the page's, in turns within one process: what else the
# machine does only ever adds, and most turns are too short to be preempted, so a low quantile
# over many is what the clock itself gives.
RATIO = """
import json, mmap, os, struct, time
def ratio(work, n=600):
    with open(os.environ["FLEETCUT_CLOCK_PAGE"], "r+b") as file:
        page = mmap.mmap(file.fileno(), 4096)
    asked = page[8:16]
    taken = {struct.pack("<Q", 10**9): [], asked: []}
    for _ in range(n):
        for stretch, found in taken.items():
            page[8:16] = stretch
            start_ns = time.perf_counter_ns()
            work()
            found.append(time.perf_counter_ns() - start_ns)
    page[8:16] = asked
    # Other work only ever adds, so the low tenth counts; and a host whose cores are slow for a
    # while is so for both of a block.
    blocks = []
    for at in range(0, n, 60):
        fast, slow = (sorted(found[at : at + 60])[6] for found in taken.values())
        blocks.append(slow / fast)
    return sorted(blocks)[len(blocks) // 2]
"""
PYTHON_LOOP = """
def work():
    total = 0
    for i in range(5000):
        total += i * i
"""
CONVOLUTION = """
import sys
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.ones((1, 16, 32, 32), np.float32)
def work():
    session.run(None, {"x": x})
for _ in range(50):
    work()
"""
SAY = "print(json.dumps(ratio(work)))"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def page(tmp_path: Path) -> ClockPage:
    return ClockPage(tmp_path / "page")


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one 3 by 3 convolution, 16 → 32 channels."""
    import numpy as np
    import onnx

    weights = np.full((32, 16, 3, 3), 0.01, np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "conv",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16, 32, 32])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 32, 32, 32])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path_factory.mktemp("model") / "conv.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run(library: Path, page: Path, source: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env={"PATH": "/usr/bin:/bin", **board_clock_environment(library, page)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("stretch", [1.02, 1.5, 2.0, 3.0])
def test_a_loop_takes_as_much_longer_as_the_clock_is_slower(
    library: Path, page: ClockPage, stretch: float
) -> None:
    page.stretch = stretch
    found = json.loads(run(library, page.path, RATIO + PYTHON_LOOP + SAY))
    assert found == pytest.approx(stretch, rel=0.05)


@pytest.mark.parametrize("stretch", [1.02, 1.5, 2.0, 3.0])
def test_inference_takes_as_much_longer_as_the_clock_is_slower(
    library: Path, page: ClockPage, convolution: Path, stretch: float
) -> None:
    page.stretch = stretch
    found = json.loads(run(library, page.path, RATIO + CONVOLUTION + SAY, str(convolution)))
    assert found == pytest.approx(stretch, rel=0.05)


def test_a_thread_and_a_forked_child_have_debts_of_their_own(
    library: Path, page: ClockPage
) -> None:
    page.stretch = 2.0
    in_thread = "import threading; out = []; t = threading.Thread(target=lambda: out.append("
    in_thread += "ratio(work))); t.start(); t.join(); print(out[0], flush=True)\n"
    in_child = "import os; pid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse: print(ratio(work))"
    out = run(library, page.path, RATIO + PYTHON_LOOP + in_thread + in_child)
    assert [float(line) for line in out.split()] == pytest.approx([2.0, 2.0], rel=0.05)


def test_the_page_counts_the_boards_own_cpu_time(library: Path, page: ClockPage) -> None:
    page.stretch = 3.0
    said = run(
        library,
        page.path,
        "import time; s = time.process_time()\n"
        "while (used := time.process_time() - s) < 0.5: pass\n"
        "print(time.process_time())",
    )
    assert page.busy_s == pytest.approx(3.0 * float(said), rel=0.15)


def test_a_program_that_never_looks_at_a_clock_ends_as_late(library: Path, page: ClockPage) -> None:
    page.stretch = 3.0
    source = "import sys, os\nx = 0\nfor i in range(3000000): x += i\n"
    source += "t = os.times(); print(t.user + t.system)"
    with_clock = (
        "import os, subprocess, sys, time\n"
        "del os.environ['FLEETCUT_CLOCK_PAGE']\n"  # this one measures on the host's own time
        "t0 = time.perf_counter(); out = subprocess.run([sys.executable, '-c', sys.argv[1]],"
        " env={**os.environ, 'FLEETCUT_CLOCK_PAGE': sys.argv[2]}, capture_output=True).stdout\n"
        "print((time.perf_counter() - t0) / float(out))"
    )
    nowhere = page.path.with_name("nowhere")
    ratio = float(run(library, nowhere, with_clock, source, str(page.path)))
    assert ratio > 2.7


@pytest.mark.parametrize("content", [None, b"", b"x" * 4096])
def test_without_its_page_the_library_does_nothing(
    library: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "page"
    if content is not None:
        path.write_bytes(content)
    source = "import time; t = time.perf_counter(); print(time.perf_counter() >= t)"
    assert run(library, path, source) == "True\n"
    assert content is None or path.read_bytes() == content


# What work() takes at least, by how many bytes of a buffer it touches or how often it allocates.
SHAPES = """
import ctypes, json, mmap, sys, time
libc = ctypes.PyDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
buffer = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def touch(n):
    for i in range(0, n, 4096):
        buffer[i] = 1
def allocate(n):
    for _ in range(n):
        libc.free(libc.malloc(64))
def least_ns(work, n, times=9):
    found = []
    for _ in range(times):
        start_ns = time.perf_counter_ns()
        work(n)
        found.append(time.perf_counter_ns() - start_ns)
    return min(found)
"""


def test_pages_beyond_the_cache_cost_their_bytes(library: Path, page: ClockPage) -> None:
    page.set_shape(memory_bytes_per_s=10**9, cache_bytes=8 << 20, malloc_ns=0)
    say = "print(json.dumps([least_ns(touch, n << 20) for n in (64, 24, 1)]))"
    large_ns, medium_ns, small_ns = json.loads(run(library, page.path, SHAPES + say))
    assert large_ns >= (64 - 8) << 20
    assert medium_ns >= (24 - 8) << 20
    assert small_ns < 2 << 20
    page.set_shape(memory_bytes_per_s=None, cache_bytes=8 << 20, malloc_ns=0)
    (fast_ns,) = json.loads(run(library, page.path, SHAPES + "print([least_ns(touch, 64 << 20)])"))
    assert fast_ns < large_ns / 2


def test_each_allocation_costs_its_time(library: Path, page: ClockPage) -> None:
    page.set_shape(memory_bytes_per_s=None, cache_bytes=8 << 20, malloc_ns=20_000)
    say = "print(json.dumps([least_ns(allocate, n) for n in (1000, 10)]))"
    many_ns, few_ns = json.loads(run(library, page.path, SHAPES + say))
    assert many_ns >= 1000 * 20_000
    assert 10 * 20_000 <= few_ns < many_ns / 10


def test_the_clock_of_slow_memory_never_goes_back(library: Path, page: ClockPage) -> None:
    page.set_shape(memory_bytes_per_s=10**9, cache_bytes=2 << 20, malloc_ns=0)
    say = """
seen = []
for i in range(300):
    seen.append(time.perf_counter_ns())
    touch(i % 7 << 19)
    if i % 5 == 0:
        open("/proc/self/stat").close()
print(seen == sorted(seen))
"""
    assert run(library, page.path, SHAPES + say) == "True\n"


def test_a_kernel_that_does_not_count_pages_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RackError, match=r"no /proc/self/clear_refs.*Next: leave memory-bound out"):
        require_touched_pages()


def test_other_clocks_are_the_hosts(library: Path, page: ClockPage) -> None:
    page.stretch = 2.0
    source = "import time; print(time.time(), time.clock_gettime(time.CLOCK_TAI) > 0)\n"
    source += "try: time.clock_gettime(99)\nexcept OSError as e: print(e.errno)"
    out = run(library, page.path, source).split()
    assert float(out[0]) > 1.6e9
    assert out[1:] == ["True", "22"]


def test_the_library_is_built_once_for_one_source(tmp_path: Path) -> None:
    first = build_shim(tmp_path)
    built = first.stat()
    assert build_shim(tmp_path) == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (built.st_ino, built.st_mtime_ns)


def test_without_a_compiler_the_error_names_it_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RackError, match=r"no C compiler.*Next: apt-get install gcc"):
        build_shim(tmp_path)


def test_a_compiler_that_fails_is_reported_and_leaves_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'dlfcn.h: no such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RackError, match=r"dlfcn\.h: no such file.*Next: install"):
        build_shim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cc"]


def test_the_counter_goes_on_when_a_page_is_opened_again(tmp_path: Path, library: Path) -> None:
    first = ClockPage(tmp_path / "page")
    run(library, first.path, "for i in range(100000): pass")
    counted_s = first.busy_s
    first.close()
    assert counted_s > 0
    assert ClockPage(tmp_path / "page").busy_s == counted_s
    with pytest.raises(ValueError, match="at least 1"):
        ClockPage(tmp_path / "page").stretch = 0.5
    assert os.environ.get(PAGE_ENV) is None
