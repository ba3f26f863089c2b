"""What a trainer's end means, by exit code, signal and its last lines: try again here, on another machine, or never.

Each class has one sentence with the reason and what to do. Three starts that get no further than the same step end the run's node:
a fourth would not differ. Evictions are not failures and are never counted here.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from agent.keeper import Ended

SAME_STEP_STARTS = 3
MOST_RESTARTS = 12
OF_THE_MACHINE = ("import-error", "missing-data", "not-found")
"""What was there for an earlier start, so that a mount or a disk may be the reason."""


class Verdict(Enum):
    """What to do about a failure."""

    HERE = "restart here from the last good checkpoint"
    ELSEWHERE = "exit 75: another machine may do better"
    NEVER = "exit 78: no retry can help"


@dataclass(frozen=True)
class Failure:
    """``kind`` is the class's short name (handover), ``sentence`` says what happened and what to do."""

    kind: str
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class _Rule:
    kind: str
    pattern: re.Pattern[str]
    verdict: Verdict
    sentence: str
    as_exception: bool


def _rule(kind: str, pattern: str, verdict: Verdict, sentence: str, *, as_exception: bool = False) -> _Rule:
    return _Rule(kind, re.compile(pattern), verdict, sentence, as_exception)


# A rank's prefix, then the exception's name: what trainers only mention (a library that is optional, a retry) is not a reason to end.
_EXCEPTION = re.compile(
    r"^(?:\[[^\]]*\]:? ?)*(?=(?:\w+\.)*\w*(?:Error|Exception|Timeout|Interrupt|Exit|BrokenProcessPool)\b(?::|$)|terminate called after throwing)"
)
_EARLIER = re.compile(r"During handling of the above exception|The above exception was the direct cause|^…$")
_LAUNCHER = re.compile(r"(?:\w+\.)*(?:ChildFailedError|CalledProcessError)\b")
"""What torchrun, accelerate and their like raise when the program below them has failed: that one's exception led to it."""
_BELOW = re.compile(r"^\s*exitcode\s*: (-?\d+) \(pid|died with <Signals\.\w+: (\d+)>")
"""How such a launcher says how it ended; of several workers the last one named was the first to fail."""
_SHELL_SIGNAL = 128
_IN_WANDB = re.compile(r'^(?:\[[^\]]*\]:? ?)*\s*File "[^"]*[/\\](?:site|dist)-packages[/\\]wandb[/\\]')
_FRAME = re.compile(r'^(?:\[[^\]]*\]:? ?)*\s*File "[^"]*", line \d+')
_GPU_LOST = "the GPU failed on this machine; the segment goes on elsewhere"
# The first that matches one of the last lines, newest line first, decides; so the more specific stand first. ``as_exception``: its words
# occur in harmless lines too, so it counts only for the exception that ended the trainer, or one that led to it.
_RULES = (
    _rule(
        "wandb",
        r"^wandb\.",
        Verdict.HERE,
        "W&B's client ended the trainer; starts of a run with [wandb] in run.toml write offline from now on, `segue wandb sync` sends that later",
        as_exception=True,
    ),
    _rule(
        "gpu-lost",
        # counts of none are a health check's
        r"\bXid\b[^,;]{0,30}: ?(?!0\b)\d|(?:uncorrectable ECC|ECC error)(?!(?: ?errors?)?s? ?[:=] ?0\b)"
        r"|fallen off the bus|device-side assert|CUDA_ERROR_(?:ECC|LAUNCH_FAILED|ILLEGAL)"
        r"|[Uu]nable to determine the device handle|GPU is lost|NVML.*Unknown Error",
        Verdict.ELSEWHERE,
        _GPU_LOST,
    ),
    _rule(  # a run that is content with processors mentions these
        "gpu-lost",
        r"CUDA-capable devices are busy|system not yet initialized|CUDA_ERROR_(?:SYSTEM|NO_DEVICE|UNKNOWN|INVALID_HANDLE|NOT_INITIALIZED)"
        r"|no CUDA-capable device|No CUDA GPUs are available|Found no NVIDIA driver|NVIDIA driver on your system is too old"
        r"|CUDA driver initialization failed|DNN library initialization failed|Failed to launch CUDA kernel|Driver/library version mismatch"
        r"|CUDA error: (?:unknown|initialization error|the launch timed out|an illegal memory access|unspecified launch failure)"
        r"|Unable to initialize backend '(?:cuda|gpu)'|no supported devices found|CU(?:DNN|BLAS)_STATUS_(?:INTERNAL_ERROR|NOT_INITIALIZED)"
        r"|NCCL error.*unhandled (?:system|cuda) error",
        Verdict.ELSEWHERE,
        _GPU_LOST,
        as_exception=True,
    ),
    _rule(  # before the GPU's memory: some libraries call a full disk RESOURCE_EXHAUSTED
        "no-space",
        r"No space left on device|Disk quota exceeded|ENOSPC",
        Verdict.ELSEWHERE,
        "the disk is full; raise request_disk, or keep fewer checkpoints in scratch",
        as_exception=True,
    ),
    _rule(
        "gpu-memory",
        r"CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|RESOURCE_EXHAUSTED|OutOfMemoryError|out of memory while trying to allocate",
        Verdict.HERE,
        "the GPU's memory is too small for this batch; use a smaller batch, LoRA, or ask for a GPU with more memory",
    ),
    _rule(
        "node-fault",
        r"\[Errno (?:5|30|107|116)\]|Input/output error|Read-only file system|Transport endpoint is not connected|Stale (?:NFS )?file handle",
        Verdict.ELSEWHERE,
        "a disk or a mount failed on this machine, or the trainer writes where the image is read-only; the segment goes on elsewhere",
        as_exception=True,
    ),
    _rule(  # of the kernel or for lack of memory; the trainer then ends with an exception of its own
        "killed",
        r"worker \(pid.*(?:is killed by signal|exited unexpectedly)|BrokenProcessPool",
        Verdict.HERE,
        "one of the trainer's workers was killed; when it comes again, use fewer data workers or raise request_memory",
        as_exception=True,
    ),
    _rule(
        "import-error",
        r"^(?:\w+\.)*(?:ModuleNotFoundError|ImportError)\b",
        Verdict.NEVER,
        "the trainer's program lacks a module; it belongs into the image, or python names the wrong interpreter",
        as_exception=True,
    ),
    _rule(
        "network",
        r"ConnectionError|Connection (?:refused|reset)|Temporary failure in name resolution|Name or service not known|Max retries exceeded"
        r"|ReadTimeout|ClientConnectorError|LocalEntryNotFoundError|Network (?:is )?unreachable|HTTP(?:Error)?:? (?:429|5\d\d)",
        Verdict.ELSEWHERE,
        "the trainer wanted something from the network and did not get it; stage it as an input, or try another machine",
        as_exception=True,
    ),
    _rule(
        "not-a-number",
        r"(?i)\bloss\b.{0,20}\b(?:is|became|=|:)\s*nan\b|FloatingPointError|nan (?:loss|detected|encountered|gradient)|non-finite (?:loss|gradient)",
        Verdict.HERE,
        "the loss is no number any more; training goes back to the last checkpoint, lower the learning rate when it comes again",
    ),
    _rule(
        "host-memory",
        r"^(?:\w+\.)*\w*MemoryError\b|Cannot allocate memory|std::bad_alloc",
        Verdict.HERE,
        "the job's memory is used up; raise request_memory or use fewer data workers",
        as_exception=True,
    ),
    _rule(
        "missing-data",
        r"^(?:\w+\.)*FileNotFoundError\b|No such file or directory",
        Verdict.NEVER,
        "the trainer did not find a file that it needs; check the inputs and their targets",
        as_exception=True,
    ),
    _rule(
        "arguments",
        r"^usage: |error: (?:the following arguments|unrecognized arguments|argument )",
        Verdict.NEVER,
        "the trainer does not understand its arguments; check args in run.toml",
    ),
)
_WANDB = Failure(_RULES[0].kind, _RULES[0].verdict, _RULES[0].sentence)
_NODE_SIGNALS = (signal.SIGBUS, signal.SIGILL)


def classify(
    ended: Ended, lines: Sequence[str], *, stepped: bool, resumed: bool, out_of_memory: bool, hung: bool
) -> Failure:
    """The class of a trainer's unwanted end.

    ``stepped``: this start made a step; ``resumed``: it began from a checkpoint; ``out_of_memory``: the control group killed
    something for memory meanwhile; ``hung``: the agent ended it because no step came.
    """
    if hung:
        return Failure(
            "hang", Verdict.HERE, "the trainer made no step for too long and was ended; its stacks are in the log"
        )
    if out_of_memory:
        return Failure(
            "host-memory", Verdict.HERE, "the job's memory was used up and the kernel killed it; raise request_memory"
        )
    ended = _below(ended, lines)
    found = _by_lines(lines, stepped, resumed)
    if (found is None or found.kind == "network") and _raised_in_wandb(lines):
        found = _WANDB
    if found is not None and found.verdict is Verdict.NEVER and ended.signal is not None:
        found = None  # it was killed: no line says why
    if found is not None and ended.signal is None:
        return found
    if ended.signal in _NODE_SIGNALS:
        return Failure(
            "node-fault",
            Verdict.ELSEWHERE,
            f"the trainer was {ended.text}, which points to the machine or a foreign instruction set",
        )
    if ended.signal is not None and found is None:
        memory = "when it comes again, raise request_memory: a machine that is short of memory kills so"
        hint = memory if ended.signal == signal.SIGKILL else "its last lines may say more"
        return Failure("killed", Verdict.HERE, f"the trainer was {ended.text}; {hint}")
    if found is not None:
        return found
    if ended.exit_code == 0:
        return Failure("early-end", Verdict.HERE, "the trainer ended without an error before its last step")
    if ended.exit_code in (126, 127):
        return Failure(
            "not-found", Verdict.NEVER, "the trainer's program cannot be executed; check python and args in run.toml"
        )
    if not stepped and not resumed:
        return Failure(
            "start", Verdict.HERE, f"the trainer failed before its first step ({ended.text}); its last lines say why"
        )
    return Failure("unknown", Verdict.HERE, f"the trainer failed with {ended.text}; its last lines say more")


def _below(ended: Ended, lines: Sequence[str]) -> Ended:
    """The end of the program itself where a shell or a launcher saw the signal that killed it, and ended with an exit code."""
    if ended.exit_code in (None, 0):
        return ended
    number = ended.exit_code - _SHELL_SIGNAL
    for line, _, may_be_last in _backwards(lines):
        if may_be_last and (match := _BELOW.search(line)):
            number = int(match[2]) if match[2] else -int(match[1])
            break
    with suppress(ValueError):
        return Ended(None, signal.Signals(number).value)
    return ended


def _backwards(lines: Sequence[str]) -> Iterator[tuple[str, re.Match[str] | None, bool]]:
    """Each line, where it begins with an exception's name, and whether that may be the one that ended the trainer, or led to it."""
    may_be_last = True
    for line in reversed(lines):
        start = _EXCEPTION.match(line)
        yield line, start, may_be_last
        if start:
            may_be_last = _LAUNCHER.match(line, start.end()) is not None
        elif _EARLIER.search(line):
            may_be_last = True


def _by_lines(lines: Sequence[str], stepped: bool, resumed: bool) -> Failure | None:
    for line, start, may_be_last in _backwards(lines):
        for rule in _RULES:
            if rule.as_exception and not (start and may_be_last):
                continue
            if rule.pattern.search(line[start.end() :] if start else line):
                verdict = rule.verdict
                if verdict is Verdict.NEVER and (stepped or (resumed and rule.kind in OF_THE_MACHINE)):
                    verdict = Verdict.HERE  # it did run; something is odd, and three starts will tell
                return Failure(rule.kind, verdict, rule.sentence)
    return None


def _raised_in_wandb(lines: Sequence[str]) -> bool:
    """Whether the last exception came out of W&B's client, whatever its name."""
    ended = False
    for line in reversed(lines):
        if ended and _FRAME.match(line):
            return _IN_WANDB.match(line) is not None
        ended = ended or _EXCEPTION.match(line) is not None
    return False


class Restarts:
    """Counts starts that got no further: ``same`` of them in a row ended at ``step`` or before."""

    def __init__(self) -> None:
        self.total = 0
        self.same = 0
        self.step = -1

    def note(self, step: int) -> None:
        """A start failed when ``step`` updates were done."""
        self.total += 1
        if step > self.step:
            self.step = step
            self.same = 1
        else:
            self.same += 1

    @property
    def exhausted(self) -> bool:
        return self.same >= SAME_STEP_STARTS
