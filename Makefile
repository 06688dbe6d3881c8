# torchpar: build, check, test, install. `make` alone says what there is.
#
# Every target but `install` gets what it needs by itself: Debian packages by apt (with sudo when not root), and the
# checkers, at the versions pinned in setup.cfg, in a virtual environment in the cache directory. PATH may hold
# another python3: Debian's is always named by its full path.

SHELL   := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON  := /usr/bin/python3
VERSION := $(shell sed -n '1s/^[^(]*(\([^)]*\)).*/\1/p' debian/changelog)
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/torchpar

# SUITE=bookworm or SUITE=trixie: the Debian that `demo` boots, and the only one that `test-machines` tests.
SUITE   ?=

help:
	@echo 'torchpar $(VERSION)'
	@echo
	@echo 'make deb            dist/torchpar.deb, built on this machine'
	@echo 'make demo           build it, boot a throw-away Debian, install it there, train and serve the demo'
	@echo 'make check          lint, types, manual pages, unit and case tests: no root, about a minute'
	@echo 'make test           all tests: check, and the machine tests on Debian 12 and 13'
	@echo 'make test-runtime   data loading and throughput of training jobs, with a real torch'
	@echo 'make test-serve     the tests of the inference server, with a torch of their own'
	@echo 'make test-fleet     the page of a fleet, in a browser'
	@echo 'make test-python39  the tests of what runs in a job, under the oldest Python that it may have'
	@echo 'make test-machines  only the tests that boot a Debian (SUITE=bookworm or SUITE=trixie: only that one)'
	@echo 'make bench          the benchmarks of planning and starting'
	@echo 'make bench-plan-quality  how good the plans of many machines and confs are'
	@echo 'make bench-daemon   what torchpard costs a host, and how soon it is back (ARGUMENTS=... for its arguments)'
	@echo 'make bench-fleet    planning 10 to 10,000 hosts from their facts (ARGUMENTS=... for its arguments)'
	@echo 'make bench-train    training jobs, plain, by other launchers and by torchpar (BENCH=... for its arguments)'
	@echo 'make bench-arbitration  jobs that share CPUs, pinned by hand and by torchpar, and lent CPUs (BENCH=...)'
	@echo 'make bench-progress what the runtime costs a training step (TORCH_PYTHON=: an interpreter with torch)'
	@echo 'make bench-serve    inference servers side by side (ARGUMENTS=... for its arguments)'
	@echo 'make repo           a signed apt repository with it, for KEY=...: the suite canary'
	@echo 'make promote        what is in canary is in stable, too'
	@echo 'make install        put the files below DESTDIR'
	@echo 'make clean          remove what was built'
.PHONY: help


# ---- what the targets need ----

APT_GET := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0

# $(call packages,NAME ...): install those that are missing. Quick when none is.
packages = @missing=$$(for name in $(1); do \
		[ "$$(dpkg-query -W -f='$${db:Status-Status}' $$name 2>/dev/null || true)" = installed ] || echo $$name; done); \
	if [ -n "$$missing" ]; then \
		echo "installing" $$missing; \
		$(APT_GET) update; \
		$(APT_GET) install --no-install-recommends $$missing; \
	fi

# The name holds what is in it: changed pins, or another release with another Python, make another environment.
# $(call venv_of,EXTRA,NAME): the environment of an extra of setup.cfg.
venv_of = $(CACHE)/$(2)-$(shell { sed -n '/^$(1) =/,/^$$/p' setup.cfg; grep VERSION_CODENAME /etc/os-release; } | sha256sum | cut -c1-12)

VENV := $(call venv_of,check,venv)
# The server's tests need torch and the protocol's clients; the runtime's make use of that torch.
SERVE_VENV := $(call venv_of,serve,venv-serve)
ANSIBLE_VENV := $(call venv_of,ansible,venv-ansible)

$(VENV)/complete: extra = check
$(SERVE_VENV)/complete: extra = serve
$(ANSIBLE_VENV)/complete: extra = ansible

venv: $(VENV)/complete
	@:
.PHONY: venv

$(VENV)/complete $(SERVE_VENV)/complete $(ANSIBLE_VENV)/complete:
	$(call packages,python3-venv)
	@echo 'making $(@D)'
	@rm -rf '$(@D)'
	@$(PYTHON) -m venv '$(@D)'
	@sed -n '/^$(extra) =/,/^$$/{s/^ \+//p}' setup.cfg >'$(@D)/pins'
	@'$(@D)/bin/pip' install --quiet --disable-pip-version-check --progress-bar on -r '$(@D)/pins'
	@touch '$@'


# ---- checks and tests ----

UNITS  := $(foreach type,service socket slice target timer path,$(wildcard systemd/*.$(type)))
SHELL_FILES := $(shell grep -rlIE '^\#!/bin/(ba)?sh' .ci debian src systemd tests --exclude='*.py' 2>/dev/null | sort)
# Two at a time wherever there are two CPUs: machine tests wait most of their time.
PYTEST := '$(VENV)/bin/python' -B -m pytest -p no:cacheprovider --numprocesses=auto
MAN_PAGES = $(addprefix build/man/,$(notdir $(wildcard debian/man/*.[1-8])) torchpar.conf.5)

check: lint types unit
.PHONY: check

lint: $(VENV)/complete $(ANSIBLE_VENV)/complete man
	$(call packages,shellcheck man-db)
	'$(VENV)/bin/ruff' check --quiet --output-format concise --cache-dir='$(CACHE)/ruff' .
	shellcheck $(SHELL_FILES)
	'$(VENV)/bin/codespell' $$(git ls-files 2>/dev/null || find debian etc src systemd tests -type f)
	cd src/ansible && env ANSIBLE_HOME='$(CACHE)/ansible' PATH='$(ANSIBLE_VENV)/bin:'"$$PATH" \
		ansible-lint --offline -q --nocolor --profile production
	for page in $(MAN_PAGES); do \
		out=$$(MANWIDTH=80 LC_ALL=C.UTF-8 man --warnings=all -l "$$page" 2>&1 >/dev/null) || true; \
		[ -z "$$out" ] || { echo "$$page: $$out"; exit 1; }; \
	done
	@# It exits 0 on bad values: any line is a failure, but that the programs are not installed here.
	@if command -v systemd-analyze >/dev/null; then \
		echo 'systemd-analyze verify' $(notdir $(UNITS)); \
		out=$$(SYSTEMD_UNIT_PATH="$$PWD/systemd:" systemd-analyze verify --man=no $(notdir $(subst @.,@x.,$(UNITS))) 2>&1 | \
			grep -v ': Command /usr/.* is not executable: No such file or directory$$' || true); \
		[ -z "$$out" ] || { echo "$$out"; exit 1; }; \
	fi
.PHONY: lint

types: $(VENV)/complete
	'$(VENV)/bin/mypy' --cache-dir='$(CACHE)/mypy'
.PHONY: types

unit: $(VENV)/complete
	$(PYTEST) -q -m 'not machine'
.PHONY: unit

# Three at a time on two CPUs, as each waits for servers half of its time.
# TESTS=tests/serve/test_engine.py, and what else pytest takes: only that.
test-serve: $(SERVE_VENV)/complete
	$(call packages,chromium g++ openssl prometheus)
	'$(SERVE_VENV)/bin/python' -B -m pytest -p no:cacheprovider -q --numprocesses=3 $(or $(TESTS),tests/serve tests/unit/daemon/test_metrics.py)
.PHONY: test-serve

# The unit tests run these with a fake torch; a real one compiles, records gradients and spawns workers.
test-runtime: $(SERVE_VENV)/complete
	'$(SERVE_VENV)/bin/python' -B -m pytest -p no:cacheprovider -q --numprocesses=auto \
		$(addprefix tests/unit/runtime/,test_given.py test_loader.py test_no_trace.py test_progress.py test_same_data.py)
.PHONY: test-runtime

# Three minutes, and no part of `test`: mirrors will not have Debian 11, whose Python it is, for long.
test-python39: $(VENV)/complete
	$(call packages,mmdebstrap)
	$(SUDO) tests/python39 '$(CACHE)' '$(VENV)/bin/pip'
.PHONY: test-python39

# Of the unit tests those that need a browser, and are skipped where none is.
test-fleet: $(VENV)/complete
	$(call packages,chromium)
	'$(VENV)/bin/python' -B -m pytest -p no:cacheprovider -q tests/unit/fleet/test_report.py
.PHONY: test-fleet

test: check test-runtime test-serve test-fleet test-machines
.PHONY: test

# Four at a time on two CPUs, as each waits half of its time. See tests/machines/conftest.py for their order.
test-machines: $(VENV)/complete machine-packages repository-packages
	$(SUDO) env XDG_CACHE_HOME='$(dir $(CACHE))' SUITE='$(SUITE)' \
		'$(VENV)/bin/python' -B -m pytest -p no:cacheprovider -v -m machine --numprocesses=4 --dist=loadgroup \
		--no-loadscope-reorder tests/machines
.PHONY: test-machines

demo: container-packages
	$(SUDO) env XDG_CACHE_HOME='$(dir $(CACHE))' $(PYTHON) -B -m tests.machines.demo --suite $(or $(SUITE),trixie)
.PHONY: demo

bench: $(VENV)/complete machine-packages
	$(call packages,hwloc-nox)
	PYTHONPATH=src '$(VENV)/bin/python' -B -m tests.benchmarks.bench_plan
	$(SUDO) env XDG_CACHE_HOME='$(dir $(CACHE))' $(PYTHON) -B -m tests.benchmarks.bench_boot $(or $(SUITE),trixie)
.PHONY: bench

# ARGUMENTS='--worst 40': as many of the worst plans are listed.
bench-plan-quality: $(VENV)/complete
	PYTHONPATH=src '$(VENV)/bin/python' -B -m tests.benchmarks.bench_plan_quality $(ARGUMENTS)
.PHONY: bench-plan-quality

# ARGUMENTS='--most 1000': no larger fleet.
bench-fleet: $(VENV)/complete
	PYTHONPATH=src '$(VENV)/bin/python' -B -m tests.benchmarks.bench_fleet $(ARGUMENTS)
.PHONY: bench-fleet

# Some 25 minutes. ARGUMENTS='--services 50 --minutes 0': only the kill and the flood, in 12; see bench_daemon.py.
bench-daemon: $(VENV)/complete container-packages
	$(SUDO) env XDG_CACHE_HOME='$(dir $(CACHE))' $(PYTHON) -B -m tests.benchmarks.bench_daemon $(ARGUMENTS)
.PHONY: bench-daemon

# BENCH='--stacks wheel --jobs mlp conv': only those; see bench_train.py.
bench-train: $(VENV)/complete machine-packages
	$(call packages,python3-venv)
	$(SUDO) env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE XDG_CACHE_HOME='$(dir $(CACHE))' \
		$(PYTHON) -B -m tests.benchmarks.bench_train $(BENCH)
.PHONY: bench-train

# An hour. BENCH='--stacks wheel --jobs mlp --parts share again': only those; see bench_arbitration.py.
bench-arbitration: $(VENV)/complete machine-packages
	$(call packages,python3-venv)
	$(SUDO) env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE XDG_CACHE_HOME='$(dir $(CACHE))' \
		$(PYTHON) -B -m tests.benchmarks.bench_arbitration $(BENCH)
.PHONY: bench-arbitration

# Another interpreter that has torch: TORCH_PYTHON=/srv/venv/bin/python3.
TORCH_PYTHON ?= $(PYTHON)
bench-progress:
	$(if $(filter $(PYTHON),$(TORCH_PYTHON)),$(call packages,python3-torch))
	PYTHONPATH=src $(PYTHON) -B -m tests.benchmarks.bench_progress '$(TORCH_PYTHON)'
.PHONY: bench-progress

# ARGUMENTS='--models mlp --peers torchpar litserve --seconds 4': only those; --soak 10: torchpar alone, for long.
# See bench_serve.py.
bench-serve: $(SERVE_VENV)/complete
	$(call packages,wrk nghttp2-client default-jre-headless)
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE '$(SERVE_VENV)/bin/python' -B -m tests.benchmarks.bench_serve $(ARGUMENTS)
.PHONY: bench-serve

container-packages:
	$(call packages,mmdebstrap python3 systemd-container)
.PHONY: container-packages

# Machines with several NUMA nodes are emulated.
machine-packages: container-packages
	$(call packages,e2fsprogs qemu-system-x86)
.PHONY: machine-packages


# ---- the package ----

# Built in a copy, so that the tree stays as it is.
deb:
	$(call packages,dpkg-dev)
	@if ! dpkg-checkbuilddeps 2>/dev/null; then \
		$(APT_GET) update; \
		$(APT_GET) build-dep --no-install-recommends ./; \
	fi
	rm -rf build/deb
	mkdir -p build/deb/torchpar dist
	tar -c --exclude=./.git --exclude=./build --exclude=./dist --exclude=__pycache__ --exclude='.*_cache' . | tar -x -C build/deb/torchpar
	cd build/deb/torchpar && dpkg-buildpackage --build=binary --no-sign
	cp build/deb/torchpar_$(VERSION)_all.deb dist/
	cp dist/torchpar_$(VERSION)_all.deb dist/torchpar.deb
	@echo; echo 'dist/torchpar.deb is torchpar $(VERSION). Next: apt install ./dist/torchpar.deb'
.PHONY: deb

dist/torchpar_$(VERSION)_all.deb:
	$(MAKE) deb

# KEY=FINGERPRINT: who signs. URL=: where hosts find it. DEBS=FILE...: these packages instead; none: it is only signed
# anew. See torchpar-repository(7).
REPOSITORY ?= dist/repository
DEBS ?= dist/torchpar_$(VERSION)_all.deb
export KEY URL VALID_DAYS ARCHITECTURES

repo: $(DEBS) repository-packages
	src/repository/publish '$(REPOSITORY)' canary $(DEBS)
	[ ! -d '$(REPOSITORY)/pool/stable' ] || src/repository/publish '$(REPOSITORY)' stable
.PHONY: repo

promote: repository-packages
	src/repository/publish --promote '$(REPOSITORY)' canary stable
.PHONY: promote

repository-packages:
	$(call packages,apt-utils dpkg-dev gnupg xz-utils)
.PHONY: repository-packages

build: man
.PHONY: build

man: $(MAN_PAGES)
.PHONY: man

build/man/torchpar.conf.5: debian/man/torchpar.conf.5.in debian/man/make_conf_page.py src/torchpar/conf/settings.py src/torchpar/conf/passed.py
	@mkdir -p build/man
	PYTHONPATH=src $(PYTHON) -B debian/man/make_conf_page.py $< >$@

build/man/%: debian/man/%
	@mkdir -p build/man
	cp $< $@

PYDIR   := /usr/lib/python3/dist-packages
UNITDIR := $(or $(shell pkg-config --variable=systemdsystemunitdir systemd 2>/dev/null),/usr/lib/systemd/system)
GENDIR  := $(or $(shell pkg-config --variable=systemdsystemgeneratordir systemd 2>/dev/null),/usr/lib/systemd/system-generators)

# $(call put,MODE,FILES,DIRECTORY)
put = $(if $(strip $(2)),install -D -m $(1) -t '$(DESTDIR)$(3)' $(2))

install: man
	cd src && find torchpar -name '*.py' -exec install -D -m 644 '{}' '$(DESTDIR)$(PYDIR)/{}' ';'
	printf '"""Written by make install."""\n\n\ndef version() -> str:\n    """The version of this package."""\n    return "%s"\n' \
		'$(VERSION)' >'$(DESTDIR)$(PYDIR)/torchpar/contract/version.py'
	$(call put,644,$(addprefix src/torchpar/,runtime/run.py runtime/launch.py serve/serve.py),/usr/lib/torchpar)
	install -D -m 755 systemd/torchpar-stop '$(DESTDIR)/usr/lib/torchpar/stop'
	install -D -m 755 systemd/torchpar-stopped '$(DESTDIR)/usr/lib/torchpar/stopped'
	install -D -m 755 src/scripts/retry '$(DESTDIR)/usr/lib/torchpar/retry'
	install -D -m 755 src/scripts/guard '$(DESTDIR)/usr/lib/torchpar/guard'
	ln -sfn ../python3/dist-packages/torchpar '$(DESTDIR)/usr/lib/torchpar/torchpar'
	mkdir -p '$(DESTDIR)/usr/lib/torchpar/python'
	ln -sfn ../../python3/dist-packages/torchpar '$(DESTDIR)/usr/lib/torchpar/python/torchpar'
	$(call put,755,src/scripts/torchpar,/usr/bin)
	$(call put,755,src/scripts/torchpard,/usr/sbin)
	$(call put,644,$(UNITS),$(UNITDIR))
	mkdir -p '$(DESTDIR)$(UNITDIR)/multi-user.target.wants'
	ln -sfn ../torchpar-way-back.service '$(DESTDIR)$(UNITDIR)/multi-user.target.wants/'
	$(call put,755,systemd/torchpar-generator,$(GENDIR))
	install -D -m 644 systemd/torchpar.sysusers '$(DESTDIR)/usr/lib/sysusers.d/torchpar.conf'
	$(call put,644,systemd/torchpar.catalog,/usr/lib/systemd/catalog)
	install -D -m 644 systemd/torchpar.tmpfiles '$(DESTDIR)/usr/lib/tmpfiles.d/torchpar.conf'
	$(call put,644,$(wildcard systemd/*.j2),/usr/share/torchpar/templates)
	$(call put,644,$(wildcard src/examples/*.py),/usr/share/torchpar/examples)
	$(call put,644,$(wildcard src/fleet/*),/usr/share/torchpar/templates)
	$(call put,755,src/facts/torchpar.fact src/facts/torchpar-facter,/usr/share/torchpar/facts)
	cd src/examples && find site-torchpar-conf -type f -exec install -D -m 644 '{}' '$(DESTDIR)/usr/share/torchpar/examples/{}' ';'
	$(call put,644,src/monitoring/torchpar.rules.yml,/usr/share/torchpar/prometheus)
	$(call put,644,src/monitoring/torchpar-dashboard.json,/usr/share/torchpar/grafana)
	cd src/ansible && find . -name '*.yml' -o -name '*.j2' | while read -r file; do \
		install -D -m 644 "$$file" '$(DESTDIR)/usr/share/torchpar/ansible'/"$$file"; done
	$(call put,644,etc/00-vendor.conf,/usr/lib/torchpar.conf.d)
	$(call put,644,etc/torchpar.conf,/etc)
	mkdir -p '$(DESTDIR)/etc/torchpar.conf.d'
	$(call put,644,debian/completion/torchpar,/usr/share/bash-completion/completions)
	$(foreach page,$(MAN_PAGES),$(call put,644,$(page),/usr/share/man/man$(lastword $(subst ., ,$(page)))) &&) true
.PHONY: install

clean:
	rm -rf build dist .ruff_cache .mypy_cache .pytest_cache .hypothesis
	find src tests debian -name __pycache__ -type d -prune -exec rm -rf '{}' +
.PHONY: clean
