#!/usr/bin/env bash
# Train, fuse and quantize Qwen3-Coder 30B-A3B on a Mac: LoRA on the 4-bit base, float16, 5 bits.
# Thin over the verbs of punie-mlx; what it runs is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
Usage: scripts/train_phase21_xml.sh [--data DIR] [--out DIR] [--dry-run] [--help]

Trains a LoRA adapter on mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit (recipe: data/recipes/qwen3-coder-30b.yaml),
fuses it to float16 and quantizes that to 5 bits. Needs a Mac with Apple Silicon, 32 GB of memory and 100 GB of free
disk: 17 GB for the base, 57 GB for the float16 model, 20 GB for the 5-bit one. The float16 model may be removed then.
Finished steps are skipped, and a training that was stopped goes on, so the script can be started again.

  --data DIR   rows as `punie-mlx convert` writes them     (default: data/phase8_xml_format)
  --out DIR    where adapter/, fused/ and 5bit/ are put    (default: runs/phase21)
  --dry-run    print the commands, run none
TEXT
}

BASE=mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit
RECIPE=data/recipes/qwen3-coder-30b.yaml
DATA=data/phase8_xml_format
OUT=runs/phase21
NEEDED_GB=100
DRY=

while [ $# -gt 0 ]; do
  case "$1" in
    --data | --out)
      [ $# -ge 2 ] || { echo "$1 needs a directory" >&2; exit 2; }
      if [ "$1" = --data ]; then DATA=$2; else OUT=$2; fi
      shift 2
      ;;
    --dry-run) DRY=1; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done

PUNIE=punie-mlx
[ -x .venv/bin/punie-mlx ] && PUNIE=.venv/bin/punie-mlx

run() {
  echo "+ $*"
  [ -n "$DRY" ] || "$@"
}

check_machine() {
  if [ "$(uname -s)" != Darwin ] || [ "$(uname -m)" != arm64 ]; then
    echo "This recipe needs a Mac with Apple Silicon; this is $(uname -s) on $(uname -m)." >&2
    echo "The same road on the embedded model runs anywhere: punie-mlx pipeline --model data/tiny-base" >&2
    exit 2
  fi
  mkdir -p "$OUT"
  # What is there already needs no room any more.
  local free_gb have_gb
  free_gb=$(($(df -Pk "$OUT" | awk 'NR == 2 { print $4 }') / 1000000))
  have_gb=$(($(du -sk "$OUT" | awk '{ print $1 }') / 1000000))
  if [ $((free_gb + have_gb)) -lt "$NEEDED_GB" ]; then
    echo "$OUT has $free_gb GB free, and $((NEEDED_GB - have_gb)) GB are needed (57 GB of them for the float16 model):" >&2
    echo "free some space, or name a directory on another disk with --out." >&2
    exit 2
  fi
}

[ -n "$DRY" ] || check_machine
# A training that was stopped goes on from its last checkpoint.
RESUME=
compgen -G "$OUT/adapter.training/checkpoints/[0-9]*" >/dev/null && RESUME=--resume
[ -d "$OUT/adapter" ] || run "$PUNIE" train --recipe "$RECIPE" --data "$DATA" --out "$OUT/adapter" ${RESUME:+"$RESUME"}
[ -d "$OUT/fused" ] || [ -d "$OUT/5bit" ] || run "$PUNIE" fuse --model "$BASE" --adapter "$OUT/adapter" --out "$OUT/fused"
[ -d "$OUT/5bit" ] || run "$PUNIE" quantize --model "$OUT/fused" --out "$OUT/5bit" --bits 5 --group-size 64
echo "Done: $PUNIE serve --model $OUT/5bit"
