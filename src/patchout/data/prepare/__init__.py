"""`patchout prepare`: a downloaded data set -> a `datasets` folder of checked, undecoded sounds."""
