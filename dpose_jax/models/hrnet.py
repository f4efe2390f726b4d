"""HRNet: x^fea, the highest-resolution branch at stride 4 (Sun et al., CVPR 2019)."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpose_jax.models.layers import BatchNorm, Conv3x3, Dense, relu, upsample_nearest
from dpose_jax.models.packing import PackedConv, pack, pixels_that_fill, unpack

EXPANSION = 4  # of a bottleneck
recomputed = functools.partial(nn.remat, static_argnums=(2,))  # inside, by the backward pass; argument 2 is `train`


@dataclasses.dataclass(frozen=True)
class HRNetSpec:
    """The numbers that tell one HRNet from another."""

    width: int  # C, channels of the highest-resolution branch; branch i has C 2^i
    modules: tuple[int, int, int] = (1, 4, 3)  # exchange modules of stages 2, 3 and 4
    blocks: int = 4  # basic blocks a branch in each module
    stem: int = 64  # channels of the two stride-2 convolutions that come first
    stem_blocks: int = 4  # bottlenecks of stage 1
    stem_width: int = 64  # their inner channels


def packed_pixels(pixels: int, branch: int) -> int:
    """Pixels that a branch packs into channels if the highest resolution packs `pixels`: half as many each, or one."""
    return max(1, pixels >> branch)


class ConvBN(nn.Module):
    """3x3 or 1x1 convolution, BatchNorm and, unless it is the last before a sum, ReLU."""

    features: int
    kernel: int = 3
    stride: int = 1
    relu: bool = True
    dtype: jnp.dtype = jnp.float32
    pixels: tuple[int, int] = (1, 1)  # packed into the channels of input and output

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.pixels != (1, 1):
            x = PackedConv(self.features, self.kernel, self.stride, self.pixels, self.dtype, name="conv")(x)
        elif self.kernel == 1:
            # A matrix product: XLA:CPU's weight gradient of a 1x1 convolution takes ten times longer.
            x = Dense(self.features, use_bias=False, dtype=self.dtype, name="conv")(x)
        else:
            x = Conv3x3(self.features, strides=self.stride, use_bias=False, dtype=self.dtype, name="conv")(x)
        before, after = self.pixels
        copies = after // before if self.kernel == 1 else 1
        x = BatchNorm(dtype=self.dtype, pixels=after, copies=copies, name="bn")(x, train)
        return relu(x) if self.relu else x


# Traced once for all blocks of a shape: W32 is traced in a third less time. A profile then names the blocks of a branch
# by the first.
@functools.partial(nn.jit, static_argnums=(2,), static_argnames=("train",))
class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a skip."""

    features: int
    dtype: jnp.dtype = jnp.float32
    pixels: int = 1  # packed into channels

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(ConvBN, self.features, dtype=self.dtype, pixels=(self.pixels, self.pixels))
        y = conv(name="conv1")(x, train)
        y = conv(relu=False, name="conv2")(y, train)
        return relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around a skip that is projected where the channels differ."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        out = self.features * EXPANSION
        y = ConvBN(self.features, kernel=1, dtype=self.dtype, name="conv1")(x, train)
        y = ConvBN(self.features, dtype=self.dtype, name="conv2")(y, train)
        y = ConvBN(out, kernel=1, relu=False, dtype=self.dtype, name="conv3")(y, train)
        if x.shape[-1] != out:
            x = ConvBN(out, kernel=1, relu=False, dtype=self.dtype, name="downsample")(x, train)
        return relu(x + y)


class Exchange(nn.Module):
    """One module: basic blocks on every branch, then every branch summed into each output branch."""

    width: int
    blocks: int
    outputs: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    pixels: int = 1  # packed into channels in the highest resolution

    @nn.compact
    def __call__(self, branches: list[jax.Array], train: bool) -> list[jax.Array]:
        branches, basic = list(branches), recomputed(BasicBlock) if self.remat else BasicBlock
        for i, x in enumerate(branches):
            for block in range(self.blocks):
                packed = packed_pixels(self.pixels, i)
                x = basic(self.width << i, self.dtype, packed, name=f"branch{i}_block{block}")(x, train)
            branches[i] = x
        return [
            relu(functools.reduce(jnp.add, [self._resample(x, j, i, train) for j, x in enumerate(branches)]))
            for i in range(self.outputs)
        ]

    def _resample(self, x, source, target, train):
        """Branch `source` at the resolution and width of branch `target`."""
        name, packs = f"fuse{target}_{source}", functools.partial(packed_pixels, self.pixels)
        if source > target:
            factor, packed = 1 << (source - target), (packs(source), packs(target))
            x = ConvBN(self.width << target, 1, relu=False, dtype=self.dtype, pixels=packed, name=name)(x, train)
            return upsample_nearest(x, factor, factor * packed[0] // packed[1])  # packing repeats the other columns
        for k, branch in enumerate(range(source, target)):
            last, packed = branch == target - 1, (packs(branch), packs(branch + 1))
            conv = functools.partial(ConvBN, self.width << (target if last else source), stride=2, relu=not last)
            x = conv(dtype=self.dtype, pixels=packed, name=f"{name}_{k}")(x, train)
        return x


class HRNet(nn.Module):
    """x^fea = HRNet(x).

    With `remat` the backward pass computes the inside of each residual block again; with `packed` the branches keep
    pixels of a row as channels (`packing`).
    """

    spec: HRNetSpec
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    packed: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Normalised images (B, Hx, Wx, 3), Hx and Wx divisible by 32 -> (B, Hx/4, Wx/4, C) in `dtype`."""
        spec, dtype, bottleneck = self.spec, self.dtype, recomputed(Bottleneck) if self.remat else Bottleneck
        x = ConvBN(spec.stem, stride=2, dtype=dtype, name="stem1")(images, train)
        x = ConvBN(spec.stem, stride=2, dtype=dtype, name="stem2")(x, train)
        for block in range(spec.stem_blocks):
            x = bottleneck(spec.stem_width, dtype, name=f"stage1_block{block}")(x, train)
        branches = [x]
        pixels = pixels_that_fill(spec.width, x.shape[2]) if self.packed else 1
        for stage, modules in enumerate(spec.modules, start=2):
            # One more branch at half the lowest resolution; stage 2 also sets the width.
            lowest, name = branches[-1], f"transition{stage - 1}"
            before, after = packed_pixels(pixels, stage - 2), packed_pixels(pixels, stage - 1)
            halve = functools.partial(ConvBN, spec.width << (stage - 1), stride=2, dtype=dtype)
            if stage == 2:  # of arrays that are not packed
                first = ConvBN(spec.width, dtype=dtype, name=f"{name}_0")(lowest, train)
                second = halve(name=f"{name}_1")(lowest, train)
                branches = [pack(first, before), pack(second, after)]
            else:
                branches.append(halve(pixels=(before, after), name=f"{name}_{stage - 1}")(lowest, train))
            for module in range(modules):
                # Pose uses the highest resolution alone, so the last module makes nothing else.
                outputs = 1 if stage == 4 and module == modules - 1 else stage
                name = f"stage{stage}_module{module}"
                exchange = Exchange(spec.width, spec.blocks, outputs, dtype, self.remat, pixels, name=name)
                branches = exchange(branches, train)
        return unpack(branches[0], pixels)
