"""The plain CNN14 of PANNs (arXiv:1912.10211), for the speed table alone: random weights, no front end."""

from jaxtyping import Float
from torch import Tensor, nn

from patchout.audio.mel import MelConfig

CHANNELS = (64, 128, 256, 512, 1024, 2048)
MEL = MelConfig(win_length=1024, n_mels=64, f_min=50.0, f_max=14_000.0)


class Cnn14(nn.Module):
    """Six blocks of two 3 x 3 convolutions, five halve both axes; mean over frequency, max + mean in time."""

    def __init__(self, num_classes: int, *, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(MEL.n_mels)
        pools = [2] * (len(channels) - 1) + [1]
        steps = zip((1, *channels), channels, pools, strict=False)
        self.blocks = nn.Sequential(*(_block(into, out, pool) for into, out, pool in steps))
        self.head = nn.Sequential(
            *(nn.Dropout(0.5), nn.Linear(channels[-1], channels[-1]), nn.ReLU()),
            *(nn.Dropout(0.5), nn.Linear(channels[-1], num_classes)),
        )

    def forward(self, mel: Float[Tensor, "batch mel frame"]) -> Float[Tensor, "batch class"]:
        """Log-mel -> logits."""
        x: Tensor = self.blocks(self.norm(mel)[:, None]).mean(dim=2)  # (B, channels, time)
        return self.head(x.amax(dim=2) + x.mean(dim=2))


def _block(into: int, out: int, pool: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()),
        *(nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()),
        *(nn.AvgPool2d(pool), nn.Dropout(0.2)),
    )
