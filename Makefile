# iottunnel: `make` lists what there is to do. Works with GNU make 3.81 (macOS)
# and later; everything Go goes through scripts/go, which names the cure when Go
# is missing or too old.

GO        ?=
DEMO_PORT ?= 8080
FUZZTIME  ?= 20s
BENCHTIME ?= 1s
BENCHFLAGS ?=
SOAKTIME  ?= 10m
SOAKSEED  ?=
LAST      ?=
# Faults of nodes and of Redis, and other cases that IOTTUNNEL_HEAVY=1 makes long or large, where
# promises are taken at their word; and a node of this version beside two of the last one.
LASTING   := ^(TestNodeSilent|TestClusterRedis|TestNodeKilled|TestNodeWithoutRedis|TestNodeWithoutPeers|TestTwoOwners|TestWrongClock|TestBesideLastVersion|TestSpread|TestRebootedDevice|TestRebootedElsewhere|TestLiveDeviceStays|TestLiveDeviceStaysElsewhere|TestHalfOpenHandshakes)$$
export GO DEMO_PORT FUZZTIME

# What xcaddy would pass; nothing here uses the storages that the tags leave out.
TAGS    := nobadger,nomysql,nopgx
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -s -w $(if $(VERSION),-X main.release=$(VERSION))
BUILD   := CGO_ENABLED=0 scripts/go build -trimpath -tags $(TAGS) -ldflags "$(LDFLAGS)"

.DEFAULT_GOAL := help
.PHONY: help demo test test-faces test-go build lint fuzz bench soak dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  DEMO_PORT=$(DEMO_PORT) moves the demo; FUZZTIME=$(FUZZTIME) is per fuzz target, BENCHTIME=$(BENCHTIME) per"
	@echo "  measurement; SOAKTIME=$(SOAKTIME) is how long to soak, SOAKSEED=N repeats an order, LAST=/path/to/caddy is of another"
	@echo "  version, to run beside this one; GO=/path/to/go names the Go."

demo: ## build, then run an edge and a device on loopback; Ctrl-C ends both
	@$(BUILD) -o bin/demo ./internal/demo
	@bin/demo -port "$(DEMO_PORT)" -check
	@$(MAKE) --no-print-directory build
	@bin/demo -port "$(DEMO_PORT)" -bin bin

test: ## everything: linters, all tests with -race, end-to-end tests (Debian or Ubuntu, root or sudo)
	@scripts/test

test-go: ## the Go tests that need no server and no root, on any system
	CGO_ENABLED=0 scripts/go test -trimpath -tags $(TAGS) $$(scripts/packages noserver)

test-faces: build ## every end-to-end case on all faces: one edge, with TLS, three nodes, nginx (20 minutes; root)
	@cd e2e && IOTTUNNEL_FACES=plain,tls,nodes,nginx CGO_ENABLED=0 ../scripts/go test -count=1 -timeout 60m .

build: ## bin/caddy, bin/iottunnel-agent, bin/iottunnel-conformance, bin/thermometer
	@echo "building bin/caddy, bin/iottunnel-agent, bin/iottunnel-conformance and bin/thermometer (Caddy takes a few minutes the first time)"
	@$(BUILD) -o bin/caddy ./caddymodule/cmd/caddy
	@$(BUILD) -o bin/iottunnel-agent ./agent/cmd/iottunnel-agent
	@$(BUILD) -o bin/iottunnel-conformance ./conformance/cmd/iottunnel-conformance
	@$(BUILD) -o bin/thermometer ./examples/thermometer

lint: ## vet, gofmt, staticcheck, shellcheck
	@scripts/lint

fuzz: ## each fuzz target for FUZZTIME
	@scripts/fuzz

bench: build ## the tunnel beside what can stand in its place (21 minutes; Linux, all of it as root only); prints tables
	@cd bench && CGO_ENABLED=0 ../scripts/go run . -bin ../bin -time $(BENCHTIME) $(BENCHFLAGS)

soak: build ## what lasts: faults one by one, large crowds (20 minutes), then faults at random against real processes for SOAKTIME (Redis; root)
	@IOTTUNNEL_SLOW=1 CGO_ENABLED=0 scripts/go test -count=1 -tags $(TAGS) -run '^TestHubs' -timeout 15m ./tunnelcore/redisregistry
	@cd e2e && IOTTUNNEL_HEAVY=1 IOTTUNNEL_FACES=plain IOTTUNNEL_LAST=$(LAST) CGO_ENABLED=0 ../scripts/go test -count=1 -shuffle $(or $(SOAKSEED),on) -parallel 1 -run '$(LASTING)' -timeout 40m -v
	@cd e2e && IOTTUNNEL_SOAK=$(SOAKTIME) IOTTUNNEL_SOAKSEED=$(SOAKSEED) CGO_ENABLED=0 ../scripts/go test -count=1 -run '^TestSoak' -timeout 0 -v

dist: ## agents for every platform, Debian packages and a feed for OpenWrt under dist/, with sizes and checksums
	@VERSION="$(VERSION)" scripts/dist

clean: ## remove what was built, and the demo's data
	rm -rf bin dist .demo
