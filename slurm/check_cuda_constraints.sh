#!/usr/bin/env bash
# Does constraints-cuda.txt still resolve, as a whole, for linux x86_64 and Python 3.11? Reads metadata only: no GPU, and no wheel
# is downloaded or built. Fails when a pin is gone, when two contradict, when the resolution holds a package that is not
# pinned, or when a package other than those of FROM_SOURCE has no wheel.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What docs/install.md says is built on the machine: CUDA extensions first, then pure Python packages that publish no wheel.
FROM_SOURCE=(flash-attn mamba-ssm causal-conv1d deepspeed rouge-score sqlitedict word2number)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check 'uv>=0.9'

"$work/venv/bin/uv" pip compile pyproject.toml --all-extras --constraint constraints-cuda.txt --quiet \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --only-binary :all: "${FROM_SOURCE[@]/#/--no-binary=}" \
    --no-header --no-annotate | sort >"$work/resolved"
grep -vE '^(#|$)' constraints-cuda.txt | sort >"$work/pinned"

if ! diff "$work/pinned" "$work/resolved" >"$work/diff"; then
    echo "constraints-cuda.txt is not the whole resolution (< pinned, > resolved):"
    cat "$work/diff"
    exit 1
fi
echo "constraints-cuda.txt resolves: $(wc -l <"$work/pinned") packages, among them $(grep -E '^(torch|triton|deepspeed|flash-attn|mamba-ssm)==' "$work/pinned" | tr '\n' ' ')"
echo "built from source: ${FROM_SOURCE[*]}"
