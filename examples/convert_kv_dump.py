"""Turn safetensors dumps of another system's caches into a directory that `splitinfer evaluate --captures` attacks.

    python examples/convert_kv_dump.py OUT DUMP.safetensors IDS.json [DUMP.safetensors IDS.json ...]
    python examples/convert_kv_dump.py --mlx OUT cache.safetensors ids.json      a prompt cache of mlx-lm
    python examples/convert_kv_dump.py --keys "model.layers.{layer}.k" --values "model.layers.{layer}.v" OUT ...

IDS.json is the list of the prompt's token ids, by which recovery is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from splitinfer.errors import SplitInferError
from splitinfer.evaluation.foreign import MLX_NAMES, Names, convert


def main() -> int:
    """Convert, and say where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pairs of a dump and its token ids")
    parser.add_argument("--mlx", action="store_true", help="the names of mlx-lm's saved prompt caches")
    parser.add_argument("--keys", default="layers.{layer}.keys", help="the name of a layer's keys")
    parser.add_argument("--values", default="layers.{layer}.values", help="the name of a layer's values")
    parser.add_argument("--rows-first", action="store_true", help="tensors are [rows, heads, dim]")
    args = parser.parse_args()
    if len(args.files) % 2:
        parser.error("give each dump with the file of its token ids")
    names = MLX_NAMES if args.mlx else Names(args.keys, args.values, rows_first=args.rows_first)
    pairs = zip(args.files[::2], args.files[1::2], strict=True)
    try:
        convert({dump: json.loads(ids.read_text(encoding="utf-8")) for dump, ids in pairs}, args.out, names=names)
    except SplitInferError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return error.exit_code
    print(f"splitinfer evaluate --captures {args.out} --model MODEL")
    return 0


if __name__ == "__main__":
    sys.exit(main())
