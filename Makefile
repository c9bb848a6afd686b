# cowblk: everything a newcomer needs is "make demo" and "make test".

GO        ?= go
FUZZTIME  ?= 10s
BENCHTIME ?= 1s
BENCHDIR  ?= $(or $(TMPDIR),/tmp)
BENCHFLAGS ?=
CRASH_CUTS ?= 1000000
OUTAGE_CUTS ?= 50
PACKAGES  := ./cmd/... ./backend/... ./vhost/... ./cow/...

# The binary names its revision where git can tell it, whatever GOFLAGS says.
STAMP     := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo -buildvcs=true)

# Tools, tests and plots have a module of their own, integration, so that a build downloads little.
STATICCHECK := $(GO) tool -modfile=integration/go.mod staticcheck

export COWBLK_BINARY ?= $(CURDIR)/cowblk

.PHONY: help build demo test unit integration test-qemus race fuzz crash outage bench bench-quick bench-promote bench-reopen bench-scale bench-bonnie bench-go bench-compare lint deps clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1 	/p' $(MAKEFILE_LIST) | expand -t 16

build: ## the binary, ./cowblk
	CGO_ENABLED=0 $(GO) build -trimpath $(STAMP) -o cowblk ./cmd/cowblk

deps: ## install the Debian packages that demo and tests need, or say which
	integration/deps.sh

demo: deps build ## golden image, two disks, two guests, a summary: in minutes
	$(GO) run -C integration ./demo

test: deps build unit integration ## unit, model and integration tests (real QEMU and libvirt)

unit:
	$(GO) test -tags invariants -timeout 10m $(PACKAGES)

integration:
	$(GO) test -C integration -timeout 35m -tags integration ./...

test-qemus: deps build ## integration tests on all of Debian's QEMUs, and QEMU's own tests of the device: an hour
	COWBLK_QEMUS=all $(GO) test -C integration -count=1 -v -timeout 120m -tags integration .

race: ## unit and model tests under the race detector, and with checked pointers
	$(GO) test -race -tags invariants -timeout 20m $(PACKAGES)
	$(GO) test -gcflags=all=-d=checkptr -timeout 10m ./vhost/... ./backend ./cow

fuzz: ## every fuzz test for $(FUZZTIME)
	integration/fuzz.sh $(FUZZTIME)

crash: ## a million power cuts, beside kills, faults and flipped bits everywhere; CRASH_CUTS=, COWBLK_CRASH_PER_LIFE=, COWBLK_CRASH_SEED=
	COWBLK_CRASH_CUTS=$(CRASH_CUTS) $(GO) test -count=1 -v -timeout 3h ./cow/cowtest/crash

outage: deps build ## power cuts and outages on ext4, XFS and btrfs, as root: OUTAGE_CUTS= on each
	COWBLK_OUTAGE_CUTS=$(OUTAGE_CUTS) $(GO) test -C integration -count=1 -v -timeout 2h -tags integration ./outage/...

bench: deps build ## cowblk beside qemu-storage-daemon, fio and memcpy; promotions: 40 minutes on an idle machine; BENCHDIR= BENCHFLAGS=--busy
	$(GO) run -C integration ./bench compare --dir $(BENCHDIR) $(BENCHFLAGS)
	$(MAKE) --no-print-directory bench-promote

bench-quick: deps build ## the most important rows of that, in three minutes
	$(GO) run -C integration ./bench compare --quick --dir $(BENCHDIR) --out bench/results-quick $(BENCHFLAGS)

bench-promote: build ## how long requests wait for a promotion, and for a snapshot of QEMU's
	$(GO) run -C integration ./bench promote --cowblk $(COWBLK_BINARY) --dir $(BENCHDIR) -n 200 --bulk 4

bench-reopen: build ## reopening after kills, takeovers, writes: beside the binary BEFORE=, as root; an hour
	@[ -n "$(BEFORE)" ] || { echo "say which binary to compare with: make bench-reopen BEFORE=/path/to/cowblk"; exit 2; }
	$(GO) build -C integration -o $(BENCHDIR)/cowblk-bench ./bench
	$(BENCHDIR)/cowblk-bench reopen --before $(BEFORE) --after $(COWBLK_BINARY) --dir $(BENCHDIR)

bench-scale: deps build ## system calls and time for 10 to 1,000 disks and tags, 1 GiB to 64 TiB; beside the binary BEFORE=, as root
	$(GO) build -C integration -o $(BENCHDIR)/cowblk-bench ./bench
	$(BENCHDIR)/cowblk-bench scale --before "$(BEFORE)" --after $(COWBLK_BINARY) --dir $(BENCHDIR)

bench-bonnie: deps build ## bonnie++ in guests: raw, cowblk and dm-snapshot, by depth; half an hour
	$(GO) run -C integration ./bench bonnie --dir $(BENCHDIR) --json bench/results/bonnie.json --markdown bench/results/bonnie.md

bench-go: ## Go benchmarks of every stage; BENCHTIME=
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) $(PACKAGES)

bench-compare: ## Go benchmarks of revision REF beside the working tree's; BENCH=regexp COUNT= BENCHTIME=
	@[ -n "$(REF)" ] || { echo "say which revision to compare with: make bench-compare REF=HEAD~1"; exit 2; }
	GO=$(GO) $(if $(filter file,$(origin BENCHTIME)),,BENCHTIME=$(BENCHTIME)) integration/bench/compare.sh $(REF) $(BENCH)

lint: ## gofmt, vet, staticcheck, import and unsafe rules
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	    [ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./... && $(GO) vet -C integration ./... && $(GO) vet -C integration -tags integration ./...
	$(GO) vet -tags invariants ./...
	$(STATICCHECK) ./...
	cd integration && $(GO) tool staticcheck ./... && $(GO) tool staticcheck -tags integration ./...
	$(GO) test -C integration -count=1 ./lint

clean: ## remove what the build made here (the cache of images stays: see integration/artefacts/build)
	rm -f cowblk
	$(GO) clean -testcache -fuzzcache
