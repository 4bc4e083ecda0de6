package tunnelcore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// startBeside starts another node on the registry of e, which has its public ports
// on an address of its own.
func (e *edge) startBeside(node, bind string, change func(*TCPPorts)) *edge {
	e.t.Helper()
	other := &edge{t: e.t, log: new(lockedBuffer)}
	s := *e.hub.settings.Load()
	tcp := *s.TCP
	tcp.Bind = []string{bind}
	if change != nil {
		change(&tcp)
	}
	s.TCP, s.Logger = &tcp, slog.New(slog.NewTextHandler(other.log, nil))
	hub, err := New(Config{Node: node, Registry: shared{e.hub.reg}, Settings: s})
	if err != nil {
		e.t.Fatal(err)
	}
	other.hub = hub
	e.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no patience with streams
		if err := hub.Shutdown(ctx); err != nil {
			e.t.Errorf("shutdown of %s: %v", node, err)
		}
		if e.t.Failed() {
			e.t.Logf("log of %s:\n%s", node, other.log)
		}
	})
	return other
}

// opens waits until somebody listens there, or nobody does.
func opens(t *testing.T, address string, want bool) {
	t.Helper()
	eventually(t, address+" is open: "+strconv.FormatBool(want), func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		// A reset comes from whoever listens, and has nobody to lead to.
		return errors.Is(err, syscall.ECONNREFUSED) != want
	})
}

// at is that port at another address.
func at(t *testing.T, host, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(host, port)
}

func TestPublicPortsOnEveryNode(t *testing.T) {
	one := startPorts(t, 4, nil)
	two := one.startBeside("edge-2", "127.0.0.2", nil)
	frugal := one.startBeside("edge-3", "127.0.0.3", func(tcp *TCPPorts) { tcp.Listen = ListenOwner })

	h := hello("cam-17")
	a := one.connect(h)
	there := at(t, "127.0.0.2", a.public())
	opens(t, there, true)
	late := one.startBeside("edge-4", "127.0.0.4", nil)                           // finds it leased
	eventually(t, "it is open there", func() bool { return openPorts(late) > 0 }) // without a visitor, who would expect the device
	if n := openPorts(frugal); n != 0 {
		t.Errorf("%d ports open on a node that listens for its own devices only", n)
	}

	// They stay while the device is away, on the node that it was at as well.
	a.sock.Close()
	one.event("offline cam-17")
	one.hub.ports.release("cam-17") // as when it is not expected back
	opens(t, a.public(), true)
	opens(t, there, true)

	// A node that is to listen for its own devices only closes the others'.
	s := *late.hub.settings.Load()
	tcp := *s.TCP
	tcp.Listen = ListenOwner
	s.TCP = &tcp
	late.hub.Update(s)
	eventually(t, "it is closed there", func() bool { return openPorts(late) == 0 })

	// What is given back is closed everywhere.
	h.Ports = []wire.Port{{Number: 80, Kind: wire.HTTP}}
	one.connect(h)
	opens(t, a.public(), false)
	opens(t, there, false)
	for name, e := range map[string]*edge{"one": one, "two": two, "late": late} {
		eventually(t, "nothing is kept of it by "+name, func() bool { return openPorts(e) == 0 })
	}
}

func openPorts(e *edge) int {
	e.hub.ports.mu.Lock()
	defer e.hub.ports.mu.Unlock()
	return len(e.hub.ports.open) + len(e.hub.ports.by) + len(e.hub.ports.refused)
}

// listedPorts is a registry that says of public ports what it is told to.
type listedPorts struct {
	registry.Registry
	hints registry.Hints

	mu   sync.Mutex
	list []registry.PortLease
	err  error
	now  int64

	failed int // calls
}

func (r *listedPorts) Ports(_ context.Context, version int64) ([]registry.PortLease, int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		r.failed++
	}
	if version == r.now {
		return nil, r.now, r.err
	}
	return r.list, r.now, r.err
}

func (r *listedPorts) Hints(ctx context.Context) <-chan registry.Hint { return r.hints.Subscribe(ctx) }

// say changes the list, and hints at it.
func (r *listedPorts) say(err error, list ...registry.PortLease) {
	r.mu.Lock()
	r.list, r.err = append([]registry.PortLease{}, list...), err
	r.now++
	r.mu.Unlock()
	r.hints.Send(registry.Hint{Ports: true})
}

// startListed starts an edge that has the ports of a registry of which the test
// says what it lists.
func startListed(t *testing.T, first, last uint16) (*edge, *listedPorts) {
	reg := &listedPorts{Registry: newAway(t).Registry}
	return startEdgeOver(t, reg, func(s *Settings) {
		s.TCP = &TCPPorts{First: first, Last: last, Bind: []string{"127.0.0.1"}}
	}), reg
}

func leased(public uint16) registry.PortLease {
	return registry.PortLease{Public: public, Device: "cam-" + strconv.Itoa(int(public)), Port: 22}
}

func loopback(port uint16) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))) }

func TestPublicPortsFollow(t *testing.T) {
	first, last := freePorts(t, 3)
	e, reg := startListed(t, first, last-1)
	reg.say(nil, leased(first), leased(last))
	opens(t, loopback(first), true)
	opens(t, loopback(last), false) // out of the range

	// A registry that has lost data closes nothing, but opens what is leased by then.
	reg.say(errors.New("lost"), leased(first+1))
	opens(t, loopback(first+1), true)
	opens(t, loopback(first), true)

	// One that does not answer changes nothing.
	reg.mu.Lock()
	reg.failed = 0
	reg.mu.Unlock()
	reg.say(errors.New("away"))
	eventually(t, "it was asked again", func() bool {
		reg.mu.Lock()
		defer reg.mu.Unlock()
		return reg.failed > 0
	})
	opens(t, loopback(first), true)

	e.hub.ports.mu.Lock()
	kept := e.hub.ports.open[first+1]
	e.hub.ports.mu.Unlock()
	other := leased(first)
	other.Device = "another"
	reg.say(nil, other, leased(first+1))
	eventually(t, "the port is another device's", func() bool {
		e.hub.ports.mu.Lock()
		defer e.hub.ports.mu.Unlock()
		return e.hub.ports.open[first] != nil && e.hub.ports.open[first].Device == "another" && len(e.hub.ports.by) == 2
	})
	e.hub.ports.mu.Lock()
	if e.hub.ports.open[first+1] != kept {
		t.Error("a port that nothing has happened to was opened anew")
	}
	e.hub.ports.mu.Unlock()
	reg.say(nil)
	opens(t, loopback(first), false)
	opens(t, loopback(first+1), false)
}

// TestPublicPortOfAStranger opens a port once a stranger has left it, and says once
// that it could not.
func TestPublicPortOfAStranger(t *testing.T) {
	first, last := freePorts(t, 2)
	stranger, err := net.Listen("tcp", loopback(first))
	if err != nil {
		t.Fatal(err)
	}
	e, reg := startListed(t, first, last)
	again := func() {
		p := e.hub.ports
		p.mu.Lock()
		for _, r := range p.refused {
			r.next = time.Now()
		}
		p.mu.Unlock()
		p.retry(e.hub.settings.Load().TCP)
	}
	reg.say(nil, leased(first), leased(last))
	opens(t, loopback(last), true)
	again()
	again()
	if n := strings.Count(e.log.String(), "another program"); n != 1 {
		t.Errorf("said %d times that a port is somebody else's", n)
	}
	e.hub.ports.mu.Lock()
	if r := e.hub.ports.refused[first]; r == nil || time.Until(r.next) < firstRefusal || time.Until(r.next) > lastRefusal {
		t.Errorf("what was refused three times: %+v", r)
	}
	e.hub.ports.mu.Unlock()
	stranger.Close()
	again()
	e.hub.ports.mu.Lock()
	if e.hub.ports.open[first] == nil || len(e.hub.ports.refused) > 0 {
		t.Errorf("the port is free, and has not been opened: %v", e.hub.ports.refused)
	}
	e.hub.ports.mu.Unlock()
	c, err := net.Dial("tcp", loopback(first))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a visitor of a device that is nowhere: %v, want a reset", err)
	}
}

// TestPublicPortTold tells the agent an address that came late.
func TestPublicPortTold(t *testing.T) {
	first, last := freePorts(t, 1)
	stranger, err := net.Listen("tcp", loopback(first))
	if err != nil {
		t.Fatal(err)
	}
	e := startEdge(t, func(s *Settings) {
		s.TCP = &TCPPorts{First: first, Last: last, Bind: []string{"127.0.0.1"}, Host: "127.0.0.1"}
	})
	a := e.connect(hello("cam-17"))
	if a.public() != "" {
		t.Fatalf("public port %s, which a stranger has", a.public())
	}
	stranger.Close()
	e.hub.ports.mu.Lock()
	for _, r := range e.hub.ports.refused {
		r.next = time.Now()
	}
	e.hub.ports.mu.Unlock()
	e.hub.ports.retry(e.hub.settings.Load().TCP)
	for {
		if p, ok := a.receive().(*wire.PortInfo); ok && p.Port == 22 && p.Addr == loopback(first) {
			return
		}
	}
}

// TestManyPublicPorts opens thousands, and changes few of them.
func TestManyPublicPorts(t *testing.T) {
	const first, count = 11000, 4000
	// An address that no other run of this test has.
	bind := fmt.Sprintf("127.%d.%d.9", 1+os.Getpid()>>8&127, os.Getpid()&255)
	reg := &listedPorts{Registry: newAway(t).Registry}
	e := startEdgeOver(t, reg, func(s *Settings) {
		s.TCP = &TCPPorts{First: first, Last: first + count, Bind: []string{bind}}
	})
	list := make([]registry.PortLease, count)
	for i := range list {
		list[i] = leased(first + uint16(i))
	}
	before := memory()
	reg.say(nil, list...)
	number := func() int {
		e.hub.ports.mu.Lock()
		defer e.hub.ports.mu.Unlock()
		return len(e.hub.ports.open)
	}
	eventually(t, "all are open", func() bool { return number() == count })
	each := (memory() - before) / count
	t.Logf("%d bytes for each port", each)
	if each > 16<<10 {
		t.Errorf("a port takes %d bytes", each)
	}
	reg.say(nil, append(list[1:], leased(first+count))...)
	eventually(t, "one went, and another came", func() bool {
		e.hub.ports.mu.Lock()
		defer e.hub.ports.mu.Unlock()
		return e.hub.ports.open[first] == nil && e.hub.ports.open[first+count] != nil
	})
	if n := number(); n != count {
		t.Errorf("%d are open, want %d", n, count)
	}
	reg.say(nil)
	eventually(t, "none is open", func() bool { return number() == 0 })
}

// memory is what heap and stacks take.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestPublicPortOfAnotherNode has host and port lead to the device through every
// node, wherever it is and goes.
func TestPublicPortOfAnotherNode(t *testing.T) {
	first, last := freePorts(t, 2)
	hosts := []string{"127.0.0.21", "127.0.0.22", "127.0.0.23"}
	started := 0
	nodes := startNodes(t, len(hosts), func(s *Settings) {
		s.TCP = &TCPPorts{First: first, Last: last, Bind: []string{hosts[started]}, Host: "devices.test"}
		started++
	})
	h := hello("cam-17")
	var address string
	for owner, n := range []*node{nodes[0], nodes[2], nodes[1]} {
		a := n.connect(h)
		if address != "" && a.public() != address {
			t.Errorf("%s became %s", address, a.public())
		}
		address = a.public()
		for _, host := range hosts {
			there := at(t, host, address)
			var v net.Conn
			eventually(t, there+" is open", func() (ok bool) {
				c, err := net.Dial("tcp", there)
				v = c
				return err == nil
			})
			o := a.receive().(*wire.Open)
			if o.Port != 22 || o.From != v.LocalAddr().String() {
				t.Errorf("owner %d, visitor of %s: open %+v from %s", owner, there, o, v.LocalAddr())
			}
			c := a.transfer(o)
			carries(t, v, c)
			c.Abort()
			if _, err := v.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after an abort the visitor of %s reads %v", there, err)
			}
			v.Close()
		}
	}
}
