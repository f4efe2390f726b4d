import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.process import Schedule, ddim_step, gamma_table, q_sample, to_normalised

SCHEDULES = ("cosine", "linear")
PAIRS = ((1000, 999), (1000, 0), (1000, 500), (750, 500), (500, 499), (250, 0), (20, 10), (2, 1), (1, 0))


def joints(seed, *shape):
    """Normalised joints y_0 and noise."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (*shape, 2)).astype(np.float32), rng.normal(size=(*shape, 2)).astype(np.float32)


@pytest.mark.parametrize("timesteps", [2, 10, 1000, 4000])
def test_cosine_is_its_closed_form_but_at_the_end(timesteps):
    t = np.arange(timesteps)
    closed = np.cos((t / timesteps + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    gamma = np.asarray(Schedule("cosine", timesteps).gamma(jnp.arange(timesteps + 1)))
    np.testing.assert_allclose(gamma[:-1], closed, rtol=2e-7)
    # Unclipped, the last beta would be 1 and gamma_T 0.
    np.testing.assert_allclose(gamma[-1], 1e-3 * closed[-1], rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("timesteps", [1, 2, 10, 100, 1000])
def test_gamma_falls_from_one_to_near_nothing(name, timesteps):
    table = gamma_table(name, timesteps)
    assert table.shape == (timesteps + 1,) and table.dtype == np.float32
    assert table[0] == 1 and np.all(np.diff(table) < 0) and table[-1] > 0
    if timesteps > 1:
        assert table[-1] < 1e-3


def test_linear_betas():
    gamma = gamma_table("linear", 1000).astype(np.float64)
    betas = 1 - gamma[1:] / gamma[:-1]
    np.testing.assert_allclose(betas, np.linspace(1e-4, 0.02, 1000), atol=2e-7)


@pytest.mark.parametrize("timesteps", [200, 500, 2000, 4000])
def test_linear_keeps_its_noise_at_other_lengths(timesteps):
    """The same gamma at the same share of the way, up to the second order in beta."""
    share = np.linspace(0, 1, 101)
    noise = [
        -np.log(gamma_table("linear", t).astype(np.float64))[np.round(share * t).astype(int)] for t in (1000, timesteps)
    ]
    np.testing.assert_allclose(noise[1], noise[0], rtol=0.035, atol=0.002)


def test_gamma_takes_any_shape():
    schedule = Schedule("cosine", 50)
    t = np.arange(48).reshape(2, 3, 8)
    expected = gamma_table("cosine", 50)
    np.testing.assert_array_equal(jax.jit(schedule.gamma)(t), expected[t])
    np.testing.assert_array_equal(schedule.gamma(jnp.int32(7)), expected[7])


def test_q_sample_is_the_equation():
    schedule = Schedule("cosine", 1000, zeta=3.0)
    y_0, noise = joints(0, 4, 5)
    t = np.array([0, 1, 400, 1000])
    gamma = gamma_table("cosine", 1000).astype(np.float64)[t][:, None, None]
    expected = np.sqrt(gamma) * 3 * y_0 + np.sqrt(1 - gamma) * noise
    y_t = np.asarray(q_sample(schedule, y_0, t, noise))
    np.testing.assert_allclose(y_t, expected, atol=1e-6)
    np.testing.assert_array_equal(y_t[0], 3 * y_0[0])
    for index, one in enumerate(t):
        np.testing.assert_allclose(q_sample(schedule, y_0[index], one, noise[index]), y_t[index], atol=1e-6)


@pytest.mark.parametrize("t", [1, 300, 800, 1000])
def test_q_sample_has_its_mean_and_variance_and_no_clamp(t):
    schedule = Schedule("cosine", 1000, zeta=1.0)
    count = 40_000
    noise = np.asarray(jax.random.normal(jax.random.key(t), (count, 1, 2)))
    y_t = np.asarray(q_sample(schedule, np.full((count, 1, 2), 0.5, np.float32), np.full(count, t), noise), np.float64)
    gamma = float(gamma_table("cosine", 1000)[t])
    spread = np.sqrt(1 - gamma)
    # Four standard errors over 80,000 numbers: of a mean 4 / 283, of a relative variance 4 sqrt(2) / 283.
    assert abs(y_t.mean() - 0.5 * np.sqrt(gamma)) < 0.0142 * spread
    assert abs(y_t.var() / (1 - gamma) - 1) < 0.02
    if t >= 800:
        assert np.abs(y_t).max() > 3 * schedule.zeta


def test_to_normalised_clamps_to_the_map():
    schedule = Schedule(zeta=2.0)
    y_t = np.float32([[-9, -2], [-1, 0], [0.5, 2], [2.1, 1e6]])
    np.testing.assert_array_equal(to_normalised(schedule, y_t), [[-1, -1], [-0.5, 0], [0.25, 1], [1, 1]])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zeta", [1.0, 2.0, 5.0])
def test_a_ddim_step_with_the_true_joints_stays_on_the_forward_process(name, zeta):
    schedule = Schedule(name, 1000, zeta)
    y_0, epsilon = joints(1, 6)
    _, other = joints(2, 6)
    for t, t_next in PAIRS:
        y_t = q_sample(schedule, y_0, jnp.asarray(t), epsilon)
        y_next = ddim_step(schedule, y_t, y_0, t, t_next, 0.0, other)
        expected = q_sample(schedule, y_0, jnp.asarray(t_next), epsilon)
        np.testing.assert_allclose(y_next, expected, atol=1e-5, err_msg=f"{t} -> {t_next}")


def posterior(gamma, gamma_next, zeta, y_0, y_t):
    """Mean and variance of q(y_next | y_t, y_0) by Bayes: the product of a prior and a likelihood in y_next."""
    keep = gamma / gamma_next
    precision = 1 / (1 - gamma_next) + keep / (1 - keep)
    mean = (np.sqrt(gamma_next) * zeta * y_0 / (1 - gamma_next) + np.sqrt(keep) * y_t / (1 - keep)) / precision
    return mean, 1 / precision


@pytest.mark.parametrize("name", SCHEDULES)
def test_eta_one_is_the_ancestral_sampler(name):
    schedule = Schedule(name, 1000, 2.0)
    table = gamma_table(name, 1000).astype(np.float64)
    y_0, noise = joints(3, 6)
    y_t, _ = joints(4, 6)
    for t, t_next in PAIRS:
        still = ddim_step(schedule, y_t, y_0, t, t_next, 1.0, jnp.zeros_like(noise))
        moved = ddim_step(schedule, y_t, y_0, t, t_next, 1.0, noise)
        if t_next == 0:
            np.testing.assert_allclose(moved, 2 * y_0, atol=1e-6)
            continue
        mean, variance = posterior(table[t], table[t_next], 2.0, y_0, y_t)
        # At t = 2 float32 divides by 1 - gamma_t = 1e-4.
        np.testing.assert_allclose(still, mean, atol=1e-5 if t > 10 else 1e-3, err_msg=f"{t} -> {t_next}")
        np.testing.assert_allclose(moved - still, np.sqrt(variance) * noise, atol=1e-5, err_msg=f"{t} -> {t_next}")


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_marginal_variance(eta):
    schedule = Schedule("cosine", 1000, 2.0)
    one, zero = jnp.ones((1, 2)), jnp.zeros((1, 2))
    for t, t_next in PAIRS:
        gamma, gamma_next = schedule.gamma(t), schedule.gamma(t_next)
        direction = ddim_step(schedule, jnp.sqrt(1 - gamma) * one, zero, t, t_next, eta, zero)
        sigma = ddim_step(schedule, zero, zero, t, t_next, eta, one)
        np.testing.assert_allclose(direction**2 + sigma**2, (1 - gamma_next) * one, atol=1e-6)
        assert np.all(sigma >= 0) and np.all((sigma > 0) == (eta > 0 and t_next > 0))


def test_ddim_takes_a_time_for_each_example():
    schedule = Schedule("cosine", 1000, 2.0)
    y_0, noise = joints(5, 3, 4)
    y_t, _ = joints(6, 3, 4)
    t, t_next = np.array([1000, 500, 1]), np.array([600, 20, 0])
    together = ddim_step(schedule, y_t, y_0, t[:, None, None], t_next[:, None, None], 0.5, noise)
    for i in range(3):
        alone = ddim_step(schedule, y_t[i], y_0[i], t[i], t_next[i], 0.5, noise[i])
        np.testing.assert_allclose(together[i], alone, atol=1e-6)
