"""A small CNN on the log-mel, to judge beside the transformers:
python benchmarks/small_cnn.py ESC-10 --out cnn.pt

Trained on folds 1-4 of ESC-10, fold 5 held out. The file itself is a HEAR module, so that with `benchmarks`
on PYTHONPATH `patchout hear run small_cnn --weights cnn.pt --tasks TASKS --out RESULTS` judges it.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import patchout
from patchout.audio.mel import MelConfig
from patchout.data.augment import Share, fit, mixup

MEL = MelConfig()  # PaSST's own, a frame every 10 ms
WIDTHS = (24, 48, 96, 160, 256)
FIELD = 16  # frames around a time, 160 ms as in PaSST's modules; also the least that the five blocks take
HOP = 5  # frames between two times, 50 ms
EPOCHS, BATCH, PEAK_LR = 30, 32, 3e-3


class SmallCnn(nn.Module):
    """Five blocks of convolution, batch norm and ReLU,
    each halving the mels and all but the last the frames.
    """

    sample_rate = MEL.sample_rate
    scene_embedding_size = timestamp_embedding_size = WIDTHS[-1]

    def __init__(self, num_classes: int) -> None:
        """0.56 million weights, random."""
        super().__init__()
        blocks = []
        for num_in, num_out, time_stride in zip((1, *WIDTHS), WIDTHS, (2, 2, 2, 2, 1), strict=False):
            convolution = nn.Conv2d(num_in, num_out, 3, stride=(2, time_stride), padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(num_out), nn.ReLU(inplace=True)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def embed(self, mel: Tensor) -> Tensor:
        """Log-mel (clip, 128, frame),
        any number of frames -> the mean over what the last block sees, (clip, 256).
        """
        padded = F.pad(mel, (0, max(0, FIELD - mel.shape[-1])), value=float(mel.min()))
        features: Tensor = self.blocks(padded[:, None])
        return features.mean(dim=(2, 3))

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (clip, 128, frame) -> logits (clip, class)."""
        logits: Tensor = self.head(F.dropout(self.embed(mel), 0.2, self.training))
        return logits


# -- the HEAR module -----------------------------------------------------------------------------------------


def load_model(model_file_path: str) -> SmallCnn:
    """The model that `main` has written."""
    state = torch.load(model_file_path, weights_only=True)
    model = SmallCnn(len(state["head.bias"]))
    model.load_state_dict(state)
    return model.eval()


def get_scene_embeddings(audio: Tensor, model: SmallCnn) -> Tensor:
    """(clip, sample) at 32 kHz -> (clip, 256)."""
    with torch.inference_mode():
        return model.embed(patchout.log_mel(audio, MEL))


def get_timestamp_embeddings(audio: Tensor, model: SmallCnn) -> tuple[Tensor, Tensor]:
    """(clip, sample) at 32 kHz -> (clip, time, 256) of the 160 ms around every 50 ms, and the times in ms."""
    with torch.inference_mode():
        half = FIELD // 2 * MEL.hop_length
        mel = patchout.log_mel(F.pad(audio[:, None], (half, half), mode="reflect")[:, 0], MEL)
        windows = mel.unfold(2, FIELD, HOP).permute(0, 2, 1, 3)  # (clip, time, mel, frame)
        values = torch.stack([model.embed(clip) for clip in windows])
    times_ms = torch.arange(values.shape[1]) * HOP * MEL.frame_s * 1000
    return values, times_ms.expand(len(audio), -1)


# -- training ------------------------------------------------------------------------------------------------


def read_mels(root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mels (clip, 128, 500) of ESC-10, targets (clip, class), and whether a clip is of fold 5."""
    clips = patchout.data.scan(root)
    waves = torch.stack(
        [fit(torch.from_numpy(patchout.audio.load(name)), 5 * MEL.sample_rate) for name in clips.names()]
    )
    labels = [clips.labels(clip)[0] for clip in range(len(clips))]
    classes = sorted(set(labels))
    target = F.one_hot(torch.tensor([classes.index(label) for label in labels])).float()
    mels = torch.cat([patchout.log_mel(part, MEL) for part in torch.split(waves, BATCH)])
    return mels, target, torch.tensor([fold == "5" for fold in clips.column("fold")])


def train(mels: Tensor, target: Tensor, *, epochs: int, seed: int) -> SmallCnn:
    """AdamW on one cycle of rates; every clip rolled in time and mixed with another."""
    torch.manual_seed(seed)  # of the weights and of dropout
    rng = Generator().manual_seed(seed)
    model = SmallCnn(target.shape[1]).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = epochs * -(-len(mels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(mels), generator=rng), BATCH):
            shifts = torch.randint(mels.shape[2], (len(batch),), generator=rng).tolist()
            rolled = torch.stack(
                [mels[clip].roll(by, -1) for clip, by in zip(batch.tolist(), shifts, strict=True)]
            )
            mixed, wanted = mixup(
                rolled, target[batch], 0.3, rng, share=Share(0, len(batch), lambda own: own)
            )
            optimizer.zero_grad()
            F.cross_entropy(model(mixed), wanted).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    """Train, print the accuracy on fold 5, write the weights."""
    parser = argparse.ArgumentParser(description="Train the small CNN on ESC-10, folds 1-4.")
    parser.add_argument("data", type=Path, help="ESC-10")
    parser.add_argument("--out", type=Path, required=True, help="file for the weights")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mels, target, held_out = read_mels(options.data)
    start = time.perf_counter()
    model = train(mels[~held_out], target[~held_out], epochs=options.epochs, seed=options.seed)
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        hits = model(mels[held_out]).argmax(1) == target[held_out].argmax(1)
    size = sum(weight.numel() for weight in model.parameters())
    print(
        f"{size} weights, {seconds:.0f} s, fold 5: {hits.float().mean():.3f} of {len(hits)} clips", flush=True
    )
    torch.save(model.state_dict(), options.out)


if __name__ == "__main__":
    main()
