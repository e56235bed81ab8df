#!/usr/bin/env bash
# A small shop of 300 users, from nothing to the table of recipes/README.md ("Small shops"). Stages that are done are
# skipped, so running this again continues.
#   bash scripts/small_shop.sh         600 items of `lcrec synthetic`; another number makes as many
#   bash scripts/small_shop.sh messy   300 items in CSV files, as a shop has them
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

shop=${1:-600}
data=data/small-$shop
run=runs/small-$shop

if [ "$shop" = messy ]; then
    python scripts/messy_shop.py --output downloads/messy
    lcrec prepare --format table --interactions downloads/messy/orders.csv --items downloads/messy/products.csv \
        --columns user=customer,item=sku,time=ordered_at,title=name --category-separator '>' --keep price \
        --output "$data"
else
    lcrec synthetic --output "$data" --users 300 --items "$shop"
fi
lcrec tinylm --data "$data" --output "$run/base" --prompts prompts/short \
    --vocab-size 2048 --hidden-size 64 --layers 2 --epochs 6
lcrec embed --data "$data" --output "$run/embeddings" --lsa-dim 64
lcrec quantize --data "$data" --embeddings "$run/embeddings" --output "$run/index" --batch-size 256
lcrec finetune --config recipes/small.yaml --data "$data" --index "$run/index" \
    --base "$run/base" --output "$run/model"
lcrec generate --model "$run/model" --data "$data" --output "$run/lc-rec.jsonl"
lcrec baselines compare --data "$data" --methods popularity cooccurrence --seeds 1 \
    --predictions LC-Rec="$run/lc-rec.jsonl" --reference cooccurrence --output "$run/compared"
