//go:build linux

// Package ways sets up the ways from a visitor to a service that a benchmark
// compares: the tunnel, and what can stand in its place.
package ways

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/bench/link"
	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/proc"
)

// Names of ways.
const (
	Direct    = "direct"
	Relays    = "two relays"
	RelaysTLS = "two relays, TLS"
	Caddy     = "Caddy alone"
	SSH       = "ssh -R"
	Basic     = "iottunnel basic"
	BasicTLS  = "iottunnel basic, TLS"
	Full      = "iottunnel full"
	FullTLS   = "iottunnel full, TLS"
)

// All are the names, in the order in which they are shown.
var All = []string{Direct, Relays, RelaysTLS, Caddy, SSH, Basic, BasicTLS, Full, FullTLS}

// Way is one way to the service, ready to be used.
type Way struct {
	Name   string
	HTTP   *load.Target // by the Host header, through an HTTP proxy; nil: it has none
	TCP    *load.Target // by the port alone; nil: it has none
	Edge   []int        // processes on the visitors' side, without what all ways share
	Device []int        // and on the device's
}

// Processes are those of both sides.
func (w *Way) Processes() []int { return append(w.Edge[:len(w.Edge):len(w.Edge)], w.Device...) }

// Config says what to set up.
type Config struct {
	Bin  string     // folder of the built programs
	Self string     // the benchmark's own program, which also plays service and relay
	Link *link.Link // between edge and device; nil: both on loopback
	Ways []string   // which, by name
}

// Setup is a service and some ways to it.
type Setup struct {
	Ways    []*Way
	Missing []string // why others that were asked for are not there

	config  Config
	group   *proc.Group
	service string
	edge    *Edge
}

// startTime is enough for any of the programs on a busy machine.
const startTime = 30 * time.Second

// New sets all up. What cannot be set up here, for instance because a program is
// not installed, is in Missing.
func New(ctx context.Context, c Config) (s *Setup, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("the programs do not start in time"))
	defer cancel()
	s = &Setup{config: c}
	if s.config.Bin, err = filepath.Abs(c.Bin); err != nil {
		return nil, err
	}
	if s.group, err = proc.NewGroup(); err != nil {
		return nil, err
	}
	group := s.group
	defer func() {
		if err != nil {
			group.Close()
		}
	}()
	if s.service, err = s.startService(ctx); err != nil {
		return nil, err
	}
	for _, name := range c.Ways {
		way, err := s.start(ctx, name)
		var missing Missing
		if errors.As(err, &missing) {
			s.Missing = append(s.Missing, name+": "+missing.Error())
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		way.Name = name
		s.Ways = append(s.Ways, way)
	}
	return s, nil
}

// Missing is why a way is left out.
type Missing string

func (m Missing) Error() string { return string(m) }

// Close ends all programs.
func (s *Setup) Close() { s.group.Close() }

// Find is the way of that name; nil: it is not there.
func (s *Setup) Find(name string) *Way {
	for _, w := range s.Ways {
		if w.Name == name {
			return w
		}
	}
	return nil
}

func (s *Setup) start(ctx context.Context, name string) (*Way, error) {
	switch name {
	case Direct:
		return &Way{TCP: s.target(s.service), HTTP: s.target(s.service)}, nil
	case Relays:
		return s.startRelays(ctx, false)
	case RelaysTLS:
		return s.startRelays(ctx, true)
	case Caddy:
		return s.startCaddy(ctx)
	case SSH:
		return s.startSSH(ctx)
	case Basic, BasicTLS, Full, FullTLS:
		return s.startTunnel(ctx, name)
	default:
		return nil, fmt.Errorf("no such way: there are %s", strings.Join(All, "; "))
	}
}

// edgeHost and edgeAddr are where programs of the visitors' side run, deviceHost
// and deviceAddr those of the device's.
func (s *Setup) edgeHost() *link.Host {
	if s.config.Link == nil {
		return nil
	}
	return s.config.Link.Edge
}

func (s *Setup) deviceHost() *link.Host {
	if s.config.Link == nil {
		return nil
	}
	return s.config.Link.Device
}

func (s *Setup) edgeAddr() string {
	if s.config.Link == nil {
		return "127.0.0.1"
	}
	return link.EdgeAddr
}

func (s *Setup) deviceAddr() string {
	if s.config.Link == nil {
		return "127.0.0.1"
	}
	return link.DeviceAddr
}

// target is what visitors at the edge reach at an address.
func (s *Setup) target(addr string) *load.Target {
	return &load.Target{Addr: addr, Host: addr, From: s.edgeHost()}
}

func (s *Setup) startService(ctx context.Context) (addr string, err error) {
	_, addr, err = s.self(ctx, s.deviceHost(), "service", "serve", s.deviceAddr()+":0")
	return addr, err
}

// self starts the benchmark's own program in another role, and returns its first
// line.
func (s *Setup) self(ctx context.Context, on *link.Host, name string, args ...string) (*proc.Proc, string, error) {
	p, err := s.group.Start(proc.Spec{Name: name, Args: on.Args(append([]string{s.config.Self}, args...)...)})
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	line, err := p.Line(ctx)
	return p, line, err
}

// tried counts the ports that freePorts has looked at: none is handed out twice,
// as whoever got it may not listen yet, or on a network of its own.
var tried atomic.Int64

// freePorts are n ports in a row that nothing on loopback listens on, below those
// that the system hands out itself.
func freePorts(n int) (first int, err error) {
	const lowest, ports = 20000, 12000
	for range ports / n {
		first = lowest + (os.Getpid()*97+int(tried.Add(int64(n)))-n)%(ports-n)
		if free(first, n) {
			return first, nil
		}
	}
	return 0, errors.New("no ports are free between 20000 and 32000")
}

func free(first, n int) bool {
	for port := first; port < first+n; port++ {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}
