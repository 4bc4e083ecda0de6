package e2e

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// heavy makes the large cases as large as they are meant to be.
var heavy = os.Getenv("IOTTUNNEL_HEAVY") == "1"

// notOn says which cases a face cannot run, and why: case, then face. The run
// prints what it left out; there is no other way to leave a case out.
var notOn = map[string]map[string]string{
	"TestHTTP3":           {"plain": "HTTP/3 is always encrypted", "nodes": "its visitors come without TLS"},
	"TestHTTP2Cleartext":  {"tls": "its visitors negotiate HTTP/2 by ALPN, which TestHTTP2 does"},
	"TestHTTP2":           {"plain": "has no ALPN; TestHTTP2Cleartext covers it", "nodes": "the same as on plain"},
	"TestInspectingProxy": {"plain": "has no TLS to look into"},
	"TestPlaintext":       {"tls": "is about plain connections", "nodes": "its agents come by TLS"},
	"TestNextHandler":     {"tls": "agents and devices have sites of their own there: no handler follows"},
}

// wide are the faces that take longest: in a run that does not name its faces
// (IOTTUNNEL_FACES, `make test-faces`) they have the cases of chosen alone.
var wide = []string{"nodes", "nginx"}

// chosen are cases of all that passes between nodes, and through routers.
var chosen = map[string]bool{
	"TestRequests": true, "TestContinue": true, "TestServerSentEvents": true, "TestHTTP1": true, "TestHTTP2": true, "TestHTTP2Cleartext": true,
	"TestHeadersToDevice": true, "TestHeadersFromDevice": true, "TestHeadersOfWebSocket": true, "TestCookiesFromDevice": true,
	"TestSmugglingToDevice": true, "TestSmugglingFromDevice": true, "TestBrokenTransfers": true, "TestTransferIDs": true,
	"TestBulk": true, "TestCurl": true, "TestSlowReader": true, "TestVisitorsWhoNeverRead": true, "TestManySlowVisitors": true,
	"TestOfflinePage/access log false": true, "TestVisitorWaits": true, "TestRefusedByService": true, "TestFrozenDevice": true, "TestBusyDevice": true,
	"TestAgentOutput": true, "TestNameIsKept": true, "TestControlSocketIsCut": true, "TestLiveDeviceStays": true, "TestRebootedDevice": true,
	"TestPublicPort": true, "TestSSH": true, "TestHalfClose": true, "TestReload": true, "TestReloadRevokes": true, "TestStop": true, "TestLite": true,
	"TestThermometer": true,
}

// results is what became of each case on each face.
var results = struct {
	mu   sync.Mutex
	rows map[string]map[string]string // guarded by mu
}{rows: make(map[string]map[string]string)}

func result(name, face, state string) {
	results.mu.Lock()
	defer results.mu.Unlock()
	if results.rows[name] == nil {
		results.rows[name] = make(map[string]string)
	}
	results.rows[name][face] = state
}

// onFaces runs a case on every face (IOTTUNNEL_FACES=plain,tls names fewer), each
// as a subtest, all in parallel.
func onFaces(t *testing.T, run func(t *testing.T, k harness.Kind)) {
	t.Helper()
	t.Parallel()
	name := t.Name()
	for _, k := range kinds() {
		if reason := notOn[name][k.Name()]; reason != "" {
			result(name, k.Name(), "not run: "+reason)
			continue
		}
		if os.Getenv("IOTTUNNEL_FACES") == "" && slices.Contains(wide, k.Name()) && !chosen[name] && !isSet("test.run") {
			result(name, k.Name(), "left to `make test-faces`")
			continue
		}
		t.Run(k.Name(), func(t *testing.T) {
			t.Parallel()
			result(name, k.Name(), "did not end")
			defer func() {
				if t.Failed() {
					result(name, k.Name(), "FAIL")
				} else {
					result(name, k.Name(), "ok")
				}
			}()
			run(t, k)
		})
	}
}

func kinds() []harness.Kind {
	want := os.Getenv("IOTTUNNEL_FACES")
	if want == "" {
		return harness.Kinds
	}
	var picked []harness.Kind
	for _, k := range harness.Kinds {
		if slices.Contains(strings.Split(want, ","), k.Name()) {
			picked = append(picked, k)
		}
	}
	return picked
}

func TestMain(m *testing.M) {
	flag.Parse()
	if !isSet("test.parallel") {
		flag.Set("test.parallel", "8") // cases wait more than they compute
	}
	for _, name := range []string{"caddy", "iottunnel-agent", "thermometer"} {
		if _, err := harness.FindBinary(name); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			os.Exit(1)
		}
	}
	if len(kinds()) == 0 {
		fmt.Fprintln(os.Stderr, "e2e: IOTTUNNEL_FACES names no face")
		os.Exit(1)
	}
	status := m.Run()
	for _, fault := range harness.CloseShared() {
		fmt.Fprintln(os.Stderr, "e2e: shared edge:", fault)
		status = 1
	}
	printResults()
	os.Exit(status)
}

func isSet(name string) (found bool) {
	flag.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

func printResults() {
	for _, name := range slices.Sorted(maps.Keys(results.rows)) {
		for _, face := range slices.Sorted(maps.Keys(results.rows[name])) {
			fmt.Printf("e2e: %-28s %-6s %s\n", name, face, results.rows[name][face])
		}
	}
}
