package conformance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Vars is what an agent has to be told, which differs from case to case.
type Vars struct {
	URL, URL2        string // of the edge, and of another one of the same
	Device, Token    string
	CA               []byte // PEM; nil without TLS
	Echo, HTTP, Dead string // HOST:PORT of services, the last of none
}

// Process is an agent that was started.
type Process interface {
	// Stop asks it to end, as its operator would; an error says that this system
	// knows no way to.
	Stop() error
	// Kill ends it and returns when it has ended.
	Kill()
	Done() <-chan struct{}
	// Output is the end of what it said.
	Output() string
}

// Launcher starts an agent.
type Launcher func(Vars) (Process, error)

// Config says how to run. Zero values are usable where a field has no comment on it.
type Config struct {
	Launch      Launcher // nil: the device connects by itself
	UsesSecond  bool     // the agent is told Vars.URL2 too
	OwnService  bool     // the agent's port EchoPort leads to Vars.Echo
	Profile     string   // basic, full, inline, or auto (default): what the agent offers
	TLS         bool
	Slow        bool          // try what takes minutes
	Only        []string      // numbers of rules; empty: all
	Jobs        int           // cases at once; 1 where Listen names a port or Launch is nil
	Patience    time.Duration // for what comes at once; default 5 s
	MaxBackoff  time.Duration // of the agent; default 30 s (protocol 5.6)
	ResetWithin time.Duration // how long to wait for a device by itself; default 2 minutes
	Device      string        // the id of the device; default conformance-1
	Token       string        // its secret; by default one that is drawn for the run
	EchoPort    uint16        // the device's port with the echo service; default 7
	HTTPPort    uint16        // with a web page; default 80
	DeadPort    uint16        // with a service that is not there; default 9
	Listen      string        // default 127.0.0.1:0
	Echo        string        // where the echo service listens; default 127.0.0.1:0
	HTTP        string        // where the web page is; default 127.0.0.1:0
	Network     func(network, address string) (net.Listener, error)
	Elsewhere   func() string                    // an address of this machine that is not loopback; empty if there is none
	Say         func(format string, args ...any) // told what the person has to know
	Done        func(Result)                     // told each result as it comes, one at a time
}

func (c *Config) defaults() {
	if c.Profile == "" {
		c.Profile = "auto"
	}
	if c.Jobs == 0 {
		c.Jobs = 1
	}
	if c.Patience == 0 {
		c.Patience = 5 * time.Second
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = 30 * time.Second
	}
	if c.ResetWithin == 0 {
		c.ResetWithin = 2 * time.Minute
	}
	if c.Device == "" {
		c.Device = "conformance-1"
	}
	if c.Token == "" {
		c.Token = "t0ken-" + wire.NewID()
	}
	for _, p := range []struct {
		port  *uint16
		value uint16
	}{{&c.EchoPort, 7}, {&c.HTTPPort, 80}, {&c.DeadPort, 9}} {
		if *p.port == 0 {
			*p.port = p.value
		}
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if c.Echo == "" {
		c.Echo = "127.0.0.1:0"
	}
	if c.HTTP == "" {
		c.HTTP = "127.0.0.1:0"
	}
	if c.Network == nil {
		c.Network = net.Listen
	}
	if c.Elsewhere == nil {
		c.Elsewhere = elsewhere
	}
	if c.Say == nil {
		c.Say = func(string, ...any) {}
	}
	if c.Done == nil {
		c.Done = func(Result) {}
	}
	if _, port, err := net.SplitHostPort(c.Listen); c.Launch == nil || err == nil && port != "0" {
		c.Jobs = 1 // there is one address
	}
}

// elsewhere is an IPv4 address of this machine that others reach, or none.
func elsewhere() string {
	addrs, _ := net.InterfaceAddrs() // without them there is none
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}

// profiles are the names for Config.Profile, and the capabilities that count in each.
var profiles = map[string]wire.Caps{
	"basic":  wire.Redirect,
	"full":   wire.Redirect | wire.Early | wire.Reuse,
	"inline": wire.Redirect | wire.Early | wire.Inline,
	"auto":   wire.Redirect | wire.Early | wire.Reuse | wire.Inline,
}

// Check says what is wrong with c; nil if nothing is.
func (c *Config) Check() error {
	if _, ok := profiles[c.Profile]; !ok && c.Profile != "" {
		return fmt.Errorf("%q is no profile: basic, full, inline or auto", c.Profile)
	}
	for _, number := range c.Only {
		if !slices.ContainsFunc(Rules, func(r Rule) bool { return r.under(number) }) {
			return fmt.Errorf("%q is no rule, such as 5.1, nor a section, such as 5", number)
		}
	}
	return nil
}

// Run tries the cases, and returns their results in the order of the rules. The error
// says why nothing could be tried.
func Run(ctx context.Context, cfg Config) ([]Result, error) {
	cfg.defaults()
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	x := &run{cfg: &cfg}
	if err := x.meet(ctx); err != nil {
		return nil, err
	}
	defer x.end()
	var chosen []*testCase
	for i := range cases {
		if c := &cases[i]; cfg.chooses(c.rule) {
			chosen = append(chosen, c)
		}
	}
	results := make([]Result, len(chosen))
	slots := make(chan struct{}, cfg.Jobs)
	var wg sync.WaitGroup
	var telling sync.Mutex
	for i, c := range chosen {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			results[i] = x.try(ctx, c)
			telling.Lock()
			defer telling.Unlock()
			cfg.Done(results[i])
		})
	}
	wg.Wait()
	return results, ctx.Err()
}

func (c *Config) chooses(number string) bool {
	return len(c.Only) == 0 || slices.ContainsFunc(c.Only, func(only string) bool {
		return number == only || strings.HasPrefix(number, only+".")
	})
}

// run is what all cases share.
type run struct {
	cfg   *Config
	caps  wire.Caps
	ports []wire.Port
	one   *rig // where the agent is started by hand; else nil
}

// meet has a look at the agent, to know which cases it is for.
func (x *run) meet(ctx context.Context) error {
	r, err := newRig(ctx, x.cfg)
	if err != nil {
		return err
	}
	if x.cfg.Launch == nil {
		x.one = r
		x.cfg.Say("the edge is %s, the device %q, its token %q", r.vars.URL, r.vars.Device, r.vars.Token)
		x.cfg.Say("the echo service is at %s, a web page at %s", r.vars.Echo, r.vars.HTTP)
		x.cfg.Say("waiting for the device")
	} else {
		defer r.close()
		if r.agent, err = x.cfg.Launch(r.vars); err != nil {
			return err
		}
	}
	within := connectTime + x.cfg.Patience
	if x.one != nil {
		within = x.cfg.ResetWithin
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case h := <-r.controls:
		hello := h.query()
		x.ports, x.caps = hello.Ports, hello.Caps&profiles[x.cfg.Profile]
		if x.caps.Has(wire.Reuse | wire.Inline) {
			x.caps &^= wire.Inline // they do not count together (protocol 3.5)
		}
		h.conn.Close()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ended():
	case <-timer.C:
	}
	why := fmt.Sprintf("no handshake of a control socket came to %s within %v", r.vars.URL, within)
	select {
	case err := <-r.failures:
		why += fmt.Sprintf("; a connection failed: %v", err)
	default:
	}
	if r.agent != nil {
		why += lastWords(r.agent)
	}
	return errors.New(why)
}

func (x *run) end() {
	if x.one != nil {
		x.one.close()
	}
}

// try runs a case.
func (x *run) try(ctx context.Context, c *testCase) (result Result) {
	began := time.Now()
	result = Result{Rule: c.rule, Name: c.name}
	defer func() { result.Took = time.Since(began) }()
	r := x.one
	if r == nil {
		var err error
		if r, err = newRig(ctx, x.cfg); err != nil {
			result.Verdict, result.Why = NotTried, err.Error()
			return result
		}
		defer r.close()
	} else {
		r.renew()
	}
	r.caps, r.ports = x.caps, x.ports
	if c.needs&another == 0 { // nobody is there, so that the agent has one edge
		scheme, _, _ := strings.Cut(r.vars.URL, "://")
		r.vars.URL2 = scheme + "://" + r.vars.Dead
	}
	r.ownService, r.usesSecond = x.cfg.OwnService, x.cfg.UsesSecond
	if why := c.missing(r); why != "" {
		result.Verdict, result.Why = NotTried, why
		return result
	}
	if x.cfg.Launch != nil && c.needs&unstarted == 0 {
		var err error
		if r.agent, err = x.cfg.Launch(r.vars); err != nil {
			result.Verdict, result.Why = NotTried, err.Error()
			return result
		}
	}
	t := &T{rig: r, c: c, result: &result}
	done := make(chan struct{})
	go func() { // ends here
		defer close(done)
		c.run(t)
	}()
	<-done
	if result.Verdict == Fail {
		result.Log = r.log()
	}
	return result
}
