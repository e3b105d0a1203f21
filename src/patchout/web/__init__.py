"""The page of `patchout web`: look at the sounds of a folder, listen, label, retrain."""
