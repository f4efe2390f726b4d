import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.process import Schedule, gamma_table
from dpose_jax.diffusion.sampler import UPDATES, SamplerSettings, sample, sampler_settings
from dpose_jax.pose.codec import Codec
from dpose_jax.recipe import Recipe

BATCH, JOINTS = 2, 3
STARTS = ("coarse", "coarse_noised", "random")


class CompiledCodec(Codec):
    """Runs of many settings share one compilation."""

    peaks = jax.jit(Codec.peaks, static_argnums=(0, 2))


CODEC = CompiledCodec((48, 40), 2, sigma=1.5, blur=5)
ZETA = 0.8  # small, so that the clamp to the map counts
SCHEDULE = Schedule("cosine", 1000, ZETA)
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(BATCH))


def truth(seed=0):
    """True joints in heatmap pixels, (BATCH, JOINTS, 2), and their heatmaps."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(2, np.array(CODEC.size[::-1]) - 3, (BATCH, JOINTS, 2)).astype(np.float32)
    return joints, CODEC.render(joints, np.ones((BATCH, JOINTS), np.float32))


def condition(y):
    """An image of the joints it is given, and no example of another."""
    return CODEC.render(CODEC.denormalise(y), jnp.ones(y.shape[:-1]))


def denoise(heatmaps, context, t):
    """Any function that depends on all of its inputs; it moves peaks, so that an error in one step goes on."""
    moved = jnp.roll(heatmaps, 1, axis=-2)
    return 0.5 * heatmaps + 0.35 * moved + (0.1 + 1e-4 * t[:, None, None, None]) * context


def run(settings, coarse, keys=KEYS, condition=condition, denoise=denoise):
    return sample(
        coarse,
        settings=settings,
        schedule=SCHEDULE,
        codec=CODEC,
        condition=condition,
        denoise=denoise,
        keys=keys,
    )


compiled = jax.jit(run, static_argnums=0)


@pytest.fixture
def unrolled(monkeypatch):
    """Runs the sampler's scan in Python: values can be looked at, and no setting is compiled on its own."""

    def scan(step, carry, inputs):
        outputs = []
        for one in zip(*inputs, strict=True):
            carry, output = step(carry, one)
            outputs.append(output)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    monkeypatch.setattr(jax.lax, "scan", scan)


def draw(y):
    """Heatmaps of y_t in units of zeta: clamp, divide by zeta, to pixels, Gaussians."""
    pixels = (np.clip(np.asarray(y), -ZETA, ZETA) / ZETA + 1) / 2 * (np.array(CODEC.size[::-1]) - 1)
    return CODEC.render(jnp.asarray(pixels, jnp.float32), jnp.ones(y.shape[:-1]))


def joints_of(heatmaps):
    return 2 * np.asarray(CODEC.peaks(heatmaps, "dark")[0], np.float64) / (np.array(CODEC.size[::-1]) - 1) - 1


def noise(step):
    return np.stack([jax.random.normal(jax.random.fold_in(key, step), (JOINTS, 2)) for key in KEYS]).astype(np.float64)


def start_of(settings, coarse):
    """y at t_start in units of zeta, and the heatmaps that enter the first step."""
    if settings.start == "coarse":
        return ZETA * joints_of(coarse), coarse
    y = noise(0)
    if settings.start == "coarse_noised":
        gamma = float(gamma_table("cosine", 1000)[settings.t_start])
        y = np.sqrt(gamma) * ZETA * joints_of(coarse) + np.sqrt(1 - gamma) * y
    return y, draw(y)


def plain_loop(settings, coarse):
    """The sampler from its equations: no scan, float64 between the heatmaps."""
    gammas = gamma_table("cosine", 1000).astype(np.float64)
    times = [round(settings.t_start * (settings.steps - k) / settings.steps) for k in range(settings.steps + 1)]
    y, heatmaps = start_of(settings, coarse)
    context = condition(jnp.asarray(np.clip(y, -ZETA, ZETA) / ZETA, jnp.float32))
    trajectory = [heatmaps]
    for k in range(settings.steps):
        if settings.refresh:
            context = condition(jnp.asarray(np.clip(joints_of(heatmaps), -1, 1), jnp.float32))
        estimate = denoise(heatmaps, context, jnp.full(BATCH, times[k]))
        if settings.update_rule == "direct":
            heatmaps = estimate
        else:
            g, g_next, signal = gammas[times[k]], gammas[times[k + 1]], ZETA * joints_of(estimate)
            epsilon = (y - np.sqrt(g) * signal) / np.sqrt(1 - g)
            sigma = settings.eta * np.sqrt((1 - g_next) / (1 - g)) * np.sqrt(1 - g / g_next)
            y = np.sqrt(g_next) * signal + np.sqrt(1 - g_next - sigma**2) * epsilon + sigma * noise(k + 1)
            heatmaps = draw(y)
        trajectory.append(heatmaps)
    trajectory[-1] = estimate
    return np.stack(trajectory)


NOISY = SamplerSettings(3, "ddim", "coarse_noised", 700, 0.5, refresh=True)


@pytest.mark.parametrize(
    "settings",
    [
        NOISY,
        SamplerSettings(4, "direct", "coarse"),
        SamplerSettings(3, "direct", "coarse_noised", 400, refresh=True),
        SamplerSettings(4, "ddim", "coarse"),
        SamplerSettings(2, "ddim", "random", 1000, 1.0),
    ],
    ids=lambda s: f"{s.update_rule}-{s.start}-{s.steps}",
)
def test_scan_equals_a_plain_loop(settings):
    _, coarse = truth()
    expected = plain_loop(settings, coarse)
    final, trajectory = compiled(settings, coarse)
    np.testing.assert_allclose(trajectory, expected, atol=1e-5)
    np.testing.assert_array_equal(trajectory[-1], final)
    assert final.dtype == jnp.float32
    assert np.abs(np.diff(trajectory, axis=0)).max(axis=(1, 2, 3, 4)).min() > 0.03


# Every pair of values of any two fields meets.
ALL = [
    *(SamplerSettings(k, "direct", start, refresh=r) for k in (1, 2, 4) for start in STARTS for r in (False, True)),
    *(
        SamplerSettings(k, "ddim", STARTS[(i + j) % 3], 1000, eta, refresh)
        for i, k in enumerate((1, 2, 4))
        for j, eta in enumerate((0.0, 0.5, 1.0))
        for refresh in (False, True)
    ),
]


def test_an_oracle_gives_back_the_truth_by_every_way(unrolled):
    joints, heatmaps = truth()
    _, coarse = truth(seed=1)
    for settings in ALL:
        final, trajectory = run(settings, coarse, denoise=lambda *_: heatmaps)
        np.testing.assert_array_equal(final, heatmaps, err_msg=str(settings))
        np.testing.assert_array_equal(trajectory[-1], heatmaps, err_msg=str(settings))
        assert trajectory.shape == (settings.steps + 1, *coarse.shape) and np.all(np.isfinite(trajectory))
        if settings.update_rule == "direct":
            np.testing.assert_array_equal(trajectory[1:], np.stack([heatmaps] * settings.steps))
    np.testing.assert_allclose(CODEC.peaks(final, "dark")[0], joints, atol=1e-3)


def test_an_oracle_with_ddim_walks_the_forward_process(unrolled):
    """From the noised truth, eta = 0 and true estimates pass y_t of the same epsilon at every step's time."""
    joints, heatmaps = truth()
    y_0 = 2 * joints.astype(np.float64) / (np.array(CODEC.size[::-1]) - 1) - 1
    settings = SamplerSettings(4, "ddim", "coarse_noised", 800)
    _, trajectory = run(settings, heatmaps, denoise=lambda *_: heatmaps)
    gammas = gamma_table("cosine", 1000).astype(np.float64)
    for t, entered in zip((800, 600, 400, 200), trajectory[:-1], strict=True):
        expected = draw(np.sqrt(gammas[t]) * ZETA * y_0 + np.sqrt(1 - gammas[t]) * noise(0))
        np.testing.assert_allclose(entered, expected, atol=3e-4)


@pytest.mark.parametrize("start", STARTS)
def test_the_trajectory_begins_with_the_start(unrolled, start):
    _, coarse = truth()
    settings = SamplerSettings(2, "direct", start, 300)
    final, trajectory = run(settings, coarse)
    np.testing.assert_allclose(trajectory[0], start_of(settings, coarse)[1], atol=1e-5)
    np.testing.assert_array_equal(trajectory[-1], final)
    if start == "coarse":
        np.testing.assert_array_equal(trajectory[0], coarse)


def recorded(settings, coarse):
    """The run's trajectory, the joints that `condition` saw and the times that `denoise` saw, step by step."""
    seen, times = [], []

    def record_condition(y):
        seen.append(np.asarray(y))
        return condition(y)

    def record_denoise(heatmaps, context, t):
        times.append(np.asarray(t))
        return denoise(heatmaps, context, t)

    _, trajectory = run(settings, coarse, condition=record_condition, denoise=record_denoise)
    return trajectory, seen, times


@pytest.mark.parametrize(("rule", "start"), [("direct", "coarse"), ("ddim", "coarse_noised"), ("direct", "random")])
def test_what_condition_and_denoise_are_given(unrolled, rule, start):
    _, coarse = truth()
    settings = SamplerSettings(3, rule, start, 900)
    _, seen, times = recorded(settings, coarse)
    assert len(seen) == 1
    np.testing.assert_allclose(seen[0], np.clip(start_of(settings, coarse)[0], -ZETA, ZETA) / ZETA, atol=1e-4)
    np.testing.assert_array_equal(times, [[900] * BATCH, [600] * BATCH, [300] * BATCH])

    trajectory, seen, _ = recorded(dataclasses.replace(settings, refresh=True), coarse)
    assert len(seen) == 3
    for entered, joints in zip(trajectory[:-1], seen, strict=True):
        np.testing.assert_allclose(joints, np.clip(joints_of(entered), -1, 1), atol=1e-4)
    assert np.abs(seen[1] - seen[0]).max() > 1e-2 and np.abs(seen[2] - seen[1]).max() > 1e-3


def occurrences(jaxpr, primitive, in_scan=False):
    """(outside, inside) of a scan: how many equations of `jaxpr` use `primitive`."""
    count = np.zeros(2, int)
    for equation in jaxpr.eqns:
        count[int(in_scan)] += equation.primitive.name == primitive
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += occurrences(inner, primitive, in_scan or equation.primitive.name == "scan")
    return count


@pytest.mark.parametrize("rule", UPDATES)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_program_holds_each_function_once(rule, steps):
    _, coarse = truth()
    program = functools.partial(
        run,
        condition=lambda y: jax.lax.cos(condition(y)),
        denoise=lambda *inputs: jax.lax.sin(denoise(*inputs)),
    )
    for refresh, where in ((False, (1, 0)), (True, (0, 1))):
        jaxpr = jax.make_jaxpr(functools.partial(program, SamplerSettings(steps, rule, refresh=refresh)))(coarse).jaxpr
        assert tuple(occurrences(jaxpr, "cos")) == where
        assert tuple(occurrences(jaxpr, "sin")) == (0, 1)


def test_a_result_never_depends_on_its_neighbours():
    _, coarse = truth()
    final, trajectory = compiled(NOISY, coarse)
    swapped, swapped_trajectory = compiled(NOISY, coarse[::-1], KEYS[::-1])
    np.testing.assert_allclose(swapped[::-1], final, atol=1e-6)
    np.testing.assert_allclose(swapped_trajectory[:, ::-1], trajectory, atol=1e-6)
    for i in range(BATCH):
        alone, _ = compiled(NOISY, coarse[i : i + 1], KEYS[i : i + 1])
        np.testing.assert_allclose(alone[0], final[i], atol=1e-5)
    # The keys alone tell two equal examples apart.
    twins, _ = compiled(NOISY, coarse[:1].repeat(BATCH, axis=0))
    assert np.abs(twins[0] - twins[1]).max() > 0.1


def test_which_runs_depend_on_the_keys(unrolled):
    _, coarse = truth()
    for rule, start, eta in (
        ("direct", "coarse", 1.0),
        ("ddim", "coarse", 0.0),
        ("ddim", "coarse", 0.5),
        ("direct", "coarse_noised", 0.0),
        ("ddim", "random", 0.0),
    ):
        settings = SamplerSettings(2, rule, start, 1000, eta)
        difference = np.abs(run(settings, coarse)[0] - run(settings, coarse, KEYS[::-1])[0]).max()
        if start == "coarse" and (rule == "direct" or eta == 0):
            assert difference == 0, settings
        else:
            assert difference > 0.05, settings


def test_noise_differs_from_step_to_step(unrolled, monkeypatch):
    """What the sampler hands to its update, and what it starts from."""
    steps = []

    def record(space, y, estimate, step):
        steps.append(step.noise)
        return UPDATES["ddim"].update(space, y, estimate, step)

    monkeypatch.setitem(UPDATES, "recorded", UPDATES["ddim"]._replace(update=record))
    _, coarse = truth()
    _, trajectory = run(SamplerSettings(3, "recorded", "random", 1000, 1.0), coarse)
    drawn = np.stack(steps)
    assert drawn.shape == (3, BATCH, JOINTS, 2) and len(np.unique(drawn)) == drawn.size
    for one in drawn:
        assert np.abs(draw(one) - trajectory[0]).max() > 0.1


@pytest.mark.parametrize(
    ("steps", "t_start", "times"),
    [(1, 1000, [1000, 0]), (4, 1000, [1000, 750, 500, 250, 0]), (3, 1000, [1000, 667, 333, 0]), (3, 3, [3, 2, 1, 0])],
)
def test_times(steps, t_start, times):
    got = SamplerSettings(steps, t_start=t_start).times
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, times)


def test_times_never_repeat():
    for t_start in (1, 2, 7, 10, 37):
        for steps in range(1, t_start + 1):
            assert np.all(np.diff(SamplerSettings(steps, t_start=t_start).times) < 0)


def test_settings_of_a_recipe():
    fields = {"steps": (1, 3), "update_rule": "ddim", "eta": 0.5, "refresh": True}
    sampler = Recipe().override({f"sampler.{name}": value for name, value in fields.items()}).sampler
    assert sampler_settings(sampler) == tuple(SamplerSettings(k, "ddim", "coarse", 300, 0.5, True) for k in (1, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": (0,)}, r"sampler\.steps=\(0,\).*at least 1"),
        ({"steps": ()}, r"sampler\.steps=\(\).*distinct"),
        ({"steps": (2, 2)}, r"sampler\.steps=\(2, 2\).*distinct"),
        ({"update_rule": "ddpm"}, r"sampler\.update_rule='ddpm'.*direct.*ddim"),
        ({"start": "noise"}, r"sampler\.start='noise'.*coarse.*random"),
        ({"eta": 1.1}, r"sampler\.eta=1\.1.*\[0, 1\]"),
        ({"eta": float("nan")}, r"sampler\.eta=nan"),
        ({"t_start": 0}, r"sampler\.t_start=0.*at least 1"),
        ({"t_start": 1001}, r"sampler\.t_start=1001.*T = 1000"),
        ({"steps": (4,), "t_start": 3}, r"sampler\.steps=\(4,\).*t_start=3"),
        ({"start": "random", "update_rule": "ddim"}, r"sampler\.t_start=300: must be T = 1000 for ddim"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe().override({f"sampler.{name}": value for name, value in fields.items()})


def test_every_rule_is_a_choice_of_the_recipe():
    for rule in UPDATES:
        assert Recipe().override({"sampler.update_rule": rule}).sampler.update_rule == rule
