# Set-up and short-hands. `make demo` and `make test` each take a fresh Debian 12 or Ubuntu 24.04 machine from a clone to
# done; everything else is CMake's (see CMakePresets.json).
PRESET ?= $(shell command -v nvcc >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
BUILD := build/$(PRESET)
BALLAST := $(BUILD)/ballast
JOBS ?= $(shell nproc)

PACKAGES := g++ cmake ninja-build pkg-config python3 nlohmann-json3-dev libcli11-dev libfmt-dev libspdlog-dev \
  libboost-dev libpcre2-dev libsentencepiece-dev libdnnl-dev libjpeg-dev libpng-dev libgtest-dev
CHECK_PACKAGES := clang libclang-rt-dev clang-tidy clang-format

.PHONY: help build deps check-deps demo test check results bench device format lint clean
help:
	@echo "make demo    install what is missing, build, quantize the bundled model and compare (a few minutes)"
	@echo "make test    the same set-up, then the everyday tests"
	@echo "make check   tests under sanitizers and long fuzzing, too"
	@echo "make results accuracy of methods, widths and compensation, written to RESULTS.md (about six hours)"
	@echo "make bench   speed of OPT's shapes, written to bench/ and compared with the committed figures (about six minutes)"
	@echo "make device  on a machine with a CUDA GPU: check its kernels, measure them (needs nvcc and CMake only)"
	@echo "make format  clang-format over the sources        make lint  clang-tidy and the layout check"

# Installs only what is missing, and says so first.
define install
	@missing=""; for package in $(1); do \
	  dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing with apt-get:$$missing"; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi
endef

deps:
	$(call install,$(PACKAGES))

check-deps: deps
	$(call install,$(CHECK_PACKAGES))

build: deps
	cmake --preset $(PRESET)
	cmake --build --preset $(PRESET) -j $(JOBS)

demo: deps
	cmake --preset $(PRESET)
	cmake --build --preset $(PRESET) -j $(JOBS) --target ballast
	python3 tools/demo.py $(BALLAST) models/demo demo-output

test: build
	ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

check: test check-deps
	python3 tools/check_layout.py
	cmake --preset cpu-asan && cmake --build --preset cpu-asan -j $(JOBS)
	ctest --test-dir build/cpu-asan --output-on-failure -j $(JOBS)
	cmake --preset cpu-tsan && cmake --build --preset cpu-tsan -j $(JOBS)
	ctest --test-dir build/cpu-tsan --output-on-failure -j $(JOBS) -R 'ThreadPool|Scheduler|Engine|Linear|Attention|HttpServer|Server'
	cmake --preset cpu-fuzz && cmake --build --preset cpu-fuzz -j $(JOBS)
	tests/fuzz/run.sh build/cpu-fuzz 1000000

# make results SHARED=DIR [ONLY=REGEX]: the folder with the reference texts, the rows to measure (see tools/results.py).
results: build
	@test -n "$(SHARED)" || { echo "make results needs SHARED=DIR, the folder with the reference texts"; exit 2; }
	python3 tools/results.py $(BALLAST) models/demo $(SHARED) $(if $(ONLY),'$(ONLY)')

bench: build
	python3 tools/bench_all.py $(BALLAST) bench
	-python3 tools/bench_compare.py bench/cpu.json

device:
	tests/device.sh

format: check-deps
	git ls-files '*.h' '*.cpp' '*.cu' | xargs clang-format -i

lint: check-deps
	python3 tools/check_layout.py
	cmake --preset cpu
	git ls-files '*.cpp' | grep -v -e '^tests/' -e 'kernels/cpu/isa_' | xargs -P $(JOBS) -n 4 clang-tidy -p build/cpu --quiet

clean:
	rm -rf build demo-output
