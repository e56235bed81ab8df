#!/usr/bin/env bash
# Every method of the kit on Amazon Office Products, three seeds each, with LC-Rec and its fusions:
# the table in recipes/README.md, with history items masked. Goes on from recipes/office.sh.
# About two and a half hours on two cores without a GPU; running it again continues from what is done.
#   bash recipes/office_table.sh DATA_FOLDER [RUN_FOLDER]
set -euo pipefail
bash "$(dirname "$0")/office.sh" "$@"
data=$(realpath "$1")
run=$(realpath "${2:-$(dirname "$0")/../runs/office}")
cd "$(dirname "$0")/.."
source scripts/environment.sh minilm
methods=(popularity cooccurrence itemknn ease text-cosine mf lightgcn fusion linear-mapping
    collabcontext alpharec tssr sasrec fdsa fmlp bert4rec hgn gru4rec caser s3rec
    # Far from their end: a CPU takes half a minute for an epoch.
    "tiger --epochs 12 --every 4 --batch-size 64 --learning-rate 1e-3 --precision bf16"
    "p5cid --epochs 12 --every 4 --batch-size 64 --dim 128 --layers 4 --heads 6 --hidden 1024 --precision bf16")
compare() {
    python -m lcrec.baselines compare --data "$data" --embeddings "$run/embeddings" \
        --index "$run/index" --exclude-history --seeds 3 --jobs 2 --output "$run/compare" \
        --methods "${methods[@]}" "$@"
}

compare
lists=()
for number in 0 1 2; do
    seed=$((42 + number))
    lists_folder=$run/joint/$seed
    model=$run/model-$seed
    [[ $seed == 42 ]] && model=$run/model  # made by office.sh
    $launch recipes/finetune.py --config recipes/office.yaml --seed $seed \
        --data "$data" --index "$run/index" --base "$run/base" --output "$model"
    for split in valid test; do
        python -m lcrec.generate --model "$model" --data "$data" --split $split --exclude-history \
            --output "$lists_folder/$split/lc-rec.jsonl"
        python -m lcrec.baselines cooccurrence --data "$data" --exclude-history --split $split \
            --output "$lists_folder/$split/cooccurrence.jsonl"
        python -m lcrec.baselines s3rec --data "$data" --exclude-history --split $split \
            --seed $number --save "$run/compare/s3rec-$number/method" \
            --output "$lists_folder/$split/s3rec.jsonl"
    done
    lists+=("lc-rec=$lists_folder/test/lc-rec.jsonl")
    for names in lc-rec+cooccurrence lc-rec+s3rec lc-rec+cooccurrence+s3rec; do
        files=(${names//+/.jsonl }.jsonl)
        python -m lcrec.baselines fuse "${files[@]/#/$lists_folder/test/}" --how score \
            --valid "${files[@]/#/$lists_folder/valid/}" --output "$lists_folder/$names.jsonl"
        lists+=("$names=$lists_folder/$names.jsonl")
    done
done
compare --predictions "${lists[@]}"
