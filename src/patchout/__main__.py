"""`python -m patchout` is the `patchout` command."""

from patchout.cli.main import main

if __name__ == "__main__":
    main()
