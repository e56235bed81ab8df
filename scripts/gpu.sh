#!/usr/bin/env bash
# Everything worth measuring on one CUDA GPU, within nine minutes and the most valuable first.
#   DATA=FOLDER SMOLLM2=FOLDER bash scripts/gpu.sh OUT      (what must be there: scripts/README.md)
#   bash scripts/gpu.sh OUT --rehearse                      the same path on a CPU, at toy size
# Figures are printed, and written to OUT, as soon as they are known; a part that fails, or runs out
# of its time, is a finding like others, and the next one follows.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash scripts/gpu.sh OUT [--rehearse]}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
lcrec=("$python" -m lcrec)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
limit=540 slowness=1
full=(--mode full --precision bf16 --batch-size 128 --learning-rate 5e-4 --rows text --warmup 0.05
  --max-history 10 --max-text-words 20 --prompts prompts/short --validation-users 500 --patience 8)
seqrec=(--tasks seqrec --epochs 6)
all=(--tasks seqrec item2index index2item --epochs 5)
beauty=(--tasks seqrec=40000 --epochs 2)
shapes=(smollm2 0.6b 7b) steps=24 decoding=(--ways gpu --rounds 3)
tiger=(--paper-family) p5cid=(--paper-family)
tests=(tests/test_cuda.py tests/test_finetune.py)
rows=(--prompts prompts/short)

# plain_index DATA OUT: an index whose codes count the items, for want of a better one.
plain_index() {
  "$python" - "$1" "$2" <<'P'
import sys
from pathlib import Path

import numpy as np

from lcrec.core.artifacts import find_data
from lcrec.core.provenance import write_provenance
from lcrec.data.folder import load_items
from lcrec.index.item_index import ItemIndex

data, folder = map(Path, sys.argv[1:])
count = len(load_items(data))
sizes = (int(np.ceil(count ** (1 / 3))),) * 3
folder.mkdir(parents=True)
codes = np.stack(np.unravel_index(np.arange(count), sizes), axis=1).astype(np.int32)
ItemIndex(codes, sizes).save(folder)
write_provenance(folder, "counted", {}, {"item": find_data(data).item}, level_sizes=list(sizes))
P
}

if [ "${2:-}" = --rehearse ]; then
  export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
  limit=6000 slowness=10
  DATA=$work/data SMOLLM2=$work/base INDEX=$work/index
  for shop in Office Beauty; do
    "${lcrec[@]}" synthetic --output "$DATA/$shop" --users 40 --items 30
  done
  plain_index "$DATA/Office" "$INDEX/Office" # that of Beauty is made, as where none is brought
  "${lcrec[@]}" tinylm --data "$DATA/Office" --output "$SMOLLM2" --vocab-size 400 \
    --hidden-size 32 --layers 1 --epochs 0
  tiny=(--batch-size 16 --validation-users 10 --num-beams 10)
  seqrec=(--tasks seqrec=32 --epochs 1 "${tiny[@]}")
  all=(--tasks seqrec=16 item2index=16 index2item=16 --epochs 1 "${tiny[@]}") beauty=("${seqrec[@]}")
  shapes=(tiny) steps=4 decoding=(--ways gpu --shapes tiny --rounds 1)
  tiger=(--epochs 1 --dim 32 --layers 1 --heads 1 --hidden 32 --valid-users 10)
  p5cid=("${tiger[@]}" --leaf 10)
  rows=(--samples 1000)
  tests=(tests/test_cuda.py) # whose laws the other tests ask of a CPU
fi
index=${INDEX:-$(dirname "${DATA:?names the folder with Office/ and Beauty/}")/index}
: "${SMOLLM2:?names the folder of the base model}"

has() { "$python" -c "import $1" 2>>"$work/errors"; }

say() { echo "$*" | tee -a "$out/summary.txt"; }

# part NAME SECONDS FILE COMMAND...: what it prints goes to the screen and to OUT/FILE.
part() {
  local name=$1 seconds=$2 file=$out/$3 left=$((limit - SECONDS)) start=$SECONDS
  shift 3
  if [ "$left" -lt 15 ]; then
    say "== $name: left out, $left s are left"
    return
  fi
  timeout -k 5 "$((slowness * (seconds < left ? seconds : left)))" "$@" 2>>"$work/errors" | tee -a "$file"
  local status=${PIPESTATUS[0]}
  say "== $name: status $status, $((SECONDS - start)) s"
  if [ "$status" != 0 ]; then
    tail -n 15 "$work/errors" | tee -a "$file"
  fi
}

# index_of SHOP: sets `own` to the folder of its index, made of its titles where none is there.
index_of() {
  own=$index/$1
  [ ! -f "$own/index.json" ] || return 0
  own=$work/index/$1
  [ ! -f "$own/index.json" ] || return 0
  say "== $1: no index in $index/$1, so one is made"
  part "index of $1: embed" 60 index.txt "${lcrec[@]}" embed --data "$DATA/$1" --fields title \
    --output "$work/embeddings/$1"
  part "index of $1: quantize" 90 index.txt "${lcrec[@]}" quantize \
    --data "$DATA/$1" --embeddings "$work/embeddings/$1" --output "$own"
  [ ! -f "$own/index.json" ] || return 0
  say "== $1: its codes count the items, which tells speed and no quality"
  rm -rf "$own"
  plain_index "$DATA/$1" "$own" 2>>"$work/errors"
}

# train NAME SECONDS FILE SHOP SETTINGS...: fine-tune, rank the test items, measure.
train() {
  local name=$1 seconds=$2 file=$3 shop=$4 data=$DATA/$4 made=$work/$1 own
  shift 4
  index_of "$shop" || { say "== $name: left out, $shop has no index"; return; }
  part "$name: fine-tune" "$seconds" "$file" "${lcrec[@]}" finetune --data "$data" \
    --index "$own" --base "$SMOLLM2" --output "$made" "${full[@]}" "$@"
  [ -f "$made/lcrec.json" ] || return
  part "$name: rank" 60 "$file" "${lcrec[@]}" generate --model "$made" --data "$data" \
    --output "$made.jsonl"
  part "$name: evaluate" 30 "$file" "${lcrec[@]}" evaluate --predictions "$made.jsonl"
}

[ "${2:-}" = --rehearse ] || nvidia-smi --query-gpu=name,memory.total --format=csv,noheader | tee -a "$out/summary.txt"
say "$("$python" -c 'import torch, transformers; print(torch.__version__, transformers.__version__)')"
for module in transformers trl peft datasets accelerate; do
  has "$module" || say "== $module is not installed: the parts that need it fail"
done
if has pytest && has hypothesis; then
  part tests 100 tests.txt "$python" -m pytest -q -m cuda -p no:cacheprovider "${tests[@]}"
else
  say "== tests: left out, pytest or hypothesis is not installed"
fi
has bitsandbytes || say "== QLoRA: left out, bitsandbytes is not installed"
train office-seqrec 120 office.txt Office "${seqrec[@]}"
for shape in "${shapes[@]}"; do # each by itself: of every one the first way is measured at least
  part "shape $shape" 45 shapes.txt "$python" scripts/bench_finetune.py --steps "$steps" \
    --shapes "$shape"
done
train office-all 140 office.txt Office "${all[@]}"
part rows 20 rows.txt "$python" scripts/bench_rows.py "${rows[@]}"
part decoding 70 decoding.txt "$python" scripts/bench_decoding.py "${decoding[@]}"
train beauty 120 beauty.txt Beauty "${beauty[@]}"
own=
for method in tiger p5cid; do
  index_of Office || break
  settings=$method[@]
  part "$method" 60 baselines.txt "${lcrec[@]}" baselines "$method" --data "$DATA/Office" \
    --index "$own" --output "$work/$method.jsonl" --max-minutes 0.6 "${!settings}"
done
say "== $SECONDS s in all"
