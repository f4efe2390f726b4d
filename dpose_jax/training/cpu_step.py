"""A step of a training on one CPU, in two programs: gradients by arrays, the update by long vectors."""

from collections.abc import Callable
from typing import Any

import jax

from dpose_jax.models import layers
from dpose_jax.runtime import flat, sharding
from dpose_jax.training.state import TrainState
from dpose_jax.workdir.stored_program import StoredProgram


class CpuStep:
    """`make_train_step`, jitted, for a state of long vectors (`runtime.flat`), which it takes the memory of.

    Gradients are computed by views of the vectors' memory. In one program, XLA compiles a slice of a vector for each
    array: more than half of the time to compile HRNet-W32 (docs/performance.md).
    """

    def __init__(
        self,
        gradients: Callable,
        update: Callable,
        mesh: jax.sharding.Mesh,
        state: TrainState,
        inputs: str | None,
        *,
        averaged: bool,
    ):
        """`gradients` and `update` are those of `training.step`. The programs are kept traced, found by `inputs`.

        `inputs`, None for programs that are not kept, are all that both depend on beside the code and the state's form.
        Unless `averaged`, `gradients` gives moments, to be averaged as vectors too.
        """
        whole = sharding.replicated(mesh)
        shared: dict[str, Any] = {"in_shardings": whole, "out_shardings": whole}
        vectors = state.params, state.batch_stats
        variables = flat.spec(vectors)
        of_vectors: Any = jax.tree.structure(vectors)
        of_arrays: Any = jax.tree.structure(variables)
        of_moments: Any = jax.tree.structure(state.opt_state)
        self._state: Any = jax.tree.structure(state)

        def program(function: Callable, **options: Any) -> Any:
            if inputs is None:
                return jax.jit(function, **shared, **options)
            shapes = [leaf.shape for leaf in jax.tree.leaves(variables)]
            return StoredProgram(function, inputs, repr(shapes), function.__name__, **shared, **options)

        # What is stored has lists of leaves alone.
        def gradients_of_leaves(step: jax.Array, leaves: list, batch: dict, key: jax.Array) -> tuple[list, dict]:
            *found, metrics = gradients(step, *of_arrays.unflatten(leaves), batch, key)
            return jax.tree.leaves(flat.flatten_like(vectors, tuple(found))), metrics

        def update_of_leaves(step: jax.Array, before: list, found: list, opt_state: list) -> tuple[list, dict]:
            (params, batch_stats), (its_gradients, after) = of_vectors.unflatten(before), of_vectors.unflatten(found)
            after = after if averaged else layers.averaged(batch_stats, after)
            moved, metrics = update(
                TrainState(step, params, batch_stats, of_moments.unflatten(opt_state)), its_gradients, after
            )
            return jax.tree.leaves(moved), metrics

        self._gradients, self._update = program(gradients_of_leaves), program(update_of_leaves, donate_argnums=(2, 3))

    def __call__(self, state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        before = jax.tree.leaves((state.params, state.batch_stats))
        # NumPy's arrays become JAX's without moving.
        with jax.transfer_guard("allow"):
            found, metrics = self._gradients(*self._arguments(state, batch, key))
        after, more = self._update(state.step, before, found, jax.tree.leaves(state.opt_state))
        # Not donated: JAX refuses to overwrite what the views share.
        for leaf in before:
            leaf.delete()
        return self._state.unflatten(after), metrics | more

    def lower(self, state: TrainState, batch: dict, key: jax.Array) -> Any:
        """The program of the gradients for these arguments, as `jax.jit` has it; the other one compiles in seconds."""
        return self._gradients.lower(*self._arguments(state, batch, key))

    @staticmethod
    def _arguments(state: TrainState, batch: dict, key: jax.Array) -> tuple:
        return state.step, jax.tree.leaves(flat.views((state.params, state.batch_stats))), batch, key
