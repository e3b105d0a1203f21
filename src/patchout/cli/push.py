"""`patchout push`: a model with config and card to a repository of the hub."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, load_model, say


@dataclass(kw_only=True)
class Options:
    """Push a model to the hub: weights, config.json and a card of what the checkpoint knows."""

    model: Annotated[str, tyro.conf.Positional]
    """a name from `patchout models`, a .safetensors or public .pt file, a run folder, or a hub id"""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """repository on the hub"""
    format: Literal["patchout", "transformers"] = "patchout"
    """transformers: with the code that `pipeline("audio-classification", ...)` runs; patchout reads both"""
    dry_run: Path | None = None
    """folder to write what would be pushed into; nothing is sent"""
    licence: str = ""
    """of the weights, for a model that has none, e.g. CC-BY-4.0"""
    data_licence: str = ""
    """of the training data, where the checkpoint does not say"""
    accept: str = ""
    """name of a licence that restricts sharing (NC, ND, unknown), if its terms let you share the model"""
    labels: Path | None = None
    """class names for models that bring none"""
    private: tyro.conf.FlagCreatePairsOff[bool] = False
    """make the repository private"""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """into a repository, or a --dry-run folder, that exists"""


def main(args: Sequence[str]) -> int:
    """Run `patchout push`."""
    options = tyro.cli(Options, args=args, prog="patchout push")
    from patchout.checkpoint.hub import push
    from patchout.checkpoint.hub.folder import Terms, shareable, write_folder

    push.check_name(options.name)
    folder = options.dry_run
    if folder is None:
        push.check_destination(options.name, overwrite=options.overwrite)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not options.overwrite:
        raise FileExistsError(f"{folder}: holds files already: choose another folder, or --overwrite")
    terms = Terms(licence=options.licence, data_licence=options.data_licence, accept=options.accept)
    model = shareable(load_model(options.model, "cpu", options.labels), terms)
    is_for_transformers = options.format == "transformers"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in write_folder(model, folder, repo_id=options.name, transformers=is_for_transformers):
            output.line(str(path), sys.stdout)
        say(f"nothing was sent; without --dry-run these files go to {options.name}")
        return DONE
    with TemporaryDirectory() as place:
        files = write_folder(model, Path(place), repo_id=options.name, transformers=is_for_transformers)
        say(f"sending {sum(path.stat().st_size for path in files) / 1e6:.1f} MB to {options.name}")
        revision = push.upload(
            Path(place), options.name, private=options.private, overwrite=options.overwrite
        )
    output.line(revision, sys.stdout)
    return DONE
