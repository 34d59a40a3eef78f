"""`python -m export` is `vega3d export`, as in `python -m export trt --int8`."""
import sys

from vega3d import main

main(["export", *sys.argv[1:]])
