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
        self, gradients: Callable, update: Callable, mesh: jax.sharding.Mesh, inputs: str | None, *, moments: bool
    ):
        """`gradients` and `update` are those of `training.step`. The programs are kept compiled, found by `inputs`.

        `inputs`, None for programs that are not kept, are all that both and the state's form depend on beside the code.
        `moments`: whether `gradients` gives these, to be averaged as vectors too.
        """
        self._form: Form | None = None

        # What is stored has lists of leaves alone.
        def gradients_of_leaves(step: jax.Array, leaves: list, batch: dict, key: jax.Array) -> tuple[list, dict]:
            assert self._form is not None
            *vectors, metrics = gradients(step, *self._form.arrays.unflatten(leaves), batch, key)
            template = self._form.vectors.unflatten(range(self._form.vectors.num_leaves))
            return jax.tree.leaves(flat.flatten_like(template, tuple(vectors))), metrics

        def update_of_leaves(step: jax.Array, before: list, found: list, opt_state: list) -> tuple[list, dict]:
            assert self._form is not None
            of_vectors = self._form.vectors
            params, batch_stats = of_vectors.unflatten(before)
            of_params, of_batch = of_vectors.unflatten(found)
            after = layers.averaged(batch_stats, of_batch) if moments else of_batch
            state = TrainState(step, params, batch_stats, self._form.opt_state.unflatten(opt_state))
            state, metrics = update(state, of_params, after)
            return jax.tree.leaves(state), metrics

        whole = sharding.replicated(mesh)
        options: dict[str, Any] = {"in_shardings": whole, "out_shardings": whole}
        self._gradients = StoredProgram(gradients_of_leaves, "gradients", inputs, **options)
        self._update = StoredProgram(update_of_leaves, "update", inputs, donate_argnums=(2, 3), **options)

    def start_loading(self) -> None:
        """Loads both programs meanwhile, if they are stored."""
        self._update.start_loading()
        self._gradients.start_loading()

    def __call__(self, state: TrainState, batch: dict, key: jax.Array) -> tuple[TrainState, dict]:
        before = jax.tree.leaves((state.params, state.batch_stats))
        # NumPy's arrays become JAX's, without moving where they begin at a multiple of 64 bytes.
        with jax.transfer_guard("allow"):
            found, metrics = self._gradients(*self._arguments(state, batch, key))
        after, more = self._update(state.step, before, found, jax.tree.leaves(state.opt_state))
        # Not donated: JAX refuses to overwrite what the views share.
        for leaf in before:
            leaf.delete()
        assert self._form is not None
        return self._form.state.unflatten(after), metrics | more

    def lower(self, state: TrainState, batch: dict, key: jax.Array) -> "Lowered":
        """Both programs for these arguments, of which the batch may be shapes alone."""
        gradients = self._gradients.lower(*self._arguments(state, batch, key))
        vectors = jax.tree.leaves((state.params, state.batch_stats))  # Gradients and statistics have the same shapes.
        return Lowered(gradients, self._update.lower(state.step, vectors, vectors, jax.tree.leaves(state.opt_state)))

    def _arguments(self, state: TrainState, batch: dict, key: jax.Array) -> tuple:
        vectors = state.params, state.batch_stats
        arrays = flat.views(vectors)
        if self._form is None:
            self._form = Form(*map(jax.tree.structure, (state, vectors, state.opt_state, arrays)))
        return state.step, jax.tree.leaves(arrays), batch, key


class Form(NamedTuple):
    """Structures of a state, of which each step takes and gives the leaves alone."""

    state: Any
    vectors: Any  # of params and batch_stats
    opt_state: Any
    arrays: Any  # of params and batch_stats as trees of arrays


class Lowered(NamedTuple):
    """What `jax.jit` gives, of two programs."""

    gradients: Any
    update: Any

    def compile(self) -> Any:
        """The program of the gradients, which needs by far the more; both are compiled."""
        self.update.compile()
        return self.gradients.compile()
