#!/usr/bin/env bash
# What only a GPU can tell: benchmarks/gpu.sh COCO OUT [PART…], where a PART may have * and ?; without one, all.
# A part takes minutes, and is stopped after LIMIT seconds (540). Its log is in OUT, its status in OUT/summary.txt.
# A part that was stopped goes on when it is called again: reports keep their rows, and training resumes.
# The status is 1 if a part failed, 2 if nothing was run. PYTHON is the interpreter (python3), BATCHES those of the
# accelerator's parts, the most wanted first (128,32,1,512,8): most of their time is compiling, and the limit may come
# before the last one.
#
# Needs pip install -e ".[cuda,benchmark]" and, for the peer, PyTorch for the same CUDA: a second cuDNN would overwrite
# the first one's files. For CUDA 12 that is pip install torch --index-url https://download.pytorch.org/whl/cu126;
# with jax[cuda13] instead of ".[cuda]", pip install torch --index-url https://download.pytorch.org/whl/cu130.
set -uo pipefail
if (($# < 2)); then
  sed -n '2,7s/^# //p' "$0" >&2
  exit 2
fi
coco=$(cd "$1" && pwd) || exit 2
out=$(mkdir -p "$2" && cd "$2" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
shift 2
python=${PYTHON:-python3} limit=${LIMIT:-540} chosen=("${@:-*}") names=() failed=0 listing=1

part() {  # NAME COMMAND…: runs it if it is chosen, and goes on after a failure; while listing it only notes the name
  local name=$1 began=$SECONDS status pattern
  shift
  if ((listing)); then
    names+=("$name")
    return
  fi
  for pattern in "${chosen[@]}"; do
    # shellcheck disable=SC2053 # a pattern
    if [[ $name == $pattern ]]; then
      timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
      status=$?
      ((status == 0)) || failed=1
      ((status != 124)) || status="124, stopped after $limit s"
      echo "$name: status $status, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
      return
    fi
  done
}

accelerator() {  # SIZE DTYPE: a part for each work of benchmark.py accelerator; those of one size share a report
  local work=0 name
  for name in infer_coarse infer_1_step infer_2_steps train_coarse train; do
    part "${1%%_*}_$2_$name" "$python" benchmark.py accelerator --config="configs/coco_$1.py" --kernels $peer \
      --dtypes="$2" --batches="${BATCHES:-128,32,1,512,8}" --work=$((work++)) --out="$out/accelerator_$1.json"
  done
}

end_to_end() {
  local cores train
  cores=$(nproc)
  train=("$python" train.py --config=configs/coco_w32_256x192.py --workdir="$out/run" --config.data.root="$coco"
    --config.model.pretrained=none --config.model.dtype=bfloat16 --config.train.checkpoint_every=100
    --config.optim.warmup_steps=20 --config.data.workers=$((cores > 3 ? cores - 2 : 1)))
  part train "${train[@]}" --config.train.steps=200 # the log's examples/s are those of crops from the loader
  part resume "${train[@]}" --config.train.steps=300
  part eval "$python" eval.py --workdir="$out/run"
  part predict "$python" predict.py --workdir="$out/run" --input=docs/images/person.jpg --out="$out/predict"
  part export "$python" -m dpose_jax.export --workdir="$out/run" --platforms=cuda --out="$out/model.bin"
  for dtype in bfloat16 float32; do
    part "steps_$dtype" "$python" benchmark.py steps --workdir="$out/run" --dtype="$dtype" --out="$out/steps_$dtype" \
      --steps=0,1,2,4 --update=direct --norestarts
  done
}

parts() {  # what is worth most first
  accelerator w32_256x192 bfloat16
  end_to_end
  accelerator w48_384x288 bfloat16
  accelerator w32_256x192 float32
  accelerator w48_384x288 float32
  part growth "$python" benchmark.py growth --seconds=1 --out="$out/growth"
}

peer=
parts
for pattern in "${chosen[@]}"; do
  # shellcheck disable=SC2053
  for name in "${names[@]}"; do [[ $name == $pattern ]] && continue 2; done
  echo "error: PART $pattern: must be among ${names[*]}" >&2
  exit 2
done
if "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"; then
  peer=--peer=torch
else
  echo "$python has no PyTorch: there is no peer" | tee -a "$out/summary.txt"
fi
listing=0
parts
exit "$failed"
