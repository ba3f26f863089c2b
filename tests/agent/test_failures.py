"""Classes of a trainer's end, and the budget of starts."""

from __future__ import annotations

import signal

import pytest

from agent.failures import Failure, Restarts, Verdict, classify
from agent.keeper import Ended

EXIT_1 = Ended(1, None)


def judge(
    ended: Ended,
    *lines: str,
    stepped: bool = True,
    resumed: bool = False,
    out_of_memory: bool = False,
    hung: bool = False,
) -> Failure:
    return classify(ended, lines, stepped=stepped, resumed=resumed, out_of_memory=out_of_memory, hung=hung)


@pytest.mark.parametrize(
    ("line", "kind", "verdict"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "gpu-memory", Verdict.HERE),
        ("XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating", "gpu-memory", Verdict.HERE),
        ("RuntimeError: CUDA error: device-side assert triggered", "gpu-lost", Verdict.ELSEWHERE),
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "gpu-lost", Verdict.ELSEWHERE),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "gpu-lost", Verdict.ELSEWHERE),
        ("OSError: [Errno 28] No space left on device", "no-space", Verdict.ELSEWHERE),
        ("ValueError: loss is nan at step 12", "not-a-number", Verdict.HERE),
        ("FloatingPointError: invalid value (nan) encountered in jit(step)", "not-a-number", Verdict.HERE),
        ("MemoryError", "host-memory", Verdict.HERE),
        ("requests.exceptions.ConnectionError: Max retries exceeded", "network", Verdict.ELSEWHERE),
        ("RuntimeError: boom", "unknown", Verdict.HERE),
    ],
)
def test_lines_of_a_trainer_under_way(line: str, kind: str, verdict: Verdict) -> None:
    found = judge(EXIT_1, "Traceback (most recent call last):", line)
    assert (found.kind, found.verdict) == (kind, verdict)
    assert len(found.sentence) > 20


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ModuleNotFoundError: No module named 'openpi'", "import-error"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'inputs/dataset'", "missing-data"),
        ("usage: train.py [-h] --data DATA", "arguments"),
    ],
)
def test_what_the_trainer_lacks_before_any_step_of_the_run_is_never_tried_again(line: str, kind: str) -> None:
    found = judge(EXIT_1, line, stepped=False)
    assert (found.kind, found.verdict) == (kind, Verdict.NEVER)


def test_any_other_crash_before_the_first_step_is_left_to_the_count_of_starts() -> None:
    found = judge(EXIT_1, "ValueError: something about the configuration", stepped=False)
    assert (found.kind, found.verdict) == ("start", Verdict.HERE)
    assert judge(Ended(127, None), stepped=False).verdict is Verdict.NEVER


@pytest.mark.parametrize(
    "line",
    [
        "W tensorflow: Could not load dynamic library 'libnvinfer.so.7'; dlerror: libnvinfer.so.7: No such file or directory",
        "wandb: Network error (ConnectionError), entering retry loop.",
        "WARNING: cache not written: No space left on device, going on without",
        "retrying: HTTP 503, Max retries exceeded is next",
        "mmap hint: Cannot allocate memory with huge pages, using small ones",
        "health check: Xid errors: 0, uncorrectable ECC errors: 0",
        "gpu0 volatile uncorrectable ECC = 0",
    ],
)
def test_what_is_only_mentioned_is_not_the_reason(line: str) -> None:
    assert judge(EXIT_1, line, "RuntimeError: boom").kind == "unknown"
    assert judge(EXIT_1, line).kind == "unknown"
    assert judge(EXIT_1, line, "Traceback (most recent call last):", stepped=False).kind == "start"


XLA = "jaxlib.xla_extension.XlaRuntimeError"
NO_DEVICE = "CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
NO_SPACE = (
    'RESOURCE_EXHAUSTED: Error writing "a/b": No space left on device [OS error 28: ENOSPC No space left on device]'
)


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable", "gpu-lost"),
        ("RuntimeError: CUDA error: unknown error", "gpu-lost"),
        ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "gpu-lost"),
        ("RuntimeError: CUDA error: unspecified launch failure", "gpu-lost"),
        ("RuntimeError: cudaGetDeviceCount() failed. Error 802: system not yet initialized", "gpu-lost"),
        ("RuntimeError: No CUDA GPUs are available", "gpu-lost"),
        (f"RuntimeError: {NO_DRIVER}", "gpu-lost"),
        ("RuntimeError: Failed to initialize NVML: Driver/library version mismatch", "gpu-lost"),
        ("RuntimeError: Unable to initialize backend 'cuda': FAILED_PRECONDITION: No visible GPU devices.", "gpu-lost"),
        ("jaxlib._jax.XlaRuntimeError: INTERNAL: no supported devices found for platform CUDA", "gpu-lost"),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "gpu-lost"),
        (f"{XLA}: FAILED_PRECONDITION: DNN library initialization failed. Look at the errors above.", "gpu-lost"),
        (f"{XLA}: INTERNAL: Failed to launch CUDA kernel: fusion_1: CUDA_ERROR_INVALID_HANDLE", "gpu-lost"),
        (f"{XLA}: INTERNAL: failed call to cuInit: {NO_DEVICE}", "gpu-lost"),
        ("torch.distributed.DistBackendError: NCCL error in: a.cpp:1691, unhandled system error", "gpu-lost"),
        ("RuntimeError: CUDA error: initialization error", "gpu-lost"),
        ("RuntimeError: CUDA error: the launch timed out and was terminated", "gpu-lost"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "gpu-lost"),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "gpu-lost"),
        ("RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu.", "gpu-lost"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", "gpu-lost"),
        (
            "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host a:443 [Network unreachable]",
            "network",
        ),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file",
            "network",
        ),
        ("OSError: [Errno 5] Input/output error: 'inputs/dataset/shard-3'", "node-fault"),
        ("OSError: [Errno 116] Stale file handle", "node-fault"),
        ("OSError: [Errno 30] Read-only file system: 'cache'", "node-fault"),
        ("OSError: [Errno 107] Transport endpoint is not connected: '/cvmfs'", "node-fault"),
        (f"ValueError: {NO_SPACE}", "no-space"),
        (f"jaxlib._jax.XlaRuntimeError: {NO_SPACE}", "no-space"),
    ],
)
def test_what_a_machine_lacks_or_broke_is_tried_elsewhere_even_before_the_first_step(
    line: str, kind: str, stepped: bool
) -> None:
    found = judge(EXIT_1, "Traceback (most recent call last):", line, stepped=stepped)
    assert (found.kind, found.verdict) == (kind, Verdict.ELSEWHERE)


@pytest.mark.parametrize(
    "line",
    [
        "INFO:jax._src.xla_bridge:Unable to initialize backend 'cuda': no supported devices found",
        f"UserWarning: CUDA initialization: {NO_DRIVER}",
        "UserWarning: CUDA initialization: CUDA driver initialization failed, you might not have a CUDA gpu.",
        f"E external/local_xla/xla/stream_executor/cuda/cuda_driver.cc:152] failed call to cuInit: {NO_DEVICE}",
        "E cuda_driver.cc:152] failed call to cuInit: CUDA_ERROR_UNKNOWN: unknown error",
        "the table of Xid numbers is in the manual",
        "W cache not written: Input/output error",
    ],
)
def test_a_processor_only_run_that_mentions_a_missing_gpu_did_not_lose_one(line: str) -> None:
    assert judge(EXIT_1, line, "RuntimeError: boom", stepped=False).kind == "start"


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("ModuleNotFoundError: No module named 'jax'", Verdict.HERE),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'cvmfs/x'", Verdict.HERE),
        ("train.py: error: unrecognized arguments: --resume", Verdict.NEVER),
    ],
)
def test_what_was_there_for_an_earlier_start_is_not_given_up_at_once(line: str, verdict: Verdict) -> None:
    assert judge(EXIT_1, line, stepped=False, resumed=True).verdict is verdict


def test_an_exception_that_was_caught_before_is_not_the_reason_but_one_that_led_to_the_last_is() -> None:
    caught = ("Traceback (most recent call last):", "ConnectionError: the hub is away", "going on with the cache")
    assert judge(EXIT_1, *caught, "Traceback (most recent call last):", "RuntimeError: boom").kind == "unknown"
    chained = "During handling of the above exception, another exception occurred:"
    assert judge(EXIT_1, *caught[:2], "", chained, "", "RuntimeError: boom").kind == "network"


@pytest.mark.parametrize(
    "line", ["[rank0]: FileNotFoundError: [Errno 2] no data", "builtins.FileNotFoundError: no data"]
)
def test_an_exception_counts_with_a_ranks_prefix_and_a_modules_name(line: str) -> None:
    assert (
        judge(EXIT_1, "Traceback (most recent call last):", line, "shutting down", stepped=False).kind == "missing-data"
    )


TORCHRUN = """[rank0]: Traceback (most recent call last):
[rank0]:   File "train.py", line 3, in <module>
{0}
E1127 22:45:24.123000 123 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: {1}) local_rank: 0 (pid: 123) of binary: python3
Traceback (most recent call last):
  File "/x/site-packages/torch/distributed/launcher/api.py", line 263, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
Failures:
[1]:
  exitcode  : -15 (pid: 124)
Root Cause (first observed failure):
[0]:
  exitcode  : {1} (pid: 123)
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================"""
ACCELERATE = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
{0}
Traceback (most recent call last):
  File "/x/site-packages/accelerate/commands/launch.py", line 763, in simple_launcher
    raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)
subprocess.CalledProcessError: Command '['python3', 'train.py']' returned non-zero exit status {1}."""


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE])
@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("OSError: [Errno 28] No space left on device", "no-space"),
        ("RuntimeError: No CUDA GPUs are available", "gpu-lost"),
        ("ModuleNotFoundError: No module named 'x'", "import-error"),
        ("RuntimeError: boom", "start"),
    ],
)
def test_what_a_launcher_raises_over_its_worker_hides_nothing(launcher: str, line: str, kind: str) -> None:
    prefix = "[rank0]: " if launcher is TORCHRUN else ""
    lines = launcher.format(prefix + line, 1).splitlines()
    assert judge(EXIT_1, *lines, stepped=False).kind == kind


@pytest.mark.parametrize(
    ("ended", "lines", "verdict"),
    [
        (Ended(128 + signal.SIGKILL, None), ["train.sh: line 2: 123 Killed  python3 train.py"], Verdict.HERE),
        (Ended(128 + signal.SIGBUS, None), [], Verdict.ELSEWHERE),
        (EXIT_1, TORCHRUN.format("FileNotFoundError: x", -9).splitlines(), Verdict.HERE),
        (EXIT_1, TORCHRUN.format("", -signal.SIGBUS).splitlines(), Verdict.ELSEWHERE),
        (EXIT_1, ["subprocess.CalledProcessError: Command 'x' died with <Signals.SIGKILL: 9>."], Verdict.HERE),
    ],
)
def test_a_signal_is_known_by_the_word_of_the_shell_or_launcher_that_saw_it(
    ended: Ended, lines: list[str], verdict: Verdict
) -> None:
    found = judge(ended, *lines, stepped=False)
    assert found.kind == ("killed" if verdict is Verdict.HERE else "node-fault")
    assert found.verdict is verdict
    assert "SIGKILL" in found.sentence or "SIGBUS" in found.sentence


def test_a_signal_that_killed_another_program_before_is_not_the_trainers_end() -> None:
    probe = "subprocess.CalledProcessError: Command 'probe' died with <Signals.SIGILL: 4>."
    missing = "ModuleNotFoundError: No module named 'x'"
    assert judge(EXIT_1, probe, "going on without", missing, stepped=False).kind == "import-error"
    assert judge(EXIT_1, probe, *ACCELERATE.format(missing, 1).splitlines(), stepped=False).kind == "import-error"
    assert judge(EXIT_1, probe, "RuntimeError: boom").kind == "unknown"
    led_to = "The above exception was the direct cause of the following exception:"
    assert judge(EXIT_1, probe, led_to, "RuntimeError: the probe failed").kind == "node-fault"


@pytest.mark.parametrize("code", [2, 127, 128, 128 + 65, 255])
def test_not_every_exit_code_tells_of_a_signal(code: int) -> None:
    assert judge(Ended(code, None)).kind in ("unknown", "not-found")


def test_who_was_killed_is_never_given_up_because_of_a_line() -> None:
    line = "FileNotFoundError: [Errno 2] No such file or directory: 'x'"
    found = judge(Ended(None, signal.SIGKILL), line, stepped=False)
    assert (found.kind, found.verdict) == ("killed", Verdict.HERE)
    assert judge(
        Ended(None, signal.SIGABRT), "terminate called after throwing an instance of 'std::bad_alloc'"
    ).kind == ("host-memory")


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: DataLoader worker (pid 55) is killed by signal: Killed. ",
        "RuntimeError: DataLoader worker (pid 55) is killed by signal: Bus error. It is possible that …",
        "RuntimeError: DataLoader worker (pid(s) 123) exited unexpectedly",
        "concurrent.futures.process.BrokenProcessPool: A process in the process pool was terminated abruptly",
    ],
)
def test_a_worker_that_was_killed_is_no_fault_of_the_run(line: str, stepped: bool) -> None:
    found = judge(EXIT_1, "Traceback (most recent call last):", line, stepped=stepped)
    assert (found.kind, found.verdict) == ("killed", Verdict.HERE)
    assert "worker" in found.sentence


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(
    "lines",
    [
        ("wandb.errors.errors.CommError: Run initialization has timed out after 90.0 sec. Network is unreachable",),
        (
            "wandb.errors.errors.UsageError: You provided an invalid value for the `resume` argument. The value 'must' …",
        ),
        (
            "[rank0]: wandb.errors.UsageError: No API key configured. Use `wandb login` to log in.",
            "panic: runtime error",
        ),
        (
            '  File "train.py", line 60, in init_wandb',
            '  File "/.venv/lib/python3.11/site-packages/wandb/sdk/wandb_login.py", line 9, in login',
            "    raise ValueError",
            "ValueError: API key must be 40 characters long, yours was 5",
        ),
        (
            '  File "/.venv/lib/python3.11/site-packages/wandb/apis/public.py", line 9, in get',
            "requests.exceptions.ConnectionError: Max retries exceeded",
        ),
    ],
)
def test_what_wandb_raises_is_told_from_a_crash(lines: tuple[str, ...], stepped: bool) -> None:
    found = judge(EXIT_1, "Traceback (most recent call last):", *lines, stepped=stepped)
    assert (found.kind, found.verdict) == ("wandb", Verdict.HERE)


def test_an_exception_in_the_trainers_own_code_for_wandb_is_not_wandbs() -> None:
    frames = (
        '  File "/venv/lib/python3.11/site-packages/wandb/sdk/wandb_run.py", line 9, in wrapper',
        '  File "lerobot/common/utils/wandb_utils.py", line 30, in log_dict',
    )
    assert judge(EXIT_1, "Traceback (most recent call last):", *frames, "ValueError: train").kind == "unknown"


def test_a_resumed_start_that_fails_at_once_is_tried_again() -> None:
    assert judge(EXIT_1, "RuntimeError: boom", stepped=False, resumed=True).verdict is Verdict.HERE


def test_signals() -> None:
    assert judge(Ended(None, signal.SIGKILL)).kind == "killed"
    assert "request_memory" in judge(Ended(None, signal.SIGKILL)).sentence
    assert "last lines" in judge(Ended(None, signal.SIGSEGV)).sentence
    assert judge(Ended(None, signal.SIGBUS)).verdict is Verdict.ELSEWHERE
    assert judge(Ended(None, signal.SIGKILL), out_of_memory=True).kind == "host-memory"
    assert judge(Ended(None, signal.SIGABRT), hung=True).kind == "hang"


def test_an_end_without_error_before_the_last_step() -> None:
    assert judge(Ended(0, None)).kind == "early-end"


def test_three_starts_that_get_no_further_exhaust_the_budget() -> None:
    restarts = Restarts()
    for step in (37, 37):
        restarts.note(step)
        assert not restarts.exhausted
    restarts.note(36)
    assert restarts.exhausted
    assert restarts.step == 37


def test_progress_between_crashes_renews_the_budget() -> None:
    restarts = Restarts()
    for step in (37, 37, 60, 60):
        restarts.note(step)
    assert not restarts.exhausted
    assert restarts.total == 4
