#!/bin/bash
# Install this checkout with all of its plugins into a new virtual environment, with the tested versions:
#
#     bash examples/clusters/install.sh DIRECTORY [options of pip install]
#
# Packages are copied into the environment, so that it works without the checkout. PYTHON chooses the interpreter.
set -euo pipefail

place=${1:?"usage: install.sh DIRECTORY [options of pip install]"}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
plugins=()
for project in "$root"/plugins/*/pyproject.toml; do
    plugins+=("$(dirname "$project")")
done

"${PYTHON:-python3}" -m venv "$place"
"$place/bin/python" -m pip install --quiet --no-cache-dir --constraint "$root/constraints.txt" "$@" \
    "$root[lora,tensorboard,video]" "${plugins[@]}"
"$place/bin/dgpo" plugins list > /dev/null   # every plugin can be imported
"$place/bin/dgpo" --version
