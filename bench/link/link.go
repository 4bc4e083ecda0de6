//go:build linux

// Package link makes two hosts, network namespaces, with one cable between them
// that takes its time and may lose packets.
package link

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses of the two ends.
const (
	EdgeAddr   = "10.99.0.1"
	DeviceAddr = "10.99.0.2"
)

// Link is the two hosts and their cable.
type Link struct {
	Edge, Device *Host

	loss  atomic.Int64 // of a thousand packets, each way
	lost  atomic.Int64
	ends  [2]*os.File
	carry sync.WaitGroup
}

// Host is one of the namespaces.
type Host struct{ ns string }

// prefix of the namespaces; the id of the process that made them follows, so that
// those of a process that was killed can be told.
const prefix = "iottbench-"

// Possible says why there can be no link here; nil: there can.
func Possible() error {
	if os.Geteuid() != 0 {
		return errors.New("networks of its own are for root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("ip is not installed (Debian: apt-get install iproute2)")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return err
	}
	return nil
}

// New makes a link on which a packet takes half a round trip each way.
func New(roundTrip time.Duration) (l *Link, err error) {
	sweep()
	name := prefix + strconv.Itoa(os.Getpid())
	l = &Link{Edge: &Host{name + "-edge"}, Device: &Host{name + "-device"}}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	for i, end := range []struct {
		host *Host
		addr string
	}{{l.Edge, EdgeAddr}, {l.Device, DeviceAddr}} {
		if err := end.host.make(); err != nil {
			return l, err
		}
		if l.ends[i], err = end.host.tun(); err != nil {
			return l, err
		}
		if err := end.host.ip("addr", "add", end.addr+"/24", "dev", device); err != nil {
			return l, err
		}
		// A queue that holds what TCP sends while this process waits for a CPU.
		if err := end.host.ip("link", "set", device, "txqueuelen", strconv.Itoa(under), "up"); err != nil {
			return l, err
		}
	}
	l.run(l.ends[0], l.ends[1], roundTrip/2)
	l.run(l.ends[1], l.ends[0], roundTrip/2)
	return l, nil
}

// SetLoss loses so many of a thousand packets from now on, in each direction.
func (l *Link) SetLoss(perMille int) { l.loss.Store(int64(perMille)) }

// Lost is how many packets have been lost on purpose.
func (l *Link) Lost() int64 { return l.lost.Load() }

// Close takes the cable and the hosts away.
func (l *Link) Close() {
	for _, end := range l.ends {
		if end != nil {
			end.Close()
		}
	}
	l.carry.Wait()
	for _, h := range []*Host{l.Edge, l.Device} {
		_ = exec.Command("ip", "netns", "del", h.ns).Run() // it may never have been made
	}
}

// under is how many packets may be under way each way: more than TCP's greatest
// windows here hold, so that the cable itself loses none.
const under = 1 << 15

// run carries packets from one end to the other. Its goroutines end with the ends.
func (l *Link) run(from, to *os.File, delay time.Duration) {
	type packet struct {
		due   time.Time
		bytes []byte
	}
	queue := make(chan packet, under)
	l.carry.Go(func() {
		defer close(queue)
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if rand.Int64N(1000) < l.loss.Load() {
				l.lost.Add(1)
				continue
			}
			select {
			case queue <- packet{time.Now().Add(delay), append([]byte(nil), buf[:n]...)}:
			default: // full: it drops, as routers do
			}
		}
	})
	l.carry.Go(func() {
		for p := range queue {
			if wait := time.Until(p.due); wait > 0 {
				time.Sleep(wait)
			}
			_, _ = to.Write(p.bytes) // an end that is closed takes none
		}
	})
}

// device is the name of the interface on both hosts.
const device = "bench0"

func (h *Host) make() error {
	if out, err := exec.Command("ip", "netns", "add", h.ns).CombinedOutput(); err != nil {
		return fmt.Errorf("ip netns add %s: %w: %s", h.ns, err, out)
	}
	if err := h.ip("link", "set", "lo", "up"); err != nil {
		return err
	}
	// What loss does depends on it, and machines differ.
	var wrote error
	err := h.Do(func() {
		wrote = os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte("reno"), 0)
	})
	return errors.Join(err, wrote)
}

func (h *Host) ip(args ...string) error {
	out, err := exec.Command("ip", append([]string{"-n", h.ns}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Args are the arguments of a program to run on the host. A nil host is this
// machine itself.
func (h *Host) Args(args ...string) []string {
	if h == nil {
		return args
	}
	return append([]string{"ip", "netns", "exec", h.ns}, args...)
}

// Do calls f on the host: sockets that f makes itself, rather than in another
// goroutine, are the host's for as long as they live. A nil host is this machine
// itself.
func (h *Host) Do(f func()) error {
	if h == nil {
		f()
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	other, err := os.Open(filepath.Join("/run/netns", h.ns))
	if err != nil {
		return err
	}
	defer other.Close()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("namespace %s: %w", h.ns, err)
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // this thread would take others' sockets along
		}
	}()
	f()
	return nil
}

// tun makes the host's interface, whose packets are read from and written to the
// file.
func (h *Host) tun() (f *os.File, err error) {
	failed := h.Do(func() { f, err = openTUN() }) // the namespace is that of the open
	return f, errors.Join(failed, err)
}

func openTUN() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(device)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("TUNSETIFF: %w", err)
	}
	return os.NewFile(uintptr(fd), "tun"), nil // not before: only now can it be polled
}

// sweep removes what processes left that were killed before they could.
func sweep() {
	names, _ := filepath.Glob(filepath.Join("/run/netns", prefix+"*")) // its pattern is well formed
	for _, name := range names {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), prefix), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			_ = exec.Command("ip", "netns", "del", filepath.Base(name)).Run() // another process may sweep, too
		}
	}
}
