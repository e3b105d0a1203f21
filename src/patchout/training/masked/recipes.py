"""Recipes of pre-training: the published numbers of each objective, their sizes, and `own`."""

from dataclasses import replace

from patchout.errors import near
from patchout.training.masked.config import READ_BY, PretrainConfig

ABOUT = {
    "maskspec": """MaskSpec as published: Base on AudioSet, or on any sounds, without their labels.

    `patchout prepare audioset --source AudioSet --out data/audioset`, then `patchout pretrain maskspec --data
    data/audioset --out runs/maskspec --workers 16`, with torchrun in front on several GPUs; -small and -tiny
    are the paper's smaller encoders. Cited cost of Base: 80 epochs, four days on eight V100; cited scores
    after fine-tuning: docs/maskspec.md. We have not run it.

    The split "eval" is left out where there is one: it tests what is fine-tuned later. -code has the numbers
    of the published code, of which the plain recipe changes three: the horizon (--horizon-epochs 400: the
    code's cosine ends there, 80 epochs were run), a floor under the deviation of the bands that the published
    statistics leave empty (--std-floor 0), and the clipped gradient (--clip-norm 0). -paper has those of the
    paper: a rate of .001 for its batch, the pixels as they are instead of each patch normalised, no jitter of
    the bands. Precision is bf16 in all of them, and where the text is not what the public weights are, they
    are as these: docs/maskspec.md.""",
    "own": """Your own unlabelled sounds: does pre-training on them help?

    `patchout pretrain own --data my_sounds --out runs/own --probe my_labelled_set`. The labelled set is
    optional: nearest neighbours watch the run on it, and at the end a table compares random weights, the
    start and the result. Then `patchout train folder --data my_labelled_set --init runs/own --out ...`, or
    embed with it.

    The objective is `contrast`: two views of a clip, each of which has lost columns or rows of patches, are
    alike. On 7.7 hours of mixed sounds (Tiny, an hour of a core for each objective) the 5 nearest neighbours
    of ESC-50 at 16 kHz, fold 5, were right for .465 after contrast, .283 codes, .270 latent, .245 pixels,
    .133 random weights, .312 the mean and deviation of the bands; after twice the time for .548 and .300
    (latent). Pitch it unlearns, and spoken digits are told better after latent: docs/results/pretraining.md.
    `--objective pixels --masks random` is MaskSpec, whose guesses `patchout reconstruct` draws.

    Random crops of 5.12 s halve the tokens; positions are a formula, so fine-tuning may take longer clips.
    One mean and deviation of your sounds serves all bands, so that a band that they leave empty is not blown
    up in others. A batch has to hold sounds that differ: a clip's negatives are the others of its step.""",
    "codes": """Codes of hidden patches (BEST-RQ-2, arXiv 2606.30700): the cheapest objective, no teacher.

    `patchout pretrain codes --data data/audioset --out runs/codes --workers 16`; -small and -tiny are smaller
    encoders. Each hidden patch is named by the nearest of 8192 frozen random vectors; the encoder sees the
    others alone. Windows of 128 ms every 39 ms leave a quarter of the patches of other recipes. Published:
    200k steps of 256 clips (27 epochs of AudioSet), AdamW 1e-4, weight decay .05, 5 % of warm-up, half of the
    patches hidden (.4 - .6). Ours: the predictor's size, of which we know no number. We have not run it at
    this size.""",
    "latent": """What an averaged teacher hears (EAT, arXiv 2401.03497): AudioSet-20K mAP .402 after ten
    epochs, cited.

    `patchout pretrain latent --data data/audioset --out runs/latent --workers 16`; -small and -tiny are
    smaller encoders. The teacher hears the whole clip once, 16 masks of inverse blocks share it. Published:
    400k steps of 48 clips (ten epochs of AudioSet, 230 hours of an RTX 3090), Adam 5e-4, 13 % of warm-up, the
    gradient clipped at 4, decay of the teacher .9998 to .99999 over the first quarter: a run of few thousand
    steps needs a shorter memory (`--teacher-decay .99 .999`). Ours: a pre-norm encoder, the log-mels of the
    other recipes, noise in the place of hidden patches that is drawn once a step. We have not run it at this
    size.""",
    "contrast": """Two views of a clip are alike (AudioMosaic, arXiv 2605.14231): AudioSet-20K mAP .425,
    cited.

    `patchout pretrain contrast --data data/audioset --out runs/contrast --workers 16`; -small and -tiny are
    smaller encoders. Each view is augmented by itself; structured Patchout drops .6 of the columns of one and
    .4 of the rows of the other, `--masks blocks` what the released code drops. Published: batches of 6144,
    400 epochs, AdamW 6e-4, cosine. Ours: the cosine ends at 0 and not at 1e-6, 40 epochs of warm-up, one
    change of speed for stretch and pitch shift, the mean of the patches without the class token. We have not
    run it at this size.""",
}


MASKSPEC = PretrainConfig(recipe="maskspec", exclude=("eval",))
OWN = PretrainConfig(
    recipe="own",
    init="auto",
    size="small",
    objective="contrast",
    mel_jitter=False,
    masks="structured",
    statistics="one",
    clip_s=5.12,
    batch=0,
    base_lr=4e-3,
    warm_up_epochs=8.0,
)
CODES = PretrainConfig(
    recipe="codes",
    exclude=("eval",),
    objective="codes",
    decoder=(384, 4, 6),
    front_end="coarse",
    statistics="one",
    mel_jitter=False,
    mask_ratio=0.4,
    mask_ratio_to=0.6,
    epochs=27,
    batch=256,
    base_lr=1e-4,
    warm_up_epochs=1.35,
)
LATENT = PretrainConfig(
    recipe="latent",
    exclude=("eval",),
    objective="latent",
    decoder=(768, 6, 16),
    decoder_kind="convolutional",
    mel_jitter=False,
    masks="inverse-blocks",
    mask_ratio=0.8,
    masks_per_clip=16,
    epochs=10,
    batch=48,
    base_lr=5e-4 * 256 / 48,
    warm_up_epochs=1.3,
    clip_norm=4.0,
)
CONTRAST = PretrainConfig(
    recipe="contrast",
    exclude=("eval",),
    objective="contrast",
    mel_jitter=False,
    masks="structured",
    epochs=400,
    batch=6144,
    base_lr=6e-4 * 256 / 6144,
)
RECIPES = {
    "maskspec": MASKSPEC,
    "maskspec-small": replace(MASKSPEC, size="small"),
    "maskspec-tiny": replace(MASKSPEC, size="tiny"),
    "maskspec-code": replace(MASKSPEC, horizon_epochs=400, std_floor=0.0, clip_norm=0.0),
    "maskspec-paper": replace(
        MASKSPEC,
        base_lr=1e-3 * 256 / MASKSPEC.batch,
        normalize_patches=False,
        mel_jitter=False,
        clip_norm=0.0,
    ),
    "own": OWN,
    "codes": CODES,
    "codes-small": replace(CODES, size="small"),
    "codes-tiny": replace(CODES, size="tiny", decoder=(192, 4, 3)),
    "latent": LATENT,
    "latent-small": replace(LATENT, size="small", decoder=(384, 6, 16)),
    "latent-tiny": replace(LATENT, size="tiny", decoder=(192, 6, 16)),
    "contrast": CONTRAST,
    "contrast-small": replace(CONTRAST, size="small"),
    "contrast-tiny": replace(CONTRAST, size="tiny"),
}


def recipe(name: str) -> tuple[PretrainConfig, str]:
    """The recipe of that name and what there is to say about it; an unknown one is a ValueError with the
    nearest.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{near(name, RECIPES)}: recipes are {', '.join(RECIPES)}")
    return replace(RECIPES[name], recipe=name), ABOUT[name.partition("-")[0]]


def refuse_unread(config: PretrainConfig) -> None:
    """ValueError for settings that the objective never reads, but for those that its recipe brings."""
    plain = PretrainConfig(recipe=config.recipe)
    usual = plain, RECIPES.get(config.recipe, plain)
    names = [name for name, objectives in READ_BY.items() if config.objective not in objectives]
    values = {name: [getattr(each, name) for each in usual] for name in names}
    if unread := [name for name in names if getattr(config, name) not in values[name]]:
        raise ValueError(f"{config.objective} does not read {', '.join(unread)}: leave that out")
