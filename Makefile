# What CI runs, and nothing CI does not. Every target works from a clean clone after `make setup`.
PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo
LINK := build/link/scenemill

unexport PYTHONDONTWRITEBYTECODE  # the tests begin hundreds of processes, which read what the first has compiled

.PHONY: setup demo check test faults overfit docs bench gpu-check triton airflow audit clean

setup: .venv/ready

.venv/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch>=2.6,<=2.13.0"
	$(BIN)/pip install --quiet --editable ".[ingest,dask,gcp,train,tables,view,schedule,jobs,docs,dev]"
	touch .venv/ready

define made_a_store  # of the source $(1): ingested, verified, described, and its first sample drawn
	$(BIN)/scenemill ingest $(1) --input $(DEMO)/raw/$(1) --output $(DEMO)/$(1) --workers 2 --samples-per-part 4
	$(BIN)/scenemill verify $(DEMO)/$(1)
	$(BIN)/scenemill show $(DEMO)/$(1)
	@$(BIN)/scenemill show $(DEMO)/$(1) $$($(BIN)/python -c "import scenemill; print(scenemill.open_store('$(DEMO)/$(1)').keys[0])") \
	  --png $(DEMO)/$(1).png
endef

demo: setup
	rm -rf $(DEMO)
	$(BIN)/scenemill synth front3d $(DEMO)/raw/front3d --scenes 3 --views 4 --seed 7
	$(BIN)/scenemill synth matterport $(DEMO)/raw/matterport --scenes 3 --views 2 --seed 7
	$(BIN)/scenemill plan front3d --input $(DEMO)/raw/front3d --output $(DEMO)/front3d --workers 2 --samples-per-part 4
	$(call made_a_store,front3d)
	$(call made_a_store,matterport)
	$(BIN)/scenemill bench-loader $(DEMO)/front3d --workers 0,2 --png $(DEMO)/speed.png
	$(BIN)/scenemill synth views $(DEMO)/raw/clock --object clock --views 24 --size 96 --seed 7
	$(BIN)/scenemill ingest views --input $(DEMO)/raw/clock --output $(DEMO)/clock
	$(BIN)/scenemill fit views $(DEMO)/clock epochs=20 texture_size=128 --out $(DEMO)/fit --truth $(DEMO)/raw/clock/truth/clock.obj
	$(BIN)/scenemill demo $(DEMO)/line
	@echo "Done: two published, verified stores in $(DEMO); contact sheets $(DEMO)/front3d.png and $(DEMO)/matterport.png;"
	@echo "how quickly they become batches: $(DEMO)/speed.png; a mesh fitted to views: $(DEMO)/fit; both stages trained on made-up rooms,"
	@echo "and their numbers: $(DEMO)/line. See all of it: $(BIN)/scenemill view $(DEMO)"

$(LINK):
	mkdir -p build/link
	ln -sfn ../.. $(LINK)

check: setup $(LINK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p scenemill.schemas -p scenemill.validators -p scenemill.transforms -p scenemill.trainers -p scenemill.pipelines
	$(BIN)/mypy tests benchmarks examples docs
	$(BIN)/python -m pytest -q --doctest-modules schemas validators transforms pipelines trainers

test: check  # JOBS=8 for more processes, of which some wait at any time; each has one thread, as small tensors gain nothing from more
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder --max-worker-restart 2 tests

faults: setup  # the long forms: hours
	SCENEMILL_FULL=1 $(BIN)/python -m pytest --timeout 3600 tests --ignore-glob '*test_overfit.py' --ignore-glob '*test_demo.py'

overfit: setup  # the tiny experiments as shipped, to a PQ near 1, and the whole line: half an hour on two cores
	SCENEMILL_FULL=1 $(BIN)/python -m pytest --timeout 3600 tests/e2e/test_overfit.py tests/e2e/test_demo.py

docs: setup  # the site, at build/docs/index.html; a warning is an error
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs build/docs

bench: setup
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/sparse_convolution.py
	$(BIN)/python benchmarks/timelapse.py
	$(BIN)/python benchmarks/render.py

gpu-check:  # needs a GPU, torch and numpy; nothing else of this project's environment
	PYTHONPATH=. $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py

triton: setup  # a real Triton server, from a wheel, in an environment of its own
	$(PYTHON) -m venv build/triton
	build/triton/bin/pip install --quiet nvidia-pytriton==0.7.0
	SCENEMILL_TRITON=build/triton $(BIN)/python -m pytest tests/e2e/test_triton.py

audit: setup  # known weaknesses of all that is installed, as the package index tells them; fails where it does not answer
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit==2.10.1
	build/audit/bin/pip-audit --strict --skip-editable --path $(wildcard .venv/lib/python*/site-packages)

airflow: setup  # real DAG runs by Airflow, in an environment of its own
	$(PYTHON) -m venv build/airflow
	build/airflow/bin/pip install --quiet apache-airflow==3.3.2
	build/airflow/bin/pip install --quiet --no-deps --editable .
	SCENEMILL_AIRFLOW=build/airflow $(BIN)/python -m pytest tests/e2e/test_airflow.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
