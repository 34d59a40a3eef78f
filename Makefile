# make setup   a bare Debian machine -> environment in .venv (apt packages for headless rendering included)
# make run     the main job: distil, export, benchmark, report
# make test    everything CI checks
PYTHON ?= python3
# torch without CUDA, which PyPI does not hold; for a GPU: make setup TORCH=torch==2.13.0
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup run test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && sh setup-apt.sh || true
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first: PyPI's brings several GB of CUDA packages. From pip's own sources if they hold it
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH) 2>/dev/null \
		|| $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --extra-index-url $(TORCH_INDEX) $(TORCH) \
		|| $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0  # no +cpu for macOS
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,openvino,dev]'
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt tensorrt-rtx-cu13==1.7.1.116 2>/dev/null \
		|| echo "setup: TensorRT-RTX could not be installed: engines will not be built here (ONNX and INT8 will)"
	@sh examples/cpp/headers.sh "$${VEGA3D_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/vega3d-edge}/onnxruntime-headers" 2>/dev/null \
		|| echo "setup: no onnxruntime headers: the C++ example will not be built here"
	@$(BIN)/vega3d teacher fetch || echo "setup: not everything was fetched; vega3d teacher fetch tries again" \
		"(only vega3d teacher train needs the language model)"
	@$(BIN)/python -c 'from scenes.rooms.renderer import Renderer; print("renderer:", Renderer(64).device)' \
		|| echo "setup: no EGL device: rooms cannot be rendered here (libegl1 libgl1-mesa-dri); your own videos still work"
	@touch $@

run: setup
	$(BIN)/vega3d distill run
	$(BIN)/vega3d export onnx
	@if $(BIN)/python -c 'import importlib.util as u; exit(not (u.find_spec("tensorrt") or u.find_spec("tensorrt_rtx")))'; \
		then $(BIN)/vega3d export trt --int8; \
		else echo "run: no TensorRT here, so no engines: pip install 'vega3d-edge[rtx]'"; fi
	$(BIN)/vega3d bench

test: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0

lint: setup
	$(BIN)/ruff check . --fix
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info
