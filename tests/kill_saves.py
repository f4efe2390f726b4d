"""Kills a training run at random moments of its saves and checks what is left: run by hand, not by pytest.

python tests/kill_saves.py [--kills=20] [--seed=0]

A run of tests/miniature.py saves after every step. Each time it is resumed, it is killed (SIGKILL) at a random moment
of a random one of its first saves. After each kill the newest checkpoint has to be there, to restore, and to be bit
for bit the state and data position that a run without kills had at that step. That step never goes back. In the end the
run is finished, and its last state has to be that run's.
"""

import argparse
import hashlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import miniature  # noqa: E402

from dpose_jax.recipe import Recipe  # noqa: E402
from dpose_jax.runtime import cpu  # noqa: E402
from dpose_jax.training import loop  # noqa: E402
from dpose_jax.workdir.checkpoints import Checkpoints  # noqa: E402

STEPS = 80
FIELDS = {"train.steps": STEPS, "train.checkpoint_every": 1, "train.log_every": 1}
FIRST_SAVES = 3  # one of so many is struck
WRITTEN_BESIDE = "*orbax-checkpoint-tmp*"
cpu.fuse_elementwise()  # as train.py does: the run without kills has to be the same program


def digest(state, position) -> str:
    """Of every bit of a state and its data position."""
    sums = hashlib.sha256(repr(position).encode())
    for path, leaf in jax.tree.leaves_with_path(state):
        sums.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        sums.update(jax.device_get(leaf).tobytes())
    return sums.hexdigest()


def straight(recipe) -> dict[int, str]:
    """The digest after every step of a run that nothing stops."""
    digests = {}

    class Recorder(Checkpoints):
        def save(self, step, state, data):
            digests[step] = digest(state, data.get_state())

    kept, loop.Checkpoints = loop.Checkpoints, Recorder
    try:
        with tempfile.TemporaryDirectory() as workdir:
            loop.train(recipe, workdir)
    finally:
        loop.Checkpoints = kept
    return digests


def start(workdir: str) -> subprocess.Popen:
    """The run, in a process of its own."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command = [sys.executable, "train.py", "--config=tests/miniature.py", f"--workdir={workdir}", *fields]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_in_save(workdir: str, rng: random.Random, seconds: float) -> tuple[float, bool]:
    """Starts the run and kills it in a save; returns the moment, in seconds, and whether the save was cut short."""
    folder, run, skip = pathlib.Path(workdir, "checkpoints"), start(workdir), rng.randrange(FIRST_SAVES)
    seen = {path.name for path in folder.glob(WRITTEN_BESIDE)} if folder.exists() else set()
    while run.poll() is None:
        new = {path.name for path in folder.glob(WRITTEN_BESIDE)} - seen if folder.exists() else set()
        seen |= new
        if new and skip == 0:
            break
        skip -= len(new)
        time.sleep(0.0005)
    if run.poll() is not None:
        raise SystemExit(f"the run ended by itself with status {run.returncode}; it has too few steps for the kills")
    moment = rng.uniform(0, seconds)
    time.sleep(moment)
    run.send_signal(signal.SIGKILL)
    run.wait()
    return moment, any(folder.glob(WRITTEN_BESIDE))


def left(recipe, workdir: str) -> tuple[int | None, str | None]:
    """The newest checkpoint's step and digest."""
    run = loop.prepare(recipe)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if checkpoints.latest is None:
            return None, None
        state = checkpoints.restore(run.state, run.data)
        return checkpoints.latest, digest(state, run.data.get_state())


def check(kill: int, before: int | None, found: tuple[int | None, str | None], expected: dict[int, str]) -> int | None:
    """The step that is left after a kill; ends the program if it went back, or is not the state that it was."""
    step, bits = found
    if before is not None and (step is None or step < before):
        raise SystemExit(
            f"kill {kill}: step {before} was saved, {'nothing' if step is None else f'step {step}'} is left"
        )
    if step is not None and bits != expected[step]:
        raise SystemExit(f"kill {kill}: the checkpoint of step {step} is not what it was")
    return step


def save_seconds(recipe) -> float:
    """How long a save takes here: the span that the moments are drawn from."""
    run = loop.prepare(recipe)
    with tempfile.TemporaryDirectory() as workdir, Checkpoints(workdir) as checkpoints:
        checkpoints.save(1, run.state, run.data)
        began = time.monotonic()
        checkpoints.save(2, run.state, run.data)
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    recipe = Recipe.from_config(miniature.get_config()).override(FIELDS)
    expected, rng, cut = straight(recipe), random.Random(given.seed), 0
    seconds = save_seconds(recipe)
    print(f"a save takes {seconds * 1e3:.0f} ms", flush=True)
    with tempfile.TemporaryDirectory() as workdir:
        step = None
        for kill in range(1, given.kills + 1):
            moment, unfinished = kill_in_save(workdir, rng, seconds)
            cut += unfinished
            step = check(kill, step, left(recipe, workdir), expected)
            place, kept = "cut short" if unfinished else "done", "nothing yet" if step is None else f"step {step} whole"
            print(f"kill {kill}: {moment * 1e3:.0f} ms into a save, which was {place}; {kept}", flush=True)
        if start(workdir).wait() or left(recipe, workdir) != (STEPS, expected[STEPS]):
            raise SystemExit("the run did not end as the one without kills")
    print(f"{given.kills} kills, {cut} before the save was done: every newest checkpoint is whole, the end is the same")


if __name__ == "__main__":
    main()
