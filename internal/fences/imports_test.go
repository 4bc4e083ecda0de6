package fences

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// unlinked is what the agent must not link, and why.
var unlinked = []struct{ root, why string }{
	{"github.com/caddyserver", "Caddy is the edge's host; with it the agent would be 50 MB, on devices that have 8"},
	{"github.com/redis", "Redis is the edge's registry; a device never sees it"},
	{"go.etcd.io/bbolt", "the registry on disk is the edge's"},
	{"github.com/prometheus", "the agent writes its few metrics by hand; the client library costs megabytes"},
	{"google.golang.org", "protobuf and gRPC come with somebody else's needs, and cost megabytes"},
	{"net/http", "a megabyte, for a handshake of ten lines: package socket and others speak the little that is needed"},
	{"golang.org/x/net", "its packages bring net/http and the tables of Unicode"},
	{"testing", "test helpers belong into _test.go files: testing registers flags"},
	{module + "/caddymodule", "the Caddy module is the edge's host, not the device's"},
	{module + "/tunnelcore/registry", "leases are the edge's business"},
	{module + "/tunnelcore/redisregistry", "leases are the edge's business"},
	{module + "/tunnelcore/cluster", "nodes are the edge's business"},
	{module + "/tunnelcore/answers", "answers to visitors are the edge's business, pages and all"},
}

// The smallest target is where it hurts first.
func TestAgentLinksNothingOfTheEdge(t *testing.T) {
	deps := list(t, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=mipsle"}, "-deps", "./agent/cmd/iottunnel-agent")
	report(t, linked(deps))

	mustFind(t, 3, linked([]pkg{
		{ImportPath: "github.com/caddyserver/certmagic"},
		{ImportPath: "github.com/caddyserverless"},
		{ImportPath: "go.etcd.io/bbolt"},
		{ImportPath: module + "/tunnelcore"},
		{ImportPath: module + "/tunnelcore/wire"},
	}))
}

func linked(deps []pkg) (violations []string) {
	for _, p := range deps {
		if p.ImportPath == module+"/tunnelcore" {
			violations = append(violations, "the agent links tunnelcore: the hub is the edge")
		}
		for _, u := range unlinked {
			if under(p.ImportPath, u.root) {
				violations = append(violations, fmt.Sprintf("the agent links %s: %s", p.ImportPath, u.why))
			}
		}
	}
	return violations
}

// gates are the modules that a single place may import, and why.
var gates = []struct {
	root  string   // of the import paths that are fenced
	at    []string // packages that may import it; with a final slash also all below
	tests bool     // the fence holds for tests too
	why   string
}{
	{
		root: "github.com/gorilla", at: []string{"tunnelcore/socket/accept"}, tests: false,
		why: "gorilla does the server's handshake and package socket all else; a second importer would bring another idea of limits, deadlines and buffers",
	},
	{
		root: "github.com/redis", at: []string{"tunnelcore/redisregistry"}, tests: false,
		why: "one package owns the key schema; everything else speaks to the registry's interface",
	},
	{
		root: "github.com/caddyserver", at: []string{"caddymodule/"}, tests: true,
		why: "Caddy is one host of the edge: core and agent have to build, and to be tested, without it",
	},
	{
		root: "go.uber.org/zap", at: []string{"caddymodule/"}, tests: true,
		why: "zap is Caddy's; everything else logs to slog",
	},
	{
		root: "go.etcd.io/bbolt", at: []string{"tunnelcore/registry"}, tests: true,
		why: "how leases are kept on disk is the registry's secret",
	},
}

func TestOneImporterEach(t *testing.T) {
	report(t, strayImports(own(t)))

	mustFind(t, 3, strayImports([]pkg{
		{ImportPath: module + "/tunnelcore/socket/accept", Imports: []string{"github.com/gorilla/websocket"}},
		{ImportPath: module + "/tunnelcore/stream", Imports: []string{"github.com/gorilla/websocket"}},
		{ImportPath: module + "/agent", TestImports: []string{"github.com/gorilla/websocket"}},
		{ImportPath: module + "/agent", TestImports: []string{"github.com/caddyserver/caddy/v2"}},
		{ImportPath: module + "/caddymodule/dashboard", Imports: []string{"github.com/caddyserver/caddy/v2"}},
		{ImportPath: module + "/caddymodules", Imports: []string{"go.uber.org/zap"}},
	}))
}

func strayImports(packages []pkg) (violations []string) {
	for _, p := range packages {
		rel, _ := local(p.ImportPath)
		for _, g := range gates {
			imports := p.Imports
			if g.tests {
				imports = slices.Concat(p.Imports, p.TestImports, p.XTestImports)
			}
			if slices.ContainsFunc(g.at, func(at string) bool {
				return rel == strings.TrimSuffix(at, "/") || strings.HasSuffix(at, "/") && strings.HasPrefix(rel, at)
			}) {
				continue
			}
			for _, i := range imports {
				if under(i, g.root) {
					violations = append(violations, fmt.Sprintf("%s imports %s, which only %s may: %s",
						rel, i, strings.Join(g.at, ", "), g.why))
				}
			}
		}
	}
	return violations
}

// arrows says for each package of ours which others of ours it may import. What
// it names it may import; what those may import does not follow. With a final
// slash it means a folder and all below. A new package gets a line here: that is
// the moment to think about its place.
var arrows = map[string][]string{
	"tunnelcore/wire":              {},
	"tunnelcore/names":             {},
	"tunnelcore/stacks":            {},
	"tunnelcore/answers":           {"tunnelcore/wire"},
	"tunnelcore/registry/":         {"tunnelcore/names", "tunnelcore/registry/", "tunnelcore/wire"},
	"tunnelcore/redisregistry/":    {"tunnelcore/names", "tunnelcore/redisregistry/", "tunnelcore/registry/", "tunnelcore/wire"},
	"tunnelcore/socket":            {"tunnelcore/wire"},
	"tunnelcore/socket/accept":     {"tunnelcore/socket"},
	"tunnelcore/socket/sockettest": {"tunnelcore/socket", "tunnelcore/socket/accept"},
	"tunnelcore/stream":            {"tunnelcore/socket", "tunnelcore/stacks", "tunnelcore/wire"},
	"tunnelcore/cluster":           {"tunnelcore/answers", "tunnelcore/names", "tunnelcore/registry", "tunnelcore/socket", "tunnelcore/socket/accept", "tunnelcore/stream", "tunnelcore/wire"},
	"tunnelcore": {
		"tunnelcore/answers", "tunnelcore/cluster", "tunnelcore/names", "tunnelcore/registry",
		"tunnelcore/socket", "tunnelcore/socket/accept", "tunnelcore/stacks", "tunnelcore/stream", "tunnelcore/wire",
	},
	"agent":                       {"agent/internal/hosthead", "agent/internal/suffix", "tunnelcore/names", "tunnelcore/socket", "tunnelcore/stacks", "tunnelcore/stream", "tunnelcore/wire"},
	"agent/internal/deviceid":     {},
	"agent/internal/hosthead":     {},
	"agent/internal/monitor":      {"agent"},
	"agent/internal/check":        {"agent", "tunnelcore/wire"},
	"agent/internal/service":      {},
	"agent/internal/suffix":       {},
	"agent/cmd/iottunnel-agent":   {"agent", "agent/internal/", "tunnelcore/names", "tunnelcore/stream", "tunnelcore/wire"},
	"agent/c/test":                {}, // drives the C client through a pipe
	"caddymodule/":                {"caddymodule/", "tunnelcore/"},
	"conformance":                 {"tunnelcore/wire"}, // the edge once more, and no part of it
	"conformance/cmd/":            {"conformance"},
	"examples/thermometer":        {"agent", "examples/thermometer/device"},
	"examples/thermometer/device": {"tunnelcore/socket", "tunnelcore/socket/accept"}, // a WebSocket of its own, to visitors
	"internal/demo":               {},
	"internal/ends":               {},
	"internal/fences":             {},
	"internal/freeport":           {},
	"internal/leak":               {},
	"internal/golden":             {},
	"internal/redistest":          {},
}

func TestNothingImportsUpward(t *testing.T) {
	report(t, upward(own(t)))

	mustFind(t, 4, upward([]pkg{
		{ImportPath: module + "/tunnelcore/wire", Imports: []string{"time", module + "/tunnelcore/names"}},
		{ImportPath: module + "/tunnelcore/stream", Imports: []string{module + "/tunnelcore/socket", module + "/tunnelcore"}},
		{ImportPath: module + "/caddymodule/cmd/caddy", Imports: []string{module + "/caddymodule"}},
		{ImportPath: module + "/caddymodule", Imports: []string{module + "/agent"}},
		{ImportPath: module + "/newcomer"},
	}))
}

func upward(packages []pkg) (violations []string) {
	for _, p := range packages {
		rel, _ := local(p.ImportPath)
		allowed, known := arrows[rel]
		if !known {
			allowed, known = arrowsAbove(rel)
		}
		if !known {
			violations = append(violations, fmt.Sprintf("%s has no place yet: say in arrows which of our packages it may import", rel))
			continue
		}
		for _, i := range p.Imports {
			to, ours := local(i)
			if ours && !matches(allowed, to) {
				violations = append(violations, fmt.Sprintf(
					"%s imports %s: dependencies point one way, from hosts to tunnels to bytes, and %s stands above %s or beside it (arrows allows %v)",
					rel, to, to, rel, allowed))
			}
		}
	}
	return violations
}

// arrowsAbove finds the entry with a final slash that covers rel.
func arrowsAbove(rel string) ([]string, bool) {
	for root, allowed := range arrows {
		if matches([]string{root}, rel) {
			return allowed, true
		}
	}
	return nil, false
}

// matches reports whether rel is one of the patterns: a package, or with a final
// slash a folder and all below.
func matches(patterns []string, rel string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return rel == p || strings.HasSuffix(p, "/") && strings.HasPrefix(rel+"/", p)
	})
}

// The protocol is bytes: standard library only, so that anyone may take the
// package as it is.
func TestProtocolNeedsOnlyTheStandardLibrary(t *testing.T) {
	report(t, foreign(list(t, nil, "-deps", "./tunnelcore/wire")))

	mustFind(t, 1, foreign([]pkg{
		{ImportPath: "net/url", Standard: true},
		{ImportPath: module + "/tunnelcore/wire"},
		{ImportPath: "golang.org/x/net/idna"},
	}))
}

func foreign(deps []pkg) (violations []string) {
	for _, p := range deps {
		if !p.Standard && p.ImportPath != module+"/tunnelcore/wire" {
			violations = append(violations, fmt.Sprintf(
				"tunnelcore/wire needs %s: the protocol knows no host and no library, only the standard one", p.ImportPath))
		}
	}
	return violations
}
