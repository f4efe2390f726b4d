#!/usr/bin/env bash
# What only a GPU can tell, in one call: benchmarks/gpu.sh COCO OUT. About an hour; every part has a file in OUT.
# Needs pip install -e ".[cuda,benchmark]" and, for the peer, PyTorch.
set -uo pipefail
coco=$1 out=$2
mkdir -p "$out"
part() {  # NAME COMMAND…: goes on after a failure, which the summary names
  local name=$1 began=$SECONDS
  shift
  "$@" >"$out/$name.log" 2>&1
  echo "$name: status $?, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
}
peer=$(python -c "import torch" 2>/dev/null && echo --peer=torch)
for size in w32_256x192 w48_384x288; do
  part "accelerator_$size" python benchmark.py accelerator --config="configs/coco_$size.py" --kernels $peer \
    --out="$out/accelerator_$size.json"
done
train=(python train.py --config=configs/coco_w32_256x192.py --workdir="$out/run" --config.data.root="$coco"
  --config.model.pretrained=none --config.model.dtype=bfloat16 --config.train.checkpoint_every=100
  --config.optim.warmup_steps=20)
part train "${train[@]}" --config.train.steps=200 # the log's examples/s are those of crops from the loader
part resume "${train[@]}" --config.train.steps=300
part eval python eval.py --workdir="$out/run"
part predict python predict.py --workdir="$out/run" --input=docs/images/person.jpg --out="$out/predict"
part export python -m dpose_jax.export --workdir="$out/run" --platforms=cuda --out="$out/model.bin"
part steps python benchmark.py steps --workdir="$out/run" --dtype=float32,bfloat16 --out="$out/steps"
part growth python benchmark.py growth --out="$out/growth"
