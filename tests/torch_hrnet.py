"""HRNet in PyTorch, written from the published structure: an independent reference, with the official names.

Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation", CVPR 2019. Needs torch.
"""

import torch
from hrnet_weights import MEAN, STD
from torch import nn


def conv_bn(inputs, outputs, kernel, stride=1, relu=False):
    """The official unit: 0 is the convolution, 1 its BatchNorm."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class Block(nn.Module):
    """Convolutions conv1, bn1, conv2, ... around a skip; `kernels` are (3, 3), or (1, 3, 1) for a bottleneck."""

    def __init__(self, inputs, width, kernels):
        super().__init__()
        self.count = len(kernels)
        outputs = 4 * width if self.count == 3 else width
        channels = [inputs, *[width] * (self.count - 1), outputs]
        for k, size in enumerate(kernels, start=1):
            setattr(self, f"conv{k}", nn.Conv2d(channels[k - 1], channels[k], size, 1, size // 2, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(channels[k]))
        self.downsample = conv_bn(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        y = x
        for k in range(1, self.count + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            y = torch.relu(y) if k < self.count else y
        return torch.relu(y + self.downsample(x))


class Module(nn.Module):
    """Parallel branches, then an exchange of all with all."""

    def __init__(self, widths, blocks, outputs):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*[Block(w, w, (3, 3)) for _ in range(blocks)]) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(widths, j, i) for j in range(len(widths))) for i in range(outputs)
        )

    @staticmethod
    def _path(widths, source, target):
        if source == target:
            return nn.Identity()
        if source > target:
            up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
            return nn.Sequential(*conv_bn(widths[source], widths[target], 1), up)
        halvings = target - source
        return nn.Sequential(
            *[conv_bn(widths[source], widths[source], 3, 2, relu=True) for _ in range(halvings - 1)],
            conv_bn(widths[source], widths[target], 3, 2),
        )

    def forward(self, xs):
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        return [torch.relu(sum(path(x) for path, x in zip(paths, xs, strict=True))) for paths in self.fuse_layers]


class TorchHRNet(nn.Module):
    """The pose model: images (B, 3, Hx, Wx) -> features (B, C, Hx/4, Wx/4) and heatmaps (B, J, Hx/4, Wx/4).

    Args:
      spec: the numbers, as of `dpose_jax.models.hrnet.HRNetSpec`.
      joints: J.
    """

    def __init__(self, spec, joints):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, spec.stem, 3, 2)
        self.conv2, self.bn2 = conv_bn(spec.stem, spec.stem, 3, 2)
        channels = 4 * spec.stem_width
        self.layer1 = nn.Sequential(
            *[Block(channels if k else spec.stem, spec.stem_width, (1, 3, 1)) for k in range(spec.stem_blocks)]
        )
        widths = [spec.width << i for i in range(4)]
        first = conv_bn(channels, widths[0], 3, relu=True)
        self.transition1 = nn.ModuleList([first, nn.Sequential(conv_bn(channels, widths[1], 3, 2, relu=True))])
        for stage in (2, 3):
            deeper = nn.Sequential(conv_bn(widths[stage - 1], widths[stage], 3, 2, relu=True))
            setattr(self, f"transition{stage}", nn.ModuleList([*[nn.Identity()] * stage, deeper]))
        for stage, count in enumerate(spec.modules, start=2):
            outputs = [1 if stage == 4 and m == count - 1 else stage for m in range(count)]
            modules = [Module(widths[:stage], spec.blocks, out) for out in outputs]
            setattr(self, f"stage{stage}", nn.Sequential(*modules))
        self.final_layer = nn.Conv2d(widths[0], joints, 1)

    def forward(self, x):
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        x = self.layer1(x)
        xs = self.stage2([layer(x) for layer in self.transition1])
        xs = self.stage3([*xs, self.transition2[2](xs[-1])])
        xs = self.stage4([*xs, self.transition3[3](xs[-1])])
        return xs[0], self.final_layer(xs[0])


def as_torch(weights):
    """{name: array} -> a state dict."""
    return {name: torch.as_tensor(array) for name, array in weights.items()}


def run(net, image):
    """(1, Hx, Wx, 3) uint8, normalised as official HRNet does -> features and heatmaps, channels last."""
    with torch.no_grad():
        return [_channels_last(output) for output in net.eval()(_normalised(image))]


def run_timm(net, image):
    """As `run`, for timm's HighResolutionNet: the first output of its last stage."""
    outputs = []
    hook = net.stage4.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    with torch.no_grad():
        net.eval()(_normalised(image))
    hook.remove()
    return _channels_last(outputs[0])


def _normalised(image):
    return torch.as_tensor((image / 255 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)


def _channels_last(output):
    return output.permute(0, 2, 3, 1).numpy()
