# Makes .venv at the repository's root and installs lcrec into it, once per change of what is
# pinned. Source it with the extras wanted: source scripts/environment.sh "dev"
# PYTHON names the interpreter to use (3.11 or newer; default python3).

if [ ! -x .venv/bin/python ]; then
    echo "== Making .venv"
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python" >&2
        exit 2
    }
    "${PYTHON:-python3}" -m venv .venv
fi

# The stamp names every extra installed so far, so that one script does not undo the other's.
stamp=.venv/lcrec-installed
pins=$(cat pyproject.toml scripts/constraints.txt | cksum)
case "$(cat "$stamp" 2>/dev/null)" in
"$pins"*" ${1:-base} "*) ;;
*)
    echo "== Installing lcrec${1:+[$1]} with the pinned versions"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt --editable ".${1:+[$1]}"
    if [ "$(head -c ${#pins} "$stamp" 2>/dev/null)" != "$pins" ]; then
        printf '%s ' "$pins" >"$stamp"
    fi
    printf '%s ' "${1:-base}" >>"$stamp"
    ;;
esac
export PATH="$PWD/.venv/bin:$PATH"
# Fork-safe and quiet: a tokenizer's threads are not there after a fork.
export TOKENIZERS_PARALLELISM=false
# One process on this machine, whatever accelerate is configured for. (macOS has no nproc.)
cores=${OMP_NUM_THREADS:-$(python -c 'from lcrec.core.processes import usable_cores as n; print(n())')}
launch="accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process $cores"
