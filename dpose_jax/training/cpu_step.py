"""A step of a training on one CPU, in two programs: gradients by arrays, the update by long vectors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dpose_jax.models import layers
from dpose_jax.runtime import flat, sharding
from dpose_jax.training.state import TrainState
from dpose_jax.workdir.stored_program import StoredProgram


class CpuStep:
    """`make_train_step`, jitted, for a state of long vectors (`runtime.flat`), which it takes the memory of.

    Gradients are computed by views of the vectors' memory. In one program, XLA compiles a slice of a vector for each
    array: half of the time to compile HRNet-W32 (docs/performance.md).
    """

    def __init__(
        self,
        gradients: Callable,
        update: Callable,
        mesh: jax.sharding.Mesh,
        state: TrainState,
        inputs: str | None,
        *,
        moments: bool,
    ):
        """`gradients` and `update` are those of `training.step`. The programs are kept traced, found by `inputs`.

        `inputs`, None for programs that are not kept, are all that both depend on beside the code and the state's form.
        `moments`: whether `gradients` gives these, to be averaged as vectors too.
        """
        whole = sharding.replicated(mesh)
        shared: dict[str, Any] = {"in_shardings": whole, "out_shardings": whole}
        vectors = state.params, state.batch_stats
        variables = flat.views(vectors)
        shapes = repr([leaf.shape for leaf in jax.tree.leaves(variables)])
        of_vectors: Any = jax.tree.structure(vectors)
        form = of_vectors.unflatten(range(of_vectors.num_leaves))  # Not `vectors`, which a resumed run would keep.
        of_arrays: Any = jax.tree.structure(variables)
        of_opt_state: Any = jax.tree.structure(state.opt_state)
        self._state: Any = jax.tree.structure(state)

        def program(function: Callable, **options: Any) -> Any:
            if inputs is None:
                return jax.jit(function, **shared, **options)
            return StoredProgram(function, inputs, shapes, function.__name__, **shared, **options)

        # What is stored has lists of leaves alone.
        def gradients_of_leaves(step: jax.Array, leaves: list, batch: dict, key: jax.Array) -> tuple[list, dict]:
            *vectors, metrics = gradients(step, *of_arrays.unflatten(leaves), batch, key)
            return jax.tree.leaves(flat.flatten_like(form, tuple(vectors))), metrics

        def update_of_leaves(step: jax.Array, before: list, found: list, opt_state: list) -> tuple[list, dict]:
            params, batch_stats = of_vectors.unflatten(before)
            of_params, of_batch = of_vectors.unflatten(found)
            after = layers.averaged(batch_stats, of_batch) if moments else of_batch
            state = TrainState(step, params, batch_stats, of_opt_state.unflatten(opt_state))
            state, metrics = update(state, of_params, after)
            return jax.tree.leaves(state), metrics

        self._gradients, self._update = program(gradients_of_leaves), program(update_of_leaves, donate_argnums=(2, 3))

    def __call__(self, state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        before = jax.tree.leaves((state.params, state.batch_stats))
        # NumPy's arrays become JAX's, without moving where they begin at a multiple of 64 bytes.
        with jax.transfer_guard("allow"):
            found, metrics = self._gradients(*self._arguments(state, batch, key))
        after, more = self._update(state.step, before, found, jax.tree.leaves(state.opt_state))
        # Not donated: JAX refuses to overwrite what the views share.
        for leaf in before:
            leaf.delete()
        return self._state.unflatten(after), metrics | more

    def lower(self, state: TrainState, batch: dict, key: jax.Array) -> "Lowered":
        """Both programs for these arguments, of which the batch may be shapes alone."""
        vectors = jax.tree.leaves((state.params, state.batch_stats))  # Gradients and statistics have the same shapes.
        update = self._update.lower(state.step, vectors, vectors, jax.tree.leaves(state.opt_state))
        return Lowered(self._gradients.lower(*self._arguments(state, batch, key)), update)

    @staticmethod
    def _arguments(state: TrainState, batch: dict, key: jax.Array) -> tuple:
        return state.step, jax.tree.leaves(flat.views((state.params, state.batch_stats))), batch, key


class Lowered(NamedTuple):
    """What `jax.jit` gives, of two programs."""

    gradients: Any
    update: Any

    def compile(self) -> Any:
        """The program of the gradients, which needs by far the more; both are compiled."""
        self.update.compile()
        return self.gradients.compile()
