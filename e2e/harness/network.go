package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Network is a router with hosts around it, each a network namespace with an
// address of its own. Nothing in it reaches the machine's network, nor is reached
// from there but through the methods here. It is gone with the test.
type Network struct {
	Router *Host

	name  string
	hosts int
}

// Host is a namespace of a Network. Its default route leads to the router.
type Host struct {
	Name string // in messages
	Addr string // IPv4

	ns      string
	network *Network
	number  int // of its subnet, and of the router's interface to it
	blocks  int // made so far
}

// namespaces begin with the word and the id of the process that made them, so
// that those of a process that was killed can be told.
const namespaces = "iott-"

var networks atomic.Int64

// NewNetwork makes a network with a router and no host. It needs root, and says
// so.
func NewNetwork(tb testing.TB) *Network {
	tb.Helper()
	if err := canNetwork(); err != nil {
		tb.Fatalf("this test makes networks of its own: %v", err)
	}
	sweepNamespaces()
	n := &Network{name: fmt.Sprintf("%s%d-%d", namespaces, os.Getpid(), networks.Add(1))}
	n.Router = n.namespace(tb, "router")
	n.Router.Sysctl(tb, "net/ipv4/ip_forward", "1")
	return n
}

func canNetwork() error {
	if os.Geteuid() != 0 {
		return errors.New("it must run as root")
	}
	for tool, pkg := range map[string]string{"ip": "iproute2", "ss": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install %s", tool, pkg)
		}
	}
	return nil
}

var sweepOnce sync.Once

// sweepNamespaces removes what processes left that were killed before they could.
func sweepNamespaces() {
	sweepOnce.Do(func() {
		out, err := exec.Command("ip", "netns", "list").Output()
		if err != nil {
			return // the first real command tells why
		}
		for line := range strings.Lines(string(out)) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			pid, _, ok := strings.Cut(strings.TrimPrefix(name, namespaces), "-")
			if !ok || !strings.HasPrefix(name, namespaces) {
				continue
			}
			if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
				_ = exec.Command("ip", "netns", "del", name).Run() // another process may sweep, too
			}
		}
	})
}

func (n *Network) namespace(tb testing.TB, name string) *Host {
	tb.Helper()
	h := &Host{Name: name, ns: n.name + "-" + name, network: n, number: n.hosts}
	tool(tb, "", "ip", "netns", "add", h.ns)
	tb.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", h.ns).CombinedOutput(); err != nil {
			tb.Errorf("namespace %s is left: %v: %s", h.ns, err, out)
		}
	})
	tool(tb, "", "ip", "-n", h.ns, "link", "set", "lo", "up")
	h.Sysctl(tb, "net/ipv4/tcp_congestion_control", "reno") // loss slows it, whatever the machine uses
	return h
}

// tool runs a program that must succeed.
func tool(tb testing.TB, stdin, name string, args ...string) string {
	tb.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdin, out)
	}
	return string(out)
}

// Host adds a host, on a subnet of its own.
func (n *Network) Host(tb testing.TB, name string) *Host {
	tb.Helper()
	n.hosts++
	h := n.namespace(tb, name)
	tool(tb, "", "ip", "link", "add", h.Interface(), "netns", n.Router.ns, "type", "veth", "peer", "name", "eth0", "netns", h.ns)
	h.plug(tb)
	return h
}

// FarHost adds a host whose packets take delay in each direction.
func (n *Network) FarHost(tb testing.TB, name string, delay time.Duration) *Host {
	tb.Helper()
	n.hosts++
	h := n.namespace(tb, name)
	near, err := openTUN(n.Router, h.Interface())
	if err != nil {
		tb.Fatal(err)
	}
	far, err := openTUN(h, "eth0")
	if err != nil {
		near.Close()
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	carry(&wg, near, far, delay)
	carry(&wg, far, near, delay)
	tb.Cleanup(func() {
		near.Close()
		far.Close()
		wg.Wait()
	})
	h.plug(tb)
	return h
}

// plug gives both ends of h's cable their addresses.
func (h *Host) plug(tb testing.TB) {
	tb.Helper()
	router := h.network.Router.ns
	tool(tb, "", "ip", "-n", router, "addr", "add", h.subnet(1)+"/24", "dev", h.Interface())
	tool(tb, "", "ip", "-n", router, "link", "set", h.Interface(), "up")
	tool(tb, "", "ip", "-n", h.ns, "link", "set", "eth0", "up")
	h.address(tb, h.subnet(2))
}

func (h *Host) subnet(last int) string { return fmt.Sprintf("10.77.%d.%d", h.number, last) }

// Interface is the router's interface to the host.
func (h *Host) Interface() string { return "to" + strconv.Itoa(h.number) }

func (h *Host) address(tb testing.TB, addr string) {
	tb.Helper()
	tool(tb, "", "ip", "-n", h.ns, "addr", "add", addr+"/24", "dev", "eth0")
	tool(tb, "", "ip", "-n", h.ns, "route", "replace", "default", "via", h.subnet(1))
	h.Addr = addr
}

// Readdress takes the host's address away and gives it another one, as networks
// do to a device that moves.
func (h *Host) Readdress(tb testing.TB) {
	tb.Helper()
	old := h.Addr
	_, last, _ := strings.Cut(old, fmt.Sprintf("10.77.%d.", h.number))
	n, err := strconv.Atoi(last)
	if err != nil {
		tb.Fatal(err)
	}
	tool(tb, "", "ip", "-n", h.ns, "addr", "del", old+"/24", "dev", "eth0")
	h.address(tb, h.subnet(n+1))
}

// Sysctl sets a variable of the host's network, named by its path.
func (h *Host) Sysctl(tb testing.TB, name, value string) {
	tb.Helper()
	h.Do(tb, func() {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			tb.Fatalf("%s: %v", h.Name, err)
		}
	})
}

// Nft runs commands of nft on the host.
func (h *Host) Nft(tb testing.TB, commands string) {
	tb.Helper()
	tool(tb, commands+"\n", "ip", "netns", "exec", h.ns, "nft", "-f", "-")
}

// Block drops what the host would send and receive, without a word, until lift is
// called: all, or the TCP packets from and to one of its ports.
func (h *Host) Block(tb testing.TB, port int) (lift func()) {
	tb.Helper()
	in, out := "", ""
	if port != 0 {
		in, out = fmt.Sprintf("tcp dport %d ", port), fmt.Sprintf("tcp sport %d ", port)
	}
	h.blocks++
	table := fmt.Sprintf("block%d", h.blocks)
	h.Nft(tb, fmt.Sprintf(`table ip %s {
	chain in { type filter hook input priority -200; %sdrop; }
	chain out { type filter hook output priority -200; %sdrop; }
}`, table, in, out))
	return func() { h.Nft(tb, "delete table ip "+table) }
}

// AbortConnection ends one of the host's TCP connections, known by its local port,
// with an error on both sides, as middleboxes do that have forgotten it.
func (h *Host) AbortConnection(tb testing.TB, port int) {
	tb.Helper()
	tool(tb, "", "ip", "netns", "exec", h.ns, "ss", "-4", "-t", "-K", "sport", "=", ":"+strconv.Itoa(port))
}

// Lossy loses that many of a thousand packets to a far host, and as many from it:
// of those that arrive, because what a sender hands down may be many in one.
func (h *Host) Lossy(tb testing.TB, perMille int) {
	tb.Helper()
	for at, from := range map[*Host]string{h.network.Router: h.Interface(), h: "eth0"} {
		at.Nft(tb, fmt.Sprintf(`table ip lossy%d {
	chain prerouting { type filter hook prerouting priority -200; iifname %q numgen random mod 1000 < %d counter drop; }
}`, h.number, from, perMille))
	}
}

// Lost is how many packets Lossy has dropped so far.
func (h *Host) Lost(tb testing.TB) (total int) {
	tb.Helper()
	for _, at := range []*Host{h.network.Router, h} {
		rules := tool(tb, "", "ip", "netns", "exec", at.ns, "nft", "list", "table", "ip", fmt.Sprintf("lossy%d", h.number))
		_, counter, _ := strings.Cut(rules, "counter packets ")
		count, _, _ := strings.Cut(counter, " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			tb.Fatalf("no counter in %s", rules)
		}
		total += n
	}
	return total
}

// Ports are the local ports of the host's TCP connections to a place.
func (h *Host) Ports(tb testing.TB, remote string) []int {
	tb.Helper()
	var ports []int
	for line := range strings.Lines(tool(tb, "", "ip", "netns", "exec", h.ns, "ss", "-Htn", "state", "established", "dst", remote)) {
		fields := strings.Fields(line) // queues, local, remote
		if len(fields) < 4 {
			continue
		}
		_, port, err := net.SplitHostPort(fields[2])
		if err != nil {
			tb.Fatalf("ss: %q", line)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			tb.Fatalf("ss: %q", line)
		}
		ports = append(ports, n)
	}
	return ports
}

// Args are the arguments of a command to run on the host.
func (h *Host) Args(args ...string) []string {
	return append([]string{"ip", "netns", "exec", h.ns}, args...)
}

// Do calls f on the host: sockets that f makes itself, rather than in another
// goroutine, are the host's for as long as they live.
func (h *Host) Do(tb testing.TB, f func()) {
	tb.Helper()
	if err := h.do(f); err != nil {
		tb.Fatal(err)
	}
}

// Dial connects to an IP address and port from the host.
func (h *Host) Dial(ctx context.Context, addr string) (c net.Conn, err error) {
	failed := h.do(func() { c, err = new(net.Dialer).DialContext(ctx, "tcp", addr) })
	return c, errors.Join(failed, err)
}

// Listen listens on the host, for the length of the test.
func (h *Host) Listen(tb testing.TB, port int) net.Listener {
	tb.Helper()
	var l net.Listener
	h.Do(tb, func() {
		var err error
		if l, err = net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port)); err != nil {
			tb.Fatalf("%s: %v", h.Name, err)
		}
	})
	tb.Cleanup(func() { l.Close() })
	return l
}

// StartOrigin is StartOrigin on the host's loopback.
func (h *Host) StartOrigin(tb testing.TB) (o *Origin) {
	tb.Helper()
	h.Do(tb, func() { o = StartOrigin(tb) })
	return o
}

// StartAgent is StartAgent on the host.
func (h *Host) StartAgent(tb testing.TB, f Face, s AgentSetup) *Agent {
	tb.Helper()
	return StartAgent(tb, f, h.agent(tb, f, s))
}

// AgentToEnd is AgentToEnd on the host.
func (h *Host) AgentToEnd(tb testing.TB, f Face, within time.Duration, s AgentSetup) (status int, stdout, stderr string) {
	tb.Helper()
	return AgentToEnd(tb, f, within, h.agent(tb, f, s))
}

func (h *Host) agent(tb testing.TB, f Face, s AgentSetup) AgentSetup {
	tb.Helper()
	s.Command = h.Args(Binary(tb, "iottunnel-agent"))
	if f.CAFile() == "" {
		s.Flags = append([]string{"--allow-plaintext"}, s.Flags...)
	}
	return s
}

// Visitor is Visitor from the host.
func (h *Host) Visitor(tb testing.TB, f Face, h1 bool) *http.Client {
	tb.Helper()
	c := Visitor(tb, f, h1)
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return h.Dial(ctx, f.VisitorAddr())
	}
	return c
}

// BlockPeer drops what the host would send to some addresses, and receive from them,
// until lift is called.
func (h *Host) BlockPeer(tb testing.TB, addrs ...string) (lift func()) {
	tb.Helper()
	h.blocks++
	table, set := fmt.Sprintf("block%d", h.blocks), strings.Join(addrs, ", ")
	h.Nft(tb, fmt.Sprintf(`table ip %s {
	chain in { type filter hook input priority -200; ip saddr { %s } drop; }
	chain out { type filter hook output priority -200; ip daddr { %s } drop; }
}`, table, set, set))
	return func() { h.Nft(tb, "delete table ip "+table) }
}

// Names has what runs on the host, from its next start on, find these names at these
// addresses, each a line of /etc/hosts: several lines of one name are as many addresses.
func (h *Host) Names(tb testing.TB, lines []string) {
	tb.Helper()
	dir := filepath.Join("/etc/netns", h.ns) // where `ip netns exec` looks
	text := "127.0.0.1 localhost\n" + strings.Join(lines, "\n") + "\n"
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "hosts"), []byte(text), 0o644)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
}
