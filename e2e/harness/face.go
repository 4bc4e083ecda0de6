// Package harness starts the built programs for the end-to-end tests, and plays
// the peers of an edge: visitors, devices' services, and agents that misbehave.
package harness

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"
)

// Face is a running edge, the way visitors and agents meet it. A case is written
// once against it and runs on every kind of face. Methods that take a test fail
// it when they cannot do what they say.
type Face interface {
	// Domain is the parent of the devices' hostnames.
	Domain() string
	// URL is where visitors reach a path of a hostname.
	URL(hostname, path string) string
	// DialVisitor opens a connection as visitors of a hostname do, TLS included.
	DialVisitor(ctx context.Context, hostname string) (net.Conn, error)
	// VisitorTLS is nil where visitors speak plain HTTP; else it has the CA.
	VisitorTLS() *tls.Config
	// VisitorAddr is the address at which visitors arrive.
	VisitorAddr() string
	// TCPPorts is the range of public ports; zero without Setup.TCPPorts.
	TCPPorts() (first, last int)

	// Servers are the values for the agent's --server.
	Servers() []string
	// AgentAddr is the address at which agents arrive.
	AgentAddr() string
	// CAFile is the certificate that agents, and visitors who speak TLS, must trust;
	// empty where agents speak plain HTTP. AgentTLS has it, or is nil.
	CAFile() string
	AgentTLS() *tls.Config
	// DialAgent opens a connection as agents do, TLS included, and says the Host
	// to name on it.
	DialAgent(ctx context.Context) (c net.Conn, host string, err error)
	// NewDevice hands out a device that the edge knows and no other case uses.
	NewDevice(tb testing.TB) Device

	// Reload gives the running edge another setup by `caddy reload`.
	Reload(tb testing.TB, s Setup)
	// ReloadFails is Reload of what Caddy must refuse. It returns what the command
	// said; the edge's files are then again those of the setup before.
	ReloadFails(tb testing.TB, s Setup) string
	// Stop ends the edge with SIGTERM, Kill with SIGKILL; Start brings it back on
	// the same addresses with the same data.
	Stop(tb testing.TB)
	Kill(tb testing.TB)
	Start(tb testing.TB)
	// Pause holds the edge in its tracks for some time, as a machine that sleeps.
	Pause(tb testing.TB, d time.Duration)
	// Log is what the edge wrote to standard error, over all its starts.
	Log() *Log
	// Footprint measures the edge now.
	Footprint(tb testing.TB) Footprint

	// Close ends the edge for good and returns what its log holds against it.
	Close() (faults []string)
	// Dump shows the last of the log after mark, for a failed test.
	Dump(mark int) string
}

// Kind makes faces of one kind.
type Kind interface {
	Name() string
	// Launch starts a face whose files live in dir.
	Launch(dir string, s Setup) (Face, error)
}

// Kinds are the faces that there are. A case runs on all of them, or stands in
// the table of exceptions with a reason.
var Kinds = []Kind{
	single{name: "plain"},
	single{name: "tls", tls: true},
	nodes{},
	routed{},
}

// Setup is what a case asks of its edge. The zero value is an edge as most cases
// want it: `auth static`, and the product's defaults but for the limits per
// address, since everybody here comes from one.
type Setup struct {
	Tunnel    []string // lines of the global option `iottunnel`
	Limits    []string // lines of its block `limits`
	Servers   []string // lines of the global option `servers`
	Handlers  []string // lines of the visitors' site, before `iottunnel`
	Errors    []string // lines of its `handle_errors`
	AccessLog bool
	TCPPorts  int      // how many public ports; 0: the option is not written
	TCPAllow  string   // who may connect to them; empty: everybody
	Without   []string // devices whose tokens are taken away
	Domain    string   // in place of the face's own
	Sites     string   // further sites, as a Caddyfile has them
	Host      *Host    // where the edge runs; nil: here, on loopback
	Strict    bool     // on a Host without TLS: agents are refused there, as by default
	Grace     string   // Caddy's grace_period; empty: 3s
}

// HostedName is a name for which an edge with TLS has a certificate where it runs
// on a Host, beside the one for its address.
const HostedName = "edge.test"

// Device is a device that the edge's `auth static` knows.
type Device struct{ ID, Token string }

// Footprint is what an edge holds, or what several do.
type Footprint struct {
	Edges       int
	Goroutines  int
	Descriptors int
	Heap        int64 // live bytes after a collection
	Stack       int64 // bytes of goroutines' stacks, those that are kept for later among them
	Anonymous   int64 // bytes of the process that no file backs; 0 where that is not known
}

func (f Footprint) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d KiB of heap, %d KiB of stacks", f.Goroutines, f.Descriptors, f.Heap>>10, f.Stack>>10)
}

// Own starts a face for one test alone.
func Own(tb testing.TB, k Kind, s Setup) Face {
	tb.Helper()
	f, err := k.Launch(shortTemp(tb), s)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, fault := range f.Close() {
			tb.Errorf("edge: %s", fault)
		}
		if tb.Failed() {
			tb.Log(f.Dump(0))
		}
	})
	return f
}

var shared struct {
	mu    sync.Mutex
	faces map[string]Face // by kind
	errs  map[string]error
	dirs  []string
}

// Shared returns the one face of a kind that tests which neither stop nor
// configure it use together, each with a device of its own.
func Shared(tb testing.TB, k Kind) Face {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.faces == nil {
		shared.faces, shared.errs = make(map[string]Face), make(map[string]error)
	}
	if err := shared.errs[k.Name()]; err != nil {
		tb.Fatal(err)
	}
	f := shared.faces[k.Name()]
	if f == nil {
		dir, err := os.MkdirTemp("", "e2e")
		if err == nil {
			shared.dirs = append(shared.dirs, dir)
			f, err = k.Launch(dir, Setup{})
		}
		if err != nil {
			shared.errs[k.Name()] = err
			tb.Fatal(err)
		}
		shared.faces[k.Name()] = f
	}
	mark := f.Log().Mark()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Log(f.Dump(mark))
		}
	})
	return f
}

// SharedDir makes a folder that is there until CloseShared.
func SharedDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		tb.Fatal(err)
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.dirs = append(shared.dirs, dir)
	return dir
}

// CloseShared ends what Shared started, once all tests have run.
func CloseShared() (faults []string) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	for name, f := range shared.faces {
		for _, fault := range f.Close() {
			faults = append(faults, name+": "+fault)
		}
	}
	for _, dir := range shared.dirs {
		os.RemoveAll(dir)
	}
	return faults
}

// shortTemp is tb.TempDir with a path short enough for a Unix socket in it.
func shortTemp(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// VisitorTimeout bounds each request of a client from Visitor: none may hang.
const VisitorTimeout = 30 * time.Second

// Visitor is an HTTP client that finds every hostname at the face, follows no
// redirect, and gives up after VisitorTimeout. Over TLS it speaks HTTP/2 where
// the face does, unless h1 is asked for.
func Visitor(tb testing.TB, f Face, h1 bool) *http.Client {
	tb.Helper()
	t := &http.Transport{
		TLSClientConfig:     f.VisitorTLS(),
		ForceAttemptHTTP2:   !h1,
		MaxIdleConnsPerHost: 16,
		DisableCompression:  true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, f.VisitorAddr())
		},
	}
	if h1 {
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{
		Transport:     t,
		Timeout:       VisitorTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func newSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
