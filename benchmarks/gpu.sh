#!/usr/bin/env bash
# Everything that was never measured on a GPU, in at most twelve minutes on one card: masks, training steps, the whole
# pipeline at full size, and whether a run comes out the same twice. All weights are random, so nothing is downloaded.
#
#   bash benchmarks/gpu.sh [FOLDER]        writes its json files to FOLDER, by default results/bench
#   DEVICE=cpu bash benchmarks/gpu.sh out  the same steps at toy size: a rehearsal for a machine without a GPU
#
# A step that fails or takes too long is named at the end, and the others go on.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
device=${DEVICE:-cuda} out=${1:-results/bench} failed=() began=$SECONDS
mkdir -p "$out"
out=$(cd "$out" && pwd)
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=268435456
python=${PYTHON:-.venv/bin/python}

try() { # SECONDS COMMAND...
	local limit=$1 start=$SECONDS
	shift
	echo "== $* (at most $limit s)"
	timeout "$limit" "$python" "benchmarks/$1" "${@:2}" --device "$device" || failed+=("$*")
	echo "== $((SECONDS - start)) s"
}

if [ "$device" = cpu ]; then
	try 300 bench_masks.py --images 1 --scenes 2 --repeats 1 --write "$out"
	try 300 bench_masks.py --images 1 --scenes 2 --repeats 1 --precision bf16 --write "$out"
	try 300 bench_training.py --repeats 1 --batch 2 --write "$out"
	try 300 bench_training.py --segmenter dpt --encoder vit_small_patch14_dinov2.lvd142m --crop 56 --batch 2 --repeats 1 --write "$out"
	try 900 repeat.py --write "$out"
	try 900 repeat.py --exact --write "$out"
else
	for sam in sam_vit_b sam_vit_h; do
		try 70 bench_masks.py --checkpoint $sam --random --images 2 --scenes 2 --repeats 2 --write "$out"
		try 55 bench_masks.py --checkpoint $sam --random --images 2 --scenes 2 --repeats 2 --precision bf16 --write "$out"
	done
	try 105 bench_training.py --encoder resnet101s --classes 21 --crop 321 --batch 8 --repeats 8 --compiled --write "$out"
	try 105 bench_training.py --segmenter dpt --encoder vit_small_patch14_dinov2.lvd142m --classes 21 --crop 518 --batch 4 \
		--repeats 8 --compiled --write "$out"
	try 110 full_size.py --images 16 --density 0.5 --batch-size 8 --steps 20
	try 70 repeat.py --write "$out"
	try 70 repeat.py --exact --write "$out"
fi
echo "$((SECONDS - began)) s in all; ${#failed[@]} failed${failed[*]:+:}"
printf '%s\n' "${failed[@]}"
exit $((${#failed[@]} > 0))
