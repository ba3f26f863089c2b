"""`python -m tests.agent.plain_recipes run …`: the agent with two recipes for the plain trainer, one of each kind of stopping."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import agent.recipes
import agent.running
from agent.recipes.base import Finished, Recipe, Start

TRAINER = Path(__file__).with_name("plain_trainer.py")


class Plain(Recipe):
    """Stops when asked."""

    name = "plain"
    sets_last_step = True
    sets_save_interval = True
    stops_on_request = True

    def checkpoint_root(self, start: Start) -> Path:
        return start.scratch / "checkpoints"

    def command(self, start: Start) -> list[str]:
        return [sys.executable, str(TRAINER), *start.job.args]

    def finished(self, start: Start) -> list[Finished]:
        root = self.checkpoint_root(start)
        names = [path.name for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
        return [Finished(int(name), name, root, (name,)) for name in sorted(names, key=int)]

    def prepare(self, start: Start) -> None:
        for path in self.checkpoint_root(start).glob("*.tmp"):
            shutil.rmtree(path)


class ByLastStep(Plain):
    """Is told its last step at its start and cannot be asked later, as OpenPI's trainer."""

    name = "by-last-step"
    stops_on_request = False


class ByItself(ByLastStep):
    """Ends only at the run's end and saves as often as it likes: neither can be told, as of LeRobot with a schedule over all steps."""

    name = "by-itself"
    sets_last_step = False


class OfItsOwn(ByItself):
    """Has its own save interval besides: all that can be done is to end it at the right moment."""

    name = "of-its-own"
    sets_save_interval = False


class ByName(Plain):
    """A checkpoint's name alone says that it is finished, as with recipe `command`."""

    name = "by-name"
    only_named = True


class Labels(Plain):
    """Names its W&B run itself, as OpenPI's and LeRobot's trainers."""

    name = "labels"
    labels_wandb = True


RECIPES = {recipe.name: recipe for recipe in (Plain(), ByLastStep(), ByItself(), OfItsOwn(), ByName(), Labels())}


def main() -> int:
    from agent.__main__ import main as agent_main

    agent.running.recipe_named = RECIPES.__getitem__  # type: ignore[assignment]
    return agent_main()


if __name__ == "__main__":
    sys.exit(main())
