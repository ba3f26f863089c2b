"""Runs an unmodified program of OpenPI with a small model, and writes down what it saves, restores and is fed.

    python openpi_launcher.py .../scripts/train.py <its arguments>

REAL_DIARY: a file that gets one JSON line for each event. REAL_STEP_S: the least time of a step in seconds, so that a chain's
plan holds on any machine. Patched, in memory only: the vision tower's size, a vocabulary of 2048 words, and a config `lab` as a user would
add one; saves, restores and batches are looked at as they pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(sys.argv[1])
STEP_S = float(os.environ.get("REAL_STEP_S", "0"))
PATCH = 56
TOWER = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2, "patch_size": (PATCH, PATCH)}
WORDS = 2048
CONFIG, DATASET = "lab", "local/lab"


def note(event: str, **facts: Any) -> None:
    """One line of the diary."""
    diary = os.environ.get("REAL_DIARY")
    if diary:
        with Path(diary).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")


def digest(tree: Any) -> str:
    """A hash over all arrays of a tree, with their places in it."""
    import jax
    import numpy as np

    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            found.update(jax.tree_util.keystr(path).encode())
            found.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return found.hexdigest()


def hashes(state: Any) -> dict[str, str]:
    """Parameters, optimizer and moving average, one hash each."""
    return {
        "params": digest(state.params),
        "optimizer": digest(state.opt_state),
        "ema": digest(state.ema_params),
        "step": str(int(state.step)),
    }


def small_model() -> None:
    """The dummy variant has a full-size vision tower of 400M parameters and 257,152 words: far too slow on a CPU."""
    from openpi.models import gemma, siglip

    siglip.decode_variant = lambda variant: dict(TOWER)  # type: ignore[assignment]
    gemma.PALIGEMMA_VOCAB_SIZE = WORDS


def config_of_a_lab() -> None:
    """A training config for a dataset of one's own, which every user adds to the checkout."""
    from openpi.models import pi0_config
    from openpi.training import config

    config._CONFIGS_DICT[CONFIG] = config.TrainConfig(
        name=CONFIG,
        model=pi0_config.Pi0Config(paligemma_variant="dummy", action_expert_variant="dummy", action_horizon=4),
        data=config.LeRobotLiberoDataConfig(
            repo_id=DATASET, base_config=config.DataConfig(prompt_from_task=True), extra_delta_transform=False
        ),
        batch_size=2,
        num_workers=0,
        overwrite=True,
        log_interval=1,
        pytorch_training_precision="float32",
    )


def watch_checkpoints() -> None:
    """Hash what goes into each save and what comes out of each restore."""
    import openpi.training.checkpoints as checkpoints

    save, restore = checkpoints.save_state, checkpoints.restore_state

    def saving(manager: Any, state: Any, loader: Any, step: int) -> None:
        note("save", label=step, **hashes(state))
        save(manager, state, loader, step)

    def restoring(manager: Any, state: Any, loader: Any, step: int | None = None) -> Any:
        found = restore(manager, state, loader, step)
        note("restore", **hashes(found))
        return found

    checkpoints.save_state, checkpoints.restore_state = saving, restoring


def watch_batches() -> None:
    """Hash the first batches of each start."""
    import openpi.training.data_loader as data_loader

    create = data_loader.create_data_loader

    class Watched:
        def __init__(self, loader: Any) -> None:
            self._loader = loader

        def __getattr__(self, name: str) -> Any:
            return getattr(self._loader, name)

        def __iter__(self) -> Any:
            for number, batch in enumerate(self._loader):
                if number < 3:
                    note("batch", number=number, hash=digest(batch[1]))
                time.sleep(STEP_S)
                yield batch

    data_loader.create_data_loader = lambda *args, **kwargs: Watched(create(*args, **kwargs))


def small_torch_model() -> None:
    """The same model in PyTorch: small tower, and a vocabulary that fits the random tokens of the fake data (below 2048)."""
    from openpi.models_pytorch import gemma_pytorch

    mapping = gemma_pytorch.CONFIG_MAPPING

    class Small:
        def __getitem__(self, name: str) -> Any:
            kind = mapping[name]

            def make(**settings: Any) -> Any:
                if name == "gemma":
                    return kind(**{**settings, "vocab_size": WORDS})
                config = kind(**settings)
                vision = config.vision_config
                vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = 32, 1, 2
                vision.patch_size = PATCH
                return config

            return make

    gemma_pytorch.CONFIG_MAPPING = Small()
    whole = gemma_pytorch.PaliGemmaForConditionalGeneration

    def narrow(config: Any) -> Any:
        config.vision_config.intermediate_size = 64
        config.vision_config.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = config._vocab_size = config.image_token_index = WORDS
        return whole(config=config)

    gemma_pytorch.PaliGemmaForConditionalGeneration = narrow


def watch_torch() -> None:
    """Hash model and optimizer files' content as they are saved and as they were restored."""
    import safetensors.torch
    import torch

    def of(tensors: dict[str, Any]) -> str:
        found = hashlib.sha256()
        for name in sorted(tensors):
            found.update(name.encode())
            found.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def of_optimizer(state: dict[str, Any]) -> str:
        return of({f"{key} {name}": value for key, entry in state["state"].items() for name, value in entry.items()})

    save_model, load_model = safetensors.torch.save_model, safetensors.torch.load_model
    torch_save, load_optimizer = torch.save, torch.optim.AdamW.load_state_dict

    seen: dict[str, str] = {}

    def saving(model: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(params=of(model.state_dict()), step=Path(path).parent.name.removeprefix("tmp_"))
        return save_model(model, path, *args, **kwargs)

    def loading(model: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        found = load_model(model, path, *args, **kwargs)
        seen.update(params=of(model.state_dict()), step=Path(path).parent.name)
        return found

    def saving_optimizer(thing: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(path).name == "optimizer.pt":
            note("save", label=int(seen["step"]), optimizer=of_optimizer(thing), **seen)
        return torch_save(thing, path, *args, **kwargs)

    def loading_optimizer(self: Any, state: Any) -> Any:
        found = load_optimizer(self, state)
        note("restore", optimizer=of_optimizer(self.state_dict()), **seen)
        return found

    safetensors.torch.save_model, safetensors.torch.load_model = saving, loading
    torch.save, torch.optim.AdamW.load_state_dict = saving_optimizer, loading_optimizer


def on_loopback() -> None:
    """serve_policy.py listens on every interface; a test must not."""
    from openpi.serving import websocket_policy_server as server

    begin = server.WebsocketPolicyServer.__init__

    def beginning(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **{**kwargs, "host": "127.0.0.1"})

    server.WebsocketPolicyServer.__init__ = beginning


def main() -> None:
    small_model()
    config_of_a_lab()
    if SCRIPT.name == "train.py":
        watch_batches()
        watch_checkpoints()
    elif SCRIPT.name == "train_pytorch.py":
        watch_batches()
        small_torch_model()
        watch_torch()
    elif SCRIPT.name == "serve_policy.py":
        on_loopback()
    note("start", script=SCRIPT.name, arguments=sys.argv[2:])
    sys.argv = sys.argv[1:]
    runpy.run_path(str(SCRIPT), run_name="__main__")


if __name__ == "__main__":
    main()
