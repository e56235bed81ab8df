#!/usr/bin/env bash
# A small shop of 300 users and 600 items, from nothing to the table of recipes/README.md ("Small shops").
# Stages that are done are skipped, so running this again continues.
#   bash scripts/small_shop.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

data=data/small
run=runs/small

lcrec synthetic --output $data --users 300 --items 600
lcrec tinylm --data $data --output $run/base --prompts prompts/short \
    --vocab-size 2048 --hidden-size 128 --layers 3 --epochs 6
lcrec embed --data $data --output $run/embeddings --lsa-dim 64
lcrec quantize --data $data --embeddings $run/embeddings --output $run/index --batch-size 256
lcrec finetune --config recipes/small.yaml --data $data --index $run/index \
    --base $run/base --output $run/model
lcrec generate --model $run/model --data $data --output $run/lc-rec.jsonl
lcrec baselines compare --data $data --methods popularity cooccurrence --seeds 1 \
    --predictions LC-Rec=$run/lc-rec.jsonl --reference cooccurrence --output $run/compared
