#!/usr/bin/env bash
# What a machine with one GPU is asked, in at most ten minutes:
#
#   bash benchmarks/gpu.sh OUTPUT_DIR [--budget=600] [--data_dir=FOLDER]
#
# rules, rounds and ResNet-20 on CIFAR-10, as JSON files in OUTPUT_DIR. Without
# --data_dir, a folder with cifar10 in TFDS format, images are random and only
# the speed counts. --allow_cpu runs where there is no GPU, --quick in toy sizes.
# PYTHON is the interpreter, in whose environment jax must see the GPU.
set -euo pipefail
if [[ $# -lt 1 || $1 == -* ]]; then
  echo "usage: bash benchmarks/gpu.sh OUTPUT_DIR [flags]" >&2
  exit 2
fi
mkdir -p "$1"
output=$(cd "$1" && pwd)
shift
budget=600
for flag in "$@"; do
  [[ $flag == --budget=* ]] && budget=${flag#--budget=}
done
cd "$(dirname "$0")/.."
# What is done by then has been written.
exec timeout "$budget" "${PYTHON:-python}" -m benchmarks.gpu \
  --output_dir="$output" "$@"
