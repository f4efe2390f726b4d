"""SC-CA: spatial-channel cross-attention from the joint-masked to the limb-masked features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpose_jax.models.layers import Dense


def num_heads(channels: int, head_dim: tuple[int, int]) -> int:
    """The most heads (= channel groups) whose width is in the closed range `head_dim` (ours), or a ValueError."""
    for width in range(head_dim[0], head_dim[1] + 1):
        if channels % width == 0:
            return channels // width
    raise ValueError(f"model.head_dim={head_dim}: no width in this range divides the backbone's {channels} channels")


def channel_attention(query: jax.Array, key: jax.Array, value: jax.Array, scale: str = "width") -> jax.Array:
    """A_c: [softmax(Q^T K d^-1/2) V^T]^T in each group of d channels, (B, N, G, d) -> (B, N, G, d).

    `scale` is `width` for d^-1/2 (ours, after DaViT) or `positions` for N^-1/2 (ours, as DaViT's later code): each
    entry of Q^T K is a sum over N positions, so that d^-1/2 lets the softmax saturate. The softmax is in float32, the
    result in the dtype of `value`.
    """
    count = query.shape[-1] if scale == "width" else query.shape[1]
    affinity = jnp.einsum("bngc,bnge->bgce", query, key, preferred_element_type=jnp.float32) * count**-0.5
    weights = jax.nn.softmax(affinity, axis=-1).astype(value.dtype)
    return jnp.einsum("bgce,bnge->bngc", weights, value)


def window_attention(query: jax.Array, key: jax.Array, value: jax.Array, window: int) -> jax.Array:
    """A_s: multi-head cross-attention inside windows of window x window pixels, (B, H, W, heads, d) -> the same."""
    batch, height, width, heads, dim = query.shape
    rows, columns = -height % window, -width % window  # padding; padded keys get no weight

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0), (0, 0)))
        batch, h, w, heads, d = x.shape
        x = x.reshape(batch, h // window, window, w // window, window, heads, d)
        return x.transpose(0, 1, 3, 2, 4, 5, 6).reshape(batch, -1, window * window, heads, d)

    logits = jnp.einsum("bpqhd,bpkhd->bphqk", split(query), split(key), preferred_element_type=jnp.float32) * dim**-0.5
    if rows or columns:
        inside = split(jnp.ones((1, height, width, 1, 1)))[..., 0, 0]
        logits = jnp.where(inside[:, :, None, None, :] > 0, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = jnp.einsum("bphqk,bpkhd->bpqhd", weights, split(value))
    out = out.reshape(batch, (height + rows) // window, (width + columns) // window, window, window, heads, dim)
    out = out.transpose(0, 1, 3, 2, 4, 5, 6).reshape(batch, height + rows, width + columns, heads, dim)
    return out[:, :height, :width]


class SCCA(nn.Module):
    """A = A_s + A_c with Q = x^kps, K = V = x^ske; LayerNorm, own projections of each, no feed-forward part (ours)."""

    heads: int  # of A_s, and channel groups of A_c; divides the channels
    window: int = 8  # side of A_s's windows in pixels
    spatial: bool = True  # A_s is there
    channel: bool = True  # A_c is there; at least one of the two
    channel_scale: str = "width"  # of `channel_attention`
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, keypoint_features: jax.Array, skeleton_features: jax.Array) -> jax.Array:
        """(B, H, W, C) x^kps and x^ske -> (B, H, W, C)."""
        channels = keypoint_features.shape[-1]
        query = nn.LayerNorm(dtype=self.dtype, name="norm_query")(keypoint_features)
        context = nn.LayerNorm(dtype=self.dtype, name="norm_context")(skeleton_features)

        def half(name, attend):
            def heads(x, part):
                x = Dense(channels, dtype=self.dtype, name=f"{name}_{part}")(x)
                return x.reshape(*x.shape[:-1], self.heads, channels // self.heads)

            out = attend(heads(query, "query"), heads(context, "key"), heads(context, "value"))
            return Dense(channels, dtype=self.dtype, name=f"{name}_out")(out.reshape(query.shape))

        def over_positions(q, k, v):
            flat = (q.shape[0], -1, *q.shape[3:])
            return channel_attention(q.reshape(flat), k.reshape(flat), v.reshape(flat), self.channel_scale)

        total = jnp.zeros_like(query)
        if self.spatial:
            total += half("spatial", lambda q, k, v: window_attention(q, k, v, self.window))
        if self.channel:
            total += half("channel", over_positions)
        return total
