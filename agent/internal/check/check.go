// Package check says of each hop between a device and its visitors whether it works, and what cures it.
package check

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/agent"
)

// Verdict is what was found of a hop.
type Verdict string

// The verdicts.
const (
	OK      Verdict = "ok"
	Warning Verdict = "warning" // works, but somebody should know
	Failed  Verdict = "failed"
	Skipped Verdict = "skipped" // not tried, as an earlier hop failed
)

// Cause says whose business a failure is.
type Cause int

// The causes, the graver ones last.
const (
	None        Cause = iota
	Unreachable       // a host, a program or the network does not answer as it should
	Refused           // the edge was reached, and says no
)

// Finding is what was found of a hop.
type Finding struct {
	Server  string  `json:"server,omitempty"` // the --server that the hop leads to
	Hop     string  `json:"hop"`
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"`
	Cure    string  `json:"cure,omitempty"`
	Cause   Cause   `json:"-"`
}

// Subject says what is checked.
type Subject struct {
	// Config is what an agent would run with; agent.New has to accept it.
	Config agent.Config
	// Running, if set, asks the agent that may run on this device already: whether it
	// runs, and what it is about.
	Running func(ctx context.Context) (Running, bool)
}

// Running is what an agent that runs says of itself.
type Running struct {
	Device string
	State  string
	Server string
	Name   string // its hostname
}

// Time limits.
const (
	lookupTime    = 10 * time.Second
	connectTime   = 10 * time.Second
	handshakeTime = 15 * time.Second
	tunnelTime    = 60 * time.Second
	targetTime    = 5 * time.Second
)

// Run checks the way to each server, hop by hop until one fails, and then each
// service that is forwarded. It tells each finding as it is made, and returns the
// gravest cause of a failure. It changes nothing on the device.
//
// What an edge sees: one handshake that lacks its parameter `ports`, which every
// edge refuses before it looks at a credential (protocol §3.1). Then, with the
// credential, one that only asks (§3.6): a device that is connected is left alone,
// even if it would give no sign of life. If none is, the device connects for a moment,
// under the name that it has or will have, and leaves at once (§5.3).
func Run(ctx context.Context, s Subject, tell func(Finding)) (Cause, error) {
	a, err := agent.New(s.Config)
	if err != nil {
		return None, err
	}
	c := &checker{Subject: s, agent: a, tell: tell, now: time.Now}
	err = c.all(ctx)
	return c.gravest, err
}

func (c *checker) all(ctx context.Context) error {
	c.clockAlone()
	for _, server := range c.Config.Servers {
		c.server(ctx, server)
	}
	for _, f := range c.Config.Forwards {
		c.target(ctx, f)
	}
	return ctx.Err()
}

type checker struct {
	Subject
	agent   *agent.Agent
	tell    func(Finding)
	now     func() time.Time
	clock   bool // it has been judged
	gravest Cause
}

func (c *checker) report(f Finding) {
	c.gravest = max(c.gravest, f.Cause)
	c.tell(f)
}

// way is the way to a server, as far as it has been made.
type way struct {
	*checker
	server string // as configured
	url    *url.URL
	proxy  *url.URL // nil: none
	addrs  []string // of the proxy, or else of the server
	conn   net.Conn
	date   string                 // that an answer of the edge bears
	asked  func() (answer, error) // what probe has brought; nil: it was not called
}

// hops are those of a way, in order.
var hops = []struct {
	name string
	try  func(w *way, ctx context.Context) (Finding, bool)
}{
	{"dns", (*way).lookUp},
	{"tcp", (*way).connect},
	{"proxy", (*way).tunnelThrough},
	{"tls", (*way).secure},
	{"upgrade", (*way).upgrade},
	{"tunnel", (*way).tunnel},
}

// server goes along the way to one server, and reports each hop: those behind one that
// fails as not tried.
func (c *checker) server(ctx context.Context, server string) {
	w := &way{checker: c, server: server}
	defer func() {
		if w.conn != nil {
			w.conn.Close()
		}
	}()
	failed := w.find()
	for _, h := range hops {
		if failed != "" {
			if h.name != "proxy" || w.proxy != nil {
				c.report(Finding{Server: server, Hop: h.name, Verdict: Skipped, Text: "not tried, because " + failed + " failed"})
			}
			continue
		}
		f, told := h.try(w, ctx)
		if !told {
			continue
		}
		f.Server, f.Hop = server, h.name
		c.report(f)
		w.clockAgainst(w.date)
		if f.Verdict == Failed {
			failed = h.name
		}
	}
}

// find parses what is configured, and asks for the proxy. It returns what failed.
func (w *way) find() string {
	u, err := url.Parse(w.server)
	if err == nil {
		w.proxy, err = w.agent.ProxyFor(w.server)
	}
	if err == nil && w.proxy != nil && (w.proxy.Hostname() == "" || w.proxy.Scheme != "http" && w.proxy.Scheme != "https") {
		err = fmt.Errorf("its URL is not http://HOST:PORT or https://HOST:PORT")
	}
	if err != nil {
		w.report(Finding{
			Server: w.server, Hop: "proxy", Verdict: Failed, Cause: Unreachable, Text: err.Error(),
			Cure: "correct --proxy, or HTTPS_PROXY and HTTP_PROXY in the environment",
		})
		return "proxy"
	}
	w.url = u
	return ""
}

// failure makes a finding of a hop that does not work.
func failure(cure, format string, args ...any) Finding {
	return Finding{Verdict: Failed, Cause: Unreachable, Text: fmt.Sprintf(format, args...), Cure: cure}
}

// secureURL reports whether TLS is spoken to u.
func secureURL(u *url.URL) bool { return u.Scheme == "wss" || u.Scheme == "https" }

// hostPort is u's host with its port, the scheme's if it names none.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if secureURL(u) {
			port = "443"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// took is how long something took, for people.
func took(since, now time.Time) string {
	return fmt.Sprintf("%d ms", max(now.Sub(since), 0).Milliseconds())
}

// printable cuts a peer's text and replaces what could act on a terminal.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 || r == 0x202e {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
