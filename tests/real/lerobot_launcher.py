"""Runs the unmodified `lerobot-train`, and writes down what it saves, restores and is fed.

    python lerobot_launcher.py <arguments of lerobot-train>

REAL_DIARY: a file that gets one JSON line for each event. REAL_STEP_S: the least time of a step in seconds, so that a chain's plan holds on
any machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lerobot.scripts import train

STEP_S = float(os.environ.get("REAL_STEP_S", "0"))


def note(event: str, **facts: Any) -> None:
    """One line of the diary."""
    with Path(os.environ["REAL_DIARY"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": event, **facts}) + "\n")


def digest(tensors: dict[str, Any]) -> str:
    """A hash over tensors and their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        if hasattr(tensors[name], "detach"):
            found.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def of_optimizer(optimizer: Any) -> str:
    """A hash over an optimizer's state."""
    state = optimizer.state_dict()["state"]
    return digest({f"{key} {name}": value for key, entry in state.items() for name, value in entry.items()})


def main() -> None:
    save, load, cycle, make_policy = train.save_checkpoint, train.load_training_state, train.cycle, train.make_policy
    policies: list[Any] = []

    def making(*args: Any, **kwargs: Any) -> Any:
        policies.append(make_policy(*args, **kwargs))
        return policies[-1]

    def saving(directory: Any, step: int, cfg: Any, policy: Any, optimizer: Any, *more: Any) -> None:
        note("save", label=step, step=str(step), params=digest(policy.state_dict()), optimizer=of_optimizer(optimizer))
        save(directory, step, cfg, policy, optimizer, *more)

    def loading(directory: Any, optimizer: Any, scheduler: Any) -> Any:
        found = load(directory, optimizer, scheduler)
        params = digest(policies[-1].state_dict())
        note("restore", step=str(found[0]), params=params, optimizer=of_optimizer(found[1]))
        return found

    def feeding(loader: Any) -> Any:
        for number, batch in enumerate(cycle(loader)):
            if number < 3:
                note(
                    "batch",
                    number=number,
                    hash=digest({"action": batch["action"], "state": batch["observation.state"]}),
                )
            time.sleep(STEP_S)
            yield batch

    train.save_checkpoint, train.load_training_state = saving, loading
    train.cycle, train.make_policy = feeding, making
    note("start", script="lerobot-train", arguments=sys.argv[1:])
    sys.argv[0] = "lerobot-train"
    train.main()


if __name__ == "__main__":
    main()
