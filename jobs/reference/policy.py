"""The policy: a small network from what the arm senses (and sees) to torques, in flax nnx.

With a camera, a few small convolutions end in a spatial softmax: each channel says where in the image its thing is. Position in the image is
what the arm needs, it generalises from few episodes, and things here differ by colour, so that a step stays cheap on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from agent.errors import BadInput

if TYPE_CHECKING:
    import jax

    from jobs.reference.episodes import Episodes

    Parameters = Mapping[str, Any]

_THINGS = 8
_SHARPNESS = 5.0
"""Of the spatial softmax: a thing of four pixels among a thousand is found in half the steps."""


@dataclass(frozen=True)
class PolicyConfig:
    """All that is needed to rebuild the network; travels with each checkpoint as JSON. ``image`` is the frames' side in pixels, 0: none.

    ``mean`` and ``deviation`` of the state, one number per component.
    """

    state: int
    actions: int
    hidden: int
    image: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back to the same numbers."""
        return asdict(self)


def from_json(data: object) -> PolicyConfig:
    """The reverse of ``as_json``; BadInput when the data is something else."""
    try:
        if not isinstance(data, dict):
            raise TypeError("not an object")
        values = {field.name: data[field.name] for field in fields(PolicyConfig)}
        values["mean"], values["deviation"] = tuple(values["mean"]), tuple(values["deviation"])
        return PolicyConfig(**values)
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"the checkpoint's config ({json.dumps(data)[:80]}…) is not one of the reference trainer: {error}"
        ) from error


def config_for(episodes: Episodes, hidden: int) -> PolicyConfig:
    """The network that fits these episodes, with their statistics."""
    import numpy as np

    state = episodes.state.astype(np.float64)
    image = 0 if episodes.images is None else int(episodes.images.shape[1])
    return PolicyConfig(
        state=state.shape[1],
        actions=int(episodes.actions.shape[1]),
        hidden=hidden,
        image=image,
        mean=tuple(state.mean(0).tolist()),
        deviation=tuple(np.maximum(state.std(0), 1e-3).tolist()),
    )


def build(config: PolicyConfig) -> tuple[Any, Any, Any]:
    """(graph definition, abstract parameters, initialiser): ``initialiser(seed)`` gives parameters as an nnx state. Nothing is computed yet."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    class Eye(nnx.Module):
        """Frames (B, P, P, 3) uint8 → (B, 2K): mean place of each of K channels, -1 to 1 each."""

        def __init__(self, rngs: nnx.Rngs) -> None:
            self.edges = nnx.Conv(3, 16, (4, 4), strides=(2, 2), rngs=rngs)
            self.parts = nnx.Conv(16, 16, (1, 1), rngs=rngs)
            self.things = nnx.Conv(16, _THINGS, (1, 1), rngs=rngs)

        def __call__(self, frames: jax.Array) -> jax.Array:
            seen = frames.astype(jnp.float32) / 127.5 - 1.0
            seen = nnx.relu(self.edges(seen))
            seen = nnx.relu(self.parts(seen))
            maps = _SHARPNESS * self.things(seen)
            count, side = maps.shape[0], maps.shape[1]
            weights = nnx.softmax(maps.reshape(count, side * side, -1), axis=1).reshape(maps.shape)
            axis = jnp.linspace(-1.0, 1.0, side)
            across = jnp.einsum("bhwk,w->bk", weights, axis)
            down = jnp.einsum("bhwk,h->bk", weights, axis)
            return jnp.concatenate([across, down], axis=-1)

    class Policy(nnx.Module):
        """(state (B, S), frames or None) → torques (B, A)."""

        def __init__(self, rngs: nnx.Rngs) -> None:
            places = 0
            if config.image:
                self.eye = Eye(rngs)
                places = 2 * _THINGS
            self.first = nnx.Linear(config.state + places, config.hidden, rngs=rngs)
            self.second = nnx.Linear(config.hidden, config.hidden, rngs=rngs)
            self.third = nnx.Linear(config.hidden, config.hidden, rngs=rngs)
            self.last = nnx.Linear(config.hidden, config.actions, rngs=rngs)

        def __call__(self, state: jax.Array, frames: jax.Array | None = None) -> jax.Array:
            mean, deviation = jnp.array(config.mean, jnp.float32), jnp.array(config.deviation, jnp.float32)
            seen = (state - mean) / deviation
            if config.image:
                assert frames is not None
                seen = jnp.concatenate([seen, 3.0 * self.eye(frames)], axis=-1)
            for layer in (self.first, self.second, self.third):
                seen = nnx.gelu(layer(seen))
            return self.last(seen)

    def initial(seed: Any) -> Any:
        return nnx.split(Policy(nnx.Rngs(jax.random.key(seed))), nnx.Param)[1]

    graph, shapes = nnx.split(nnx.eval_shape(lambda: Policy(nnx.Rngs(jax.random.key(0)))), nnx.Param)
    return graph, shapes, initial


class Actor:
    """A policy ready to act on one observation at a time. ``parameters`` as plain nested dictionaries of arrays."""

    def __init__(self, config: PolicyConfig, parameters: Parameters) -> None:
        import jax
        from flax import nnx

        graph, shapes, _ = build(config)
        nnx.replace_by_pure_dict(shapes, dict(parameters))
        self.config = config
        self._parameters = shapes
        self._forward = jax.jit(lambda values, state, frames: nnx.merge(graph, values)(state, frames))

    def __call__(self, state: Any, image: Any = None) -> Any:
        """Torques (A,) for a state (S,) and, where the policy has a camera, a frame (P, P, 3)."""
        import numpy as np

        frames = np.asarray(image, np.uint8)[None] if self.config.image else None
        torques = self._forward(self._parameters, np.asarray(state, np.float32)[None], frames)
        return np.clip(np.asarray(torques)[0], -1.0, 1.0)


def untrained(config: PolicyConfig, seed: int = 0) -> Parameters:
    """Parameters as they are before the first step."""
    from flax import nnx

    _, _, initial = build(config)
    found: Parameters = nnx.to_pure_dict(initial(seed))
    return found
