"""`python -m export trt --int8` is `vega3d export trt --int8` (the shell keeps the bare word
`export` for itself)."""
import sys

from vega3d import main

main(["export", *sys.argv[1:]])
