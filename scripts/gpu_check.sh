#!/bin/sh
# What a GPU gives, in ten minutes: numbers equal to the CPU's, no waits, and the speed of every job.
#
#   scripts/gpu_check.sh [--device cuda] [--quick] [--minutes 9.5] [--out gpu_check]
#
# Writes OUT.json and OUT.md, after every section anew: a section that fails or is cut off costs the others nothing.
# `--device cpu --quick` tries the script itself. Needs this checkout and a Python (PYTHON, default python3) with torch,
# accelerate, jaxtyping, numpy, pyarrow, pytest, safetensors and scipy. Without a network what else is missing comes
# from a folder of wheels (WHEELS), made elsewhere by
#   pip download --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 --no-deps -d WHEELS \
#       soundfile cffi pycparser soxr tyro docstring-parser typeguard beartype
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
fi
PYTHONPATH="$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 "$PYTHON" scripts/gpu_check.py "$@"
