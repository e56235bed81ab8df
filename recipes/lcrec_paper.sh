#!/usr/bin/env bash
# LC-Rec (arXiv 2311.09049) at the paper's size: from Amazon 2018 reviews to its Tables II and III,
# the published figures and ours. Running it again continues from what is done.
#
#   bash recipes/lcrec_paper.sh
#   PUBLISHED=Games DATA=downloads/Games PROCESSES=4 bash recipes/lcrec_paper.sh
#
# Variables, and what they are if not set:
#
#   PUBLISHED     Instruments; or Arts, Games: the paper's data set to compare with
#   DATA          data/$PUBLISHED: the data folder. It is there already (LC-Rec's authors publish
#                 theirs in this form), or is made from one of
#     RAW                  a folder of Amazon's own files, X.csv (ratings) or X.json.gz (reviews)
#                          and meta_X.json.gz; FORMAT=recbole for atomic files, or any other
#                          format of python -m lcrec.prepare --help
#     INTERACTIONS, ITEMS  two CSV, TSV, JSON lines or Parquet files; PREPARE_FLAGS may say which
#                          columns: --columns user=...,item=...
#   FORMAT        amazon2018: what RAW holds
#   RUN           runs/lcrec_paper/$PUBLISHED: where everything made lies
#   LLM           huggyllama/llama-7b: the language model; it also embeds the items
#   PROCESSES     8: how many GPUs; 1, 2, 4, 8 or 16, so that a batch is 128 samples with each
#   LAUNCH        what starts the fine-tune: accelerate launch, with FSDP2 from two GPUs on
#   OLD_INDEX     an index.json in which items may share a path: lists are then scored by item and
#                 by index (scripts/paper_table.py --help); <Name>.index.json of the data folder
#   PREPARE_FLAGS, INTENT_FLAGS, EMBED_FLAGS, QUANTIZE_FLAGS, FINETUNE_FLAGS, GENERATE_FLAGS
#                 more flags for a stage. Where the data has no <Name>.user.json, what users like
#                 and look for is lists of words, by lcrec.intents --method keywords; the paper
#                 asked GPT-3.5: INTENT_FLAGS="--method local --model X" asks a model
#   PYTHON        python3: what .venv is made with; an active environment that has what lcrec
#                 needs is used as it is
set -euo pipefail
if [ "$#" -gt 0 ]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    case "$1" in
    -h | --help) exit 0 ;;
    *) echo "error: $1: there are no arguments, set variables" >&2 && exit 2 ;;
    esac
fi

published=${PUBLISHED:-Instruments}
# Samples of fusionseqrec in the published code.
case "$published" in
Instruments) fusion=20000 ;;
Arts) fusion=30000 ;;
Games) fusion=100000 ;;
*) echo "error: PUBLISHED=$published: take Instruments, Arts or Games" >&2 && exit 2 ;;
esac
processes=${PROCESSES:-8}
case "$processes" in
1 | 2 | 4 | 8 | 16) ;;
*) echo "error: PROCESSES=$processes: take 1, 2, 4, 8 or 16" >&2 && exit 2 ;;
esac
if [ -n "${RAW:-}" ] && [ -n "${INTERACTIONS:-}${ITEMS:-}" ]; then
    echo "error: RAW, INTERACTIONS and ITEMS: the data is made from RAW or from the two" >&2 && exit 2
fi

top=$(dirname "$0")/..
data=$(realpath -m "${DATA:-$top/data/$published}")
run=$(realpath -m "${RUN:-$top/runs/lcrec_paper/$published}")
raw=${RAW:+$(realpath -m "$RAW")}
format=${FORMAT:-amazon2018}
interactions=${INTERACTIONS:+$(realpath -m "$INTERACTIONS")}
items=${ITEMS:+$(realpath -m "$ITEMS")}
old_index=${OLD_INDEX:+$(realpath -m "$OLD_INDEX")}
llm=${LLM:-huggyllama/llama-7b}
if [ -d "$llm" ]; then llm=$(realpath "$llm"); fi
prepare_flags=${PREPARE_FLAGS:-}
intent_flags=${INTENT_FLAGS:-}
embed_flags=${EMBED_FLAGS:-}
quantize_flags=${QUANTIZE_FLAGS:-}
finetune_flags=${FINETUNE_FLAGS:-}
generate_flags=${GENERATE_FLAGS:-}

cd "$top"
python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("trl"))' 2>/dev/null ||
    source scripts/environment.sh
if [ "$processes" = 1 ]; then
    many="python"
    launch="accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process $(nproc)"
else
    many="torchrun --standalone --nproc_per_node $processes"
    launch="accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes $processes"
fi
launch=${LAUNCH:-$launch}

echo "== 1. The data: users and items with five partners at least; Table II"
if [ -n "$raw" ]; then
    python -m lcrec.prepare --format "$format" --input "$raw" --output "$data" $prepare_flags
elif [ -n "$interactions$items" ]; then
    python -m lcrec.prepare --format table --interactions "$interactions" --items "$items" \
        --output "$data" $prepare_flags
fi
python scripts/paper_table.py --table data --published "$published" --data "$data"

echo "== 2. What users like and look for, unless the data brings it along"
user=$(find "$data" -maxdepth 1 -name '*.user.json')
if [ -z "$user" ] || [ -e "${user%.json}.lcrec.json" ]; then
    python -m lcrec.intents --data "$data" --method keywords $intent_flags
fi

echo "== 3. Item text to embeddings: the language model's states, mean over tokens"
$many -m lcrec.embed --data "$data" --output "$run/embeddings" --encoder "$llm" \
    --max-tokens 2048 $embed_flags

echo "== 4. Embeddings to the item index, trained as published"
python -m lcrec.quantize --data "$data" --embeddings "$run/embeddings" --output "$run/index" \
    --parity $quantize_flags

echo "== 5. Fine-tune on all tasks"
$launch recipes/finetune.py --config recipes/full_7b.yaml \
    --data "$data" --index "$run/index" --base "$llm" --output "$run/model" \
    --accumulate "$((16 / processes))" \
    --tasks seqrec item2index index2item "fusionseqrec=$fusion" itemsearch preferenceobtain \
    $finetune_flags

echo "== 6. Rank for every user, with every template: as published (level) and items only (trie)"
for constraint in level trie; do
    $many -m lcrec.generate --model "$run/model" --data "$data" --constraint $constraint \
        --output "$run/predictions/$constraint.jsonl" --templates all --precision bf16 \
        $generate_flags
done

echo "== 7. Table III"
if [ -z "$old_index" ]; then old_index=$(find "$data" -maxdepth 1 -name '*.index.json'); fi
python scripts/paper_table.py --table results --published "$published" --predictions \
    "$run"/predictions/{level,trie}.jsonl ${old_index:+--index "$old_index"} \
    --output "$run/table3.json"
