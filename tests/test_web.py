"""The page of `patchout web`: its server, its labels, its bad inputs."""
