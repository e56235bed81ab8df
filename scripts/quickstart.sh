#!/usr/bin/env bash
# From nothing to recommendations on a small synthetic shop, in under ten minutes on two cores.
# Each stage does nothing when its result is there already, so running this again continues.
#   bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

data=data/shop
run=runs/quickstart
# On a machine with GPUs: launch="accelerate launch", which asks its own configuration.

echo "== 1. A small shop: items, users, reviews"
python -m lcrec.synthetic --output $data

echo "== 2. A small base model from the shop's own text (elsewhere: any model on the hub)"
python -m lcrec.tinylm --data $data --output $run/base \
    --vocab-size 2048 --hidden-size 128 --layers 3 --epochs 6

echo "== 3. Item text to embeddings"
python -m lcrec.embed --data $data --output $run/embeddings --lsa-dim 64

echo "== 4. Embeddings to the item index"
python -m lcrec.quantize --data $data --embeddings $run/embeddings --output $run/index \
    --batch-size 256

echo "== 5. Fine-tune"
$launch recipes/finetune.py --config recipes/quickstart.yaml \
    --data $data --index $run/index --base $run/base --output $run/model

echo "== 6. Recommend for every user"
python -m lcrec.generate --model $run/model --data $data --show 5 \
    --output $run/predictions/lc-rec.jsonl
for baseline in popularity cooccurrence; do
    python -m lcrec.baselines $baseline --data $data --output $run/predictions/$baseline.jsonl
done

echo "== 7. Compare"
python -m lcrec.evaluate --output $run/comparison.json --predictions \
    $run/predictions/popularity.jsonl $run/predictions/cooccurrence.jsonl \
    $run/predictions/lc-rec.jsonl

cat <<END

== What to look at next
  $run/index/report.html       how good the item index is, as a page
  $run/model                   the checkpoint; lcrec.json in it says what it was made from
  $run/predictions/            ranked items for every user, by each method
  $run/comparison.json         the table above, with its intervals

Try, in this folder:
  source .venv/bin/activate
  lcrec generate --model $run/model --data $data --user 0
  pip install --constraint scripts/constraints.txt --editable '.[serve]'
  lcrec serve --model $run/model --data $data
and, while it serves, from another shell:
  curl http://127.0.0.1:8000/recommend -H 'Content-Type: application/json' -d '{"history": [35, 136], "k": 5}'
END
