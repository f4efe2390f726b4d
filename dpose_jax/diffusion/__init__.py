"""The diffusion of joints: schedules, forward process, sampler. Pure functions, no network inside."""
