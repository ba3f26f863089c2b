"""Starts an unmodified trainer of OpenPI with a small vision tower, and writes down what it saves, restores and is fed.

    python openpi_launcher.py <debug config> <arguments>

SEGUE_REAL_OPENPI: the checkout. SEGUE_REAL_TRAINER: the script in it. SEGUE_REAL_DIARY: a file that gets one JSON line for each event.
Patched, in memory only: the width and depth of the vision tower; save, restore and the batches are looked at as they pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

OPENPI = Path(os.environ["SEGUE_REAL_OPENPI"])
TRAINER = os.environ.get("SEGUE_REAL_TRAINER", "scripts/train.py")
TOWER = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2, "patch_size": (14, 14)}


def note(event: str, **facts: Any) -> None:
    """One line of the diary."""
    diary = os.environ.get("SEGUE_REAL_DIARY")
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


def small_tower() -> None:
    """The `debug` config has a full-size vision tower of 400M parameters: far too slow on a CPU."""
    import openpi.models.siglip as siglip

    siglip.decode_variant = lambda variant: dict(TOWER)  # type: ignore[assignment]


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
                    return kind(**{**settings, "vocab_size": 2048})
                config = kind(**settings)
                vision = config.vision_config
                vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = 32, 1, 2
                return config

            return make

    gemma_pytorch.CONFIG_MAPPING = Small()
    whole = gemma_pytorch.PaliGemmaForConditionalGeneration

    def narrow(config: Any) -> Any:
        config.vision_config.intermediate_size = 64
        config.vision_config.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = config._vocab_size = config.image_token_index = 2048
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

    def saving(model: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        note("save", label=int(Path(path).parent.name.removeprefix("tmp_")), params=of(model.state_dict()))
        return save_model(model, path, *args, **kwargs)

    def loading(model: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        found = load_model(model, path, *args, **kwargs)
        note("restore", label=int(Path(path).parent.name), params=of(model.state_dict()))
        return found

    def saving_optimizer(thing: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(path).name == "optimizer.pt":
            note("save optimizer", optimizer=of_optimizer(thing))
        return torch_save(thing, path, *args, **kwargs)

    def loading_optimizer(self: Any, state: Any) -> Any:
        found = load_optimizer(self, state)
        note("restore optimizer", optimizer=of_optimizer(self.state_dict()))
        return found

    safetensors.torch.save_model, safetensors.torch.load_model = saving, loading
    torch.save, torch.optim.AdamW.load_state_dict = saving_optimizer, loading_optimizer


def main() -> None:
    small_tower()
    watch_batches()
    if "pytorch" in TRAINER:
        small_torch_model()
        watch_torch()
    else:
        watch_checkpoints()
    note("start", arguments=sys.argv[1:])
    script = OPENPI / TRAINER
    sys.argv = [str(script), *sys.argv[1:]]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
