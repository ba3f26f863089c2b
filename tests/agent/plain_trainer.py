"""A trainer in plain Python, as strict as a real one: state depends on every step, a checkpoint is finished by a rename.

It reads SEGUE_* and these options: step_s, crash_at, hang_at, xid_at, workers, stubborn (ignores SIGTERM), save_s, import_error, print_env, deaf
(does not look at the stop file), wandb (logs with the real client), cache (keeps something in HOME), every (its own save interval, and
no other end than the run's), saves_until (no checkpoint after that step), wait_at (waits before that step for a file `go` in HOME),
mute (says nothing of its steps), pad_mb (of each checkpoint), prefix (of its checkpoints' names), beyond (goes on to that step, whatever the
run's is), forgetful (begins anew whatever it should resume), in_place (writes checkpoints under
their final names), lose_at (removes all checkpoints when a file `lose` is there, and crashes),
wandb_fails (as W&B's client does when it is online without a network), stumbles (its first start lacks a file after one step, its
second one ends at once without a word), leads_out (a link in each checkpoint leads out of it), pipe (its progress file is a named pipe).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

OPTIONS = dict(word.split("=", 1) for word in sys.argv[1:])
ROOT = Path(os.environ["SEGUE_CHECKPOINT_DIR"])
STOP = Path(os.environ["SEGUE_STOP_FILE"])


def number(name: str, default: float = 0.0) -> float:
    return float(OPTIONS.get(name, default))


def after(state: str, step: int) -> str:
    """The state after one more step."""
    return hashlib.sha256(f"{state} {step}".encode()).hexdigest()


def save(step: int, state: str) -> None:
    final = ROOT / f"{OPTIONS.get('prefix', '')}{step}"
    making = final if "in_place" in OPTIONS else ROOT / f"{step}.tmp"
    making.mkdir()
    if "in_place" in OPTIONS:
        (making / "config.json").write_text("{}")
        time.sleep(number("save_s"))
    (making / "state.json").write_text(json.dumps({"step": step, "state": state}))
    (making / "empty").mkdir()
    if "leads_out" in OPTIONS:
        (making / "data").symlink_to(ROOT.parent)
    if "pad_mb" in OPTIONS:
        (making / "pad").write_bytes(b"\1" * int(1e6 * number("pad_mb")))
    time.sleep(number("save_s"))
    making.rename(final)


def start_workers(count: int) -> list[int]:
    """Processes that wait for ever, in sessions of their own."""
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            while True:
                signal.pause()
        pids.append(pid)
    return pids


def check_workers(pids: list[int]) -> None:
    for pid in pids:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            raise RuntimeError(f"worker {pid} is dead")


def train() -> None:
    step = 0 if "forgetful" in OPTIONS else int(os.environ["SEGUE_RESUME_STEP"])
    saves_until = int(number("saves_until")) or sys.maxsize
    last = int(OPTIONS.get("beyond") or os.environ["SEGUE_STEPS" if "every" in OPTIONS else "SEGUE_LAST_STEP"])
    interval = int(OPTIONS.get("every") or os.environ.get("SEGUE_SAVE_INTERVAL") or 10)
    state = json.loads((ROOT / str(step) / "state.json").read_text())["state"] if step else ""
    board = None
    if "wandb" in OPTIONS:
        import wandb

        board = wandb.init(config={"interval": interval})
    workers = start_workers(int(number("workers")))
    starts = stumble() if "stumbles" in OPTIONS else 0
    print(f"training from {step}", flush=True)
    if "pipe" in OPTIONS:
        os.mkfifo(os.environ["SEGUE_PROGRESS_FILE"])
        os.environ["SEGUE_PROGRESS_FILE"] = os.devnull
    with Path(os.environ["SEGUE_PROGRESS_FILE"]).open("a") as progress:
        while step < last:
            if step + 1 == int(number("lose_at")):
                lose_all(step + 1)
            while step + 1 == int(number("wait_at")) and not (Path.home() / "go").exists():
                check_workers(workers)
                time.sleep(0.01)
            if step == 1 and starts == 1:
                raise FileNotFoundError("data")
            if step + 1 == int(number("crash_at")):
                raise RuntimeError(f"boom in step {step + 1}")
            if step + 1 == int(number("xid_at")):
                raise RuntimeError("CUDA error: device-side assert triggered; NVRM: Xid (PCI:0000:01:00): 79")
            if step + 1 == int(number("hang_at")):
                stuck_in_a_collective()
            time.sleep(number("step_s"))
            check_workers(workers)
            step += 1
            state = after(state, step)
            if "mute" not in OPTIONS:
                progress.write(json.dumps({"step": step, "loss": 1.0 / step}) + "\n")
                progress.flush()
            if board is not None:
                board.log({"loss": 1.0 / step}, step=step)
            stopping = "deaf" not in OPTIONS and STOP.exists() and step >= int(STOP.read_text())
            if step <= saves_until and (step % interval == 0 or step == last or stopping):
                save(step, state)
            if stopping:
                break
    if board is not None:
        board.finish()
    print(f"done at {step}", flush=True)


def stumble() -> int:
    """The number of this start; the second one ends here."""
    count = Path.home() / "starts"
    starts = len(count.read_text()) + 1 if count.exists() else 1
    count.write_text("x" * starts)
    if starts == 2:
        sys.exit(1)
    return starts


def lose_all(step: int) -> None:
    """Once, when a file `lose` lies in HOME."""
    lose, lost = Path.home() / "lose", Path.home() / "lost"
    while not (lose.exists() or lost.exists()):
        time.sleep(0.01)
    if lose.exists():
        for path in ROOT.iterdir():
            shutil.rmtree(path)
        lose.rename(lost)
        raise RuntimeError(f"boom in step {step}")


def stuck_in_a_collective() -> None:
    while True:
        time.sleep(0.1)


if __name__ == "__main__":
    if "stubborn" in OPTIONS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "import_error" in OPTIONS:
        import there_is_no_such_module  # noqa: F401
    if "cache" in OPTIONS:
        cache = Path.home() / ".cache" / "compiled"
        print("compiled already" if cache.exists() else "compiling", flush=True)
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text("machine code")
    if OPTIONS.get("print_env") == "all":
        print(dict(os.environ), flush=True)
    elif "print_env" in OPTIONS:
        names = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_MODE", "WANDB_API_KEY")
        print(
            json.dumps(
                {
                    name: os.environ.get(name) and (name if name == "WANDB_API_KEY" else os.environ[name])
                    for name in names
                }
            ),
            flush=True,
        )
        if Path("wandb.key").exists():
            print("a key file is here", flush=True)
    if "wandb_fails" in OPTIONS and os.environ.get("WANDB_MODE") == "online":
        raise type("UsageError", (Exception,), {"__module__": "wandb.errors.errors"})("No API key configured.")
    train()
