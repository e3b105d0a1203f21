"""`patchout prepare`: a data set as people download it -> a `datasets` folder of checked, undecoded sounds."""
