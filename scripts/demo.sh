#!/usr/bin/env bash
# The main job on the embedded model: rows → LoRA → fused float16 → 5 bits → server → PydanticAI → score.
#   scripts/demo.sh [options of `punie-mlx pipeline`]
# Results go to runs/demo; a second run goes on where the first one stopped. Scored on the first 200 cases of the agent
# suite, which are a fair sample of its 560: `--limit 560` scores all.
source "$(dirname "$0")/setup.sh"
exec punie-mlx pipeline --model data/tiny-base --data data/phase8_json_format --out runs/demo --limit 200 "$@"
