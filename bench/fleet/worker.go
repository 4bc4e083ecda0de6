//go:build linux

package fleet

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config is the devices of one process.
type Config struct {
	Server    string        // ws:// or wss:// URLs of the edge's nodes, with commas in between
	CA        string        // file with certificates to trust; empty: the system's
	Token     string        // of every device
	Prefix    string        // of the ids, which numbers follow
	First     int           // number of the first device
	Count     int           // devices
	Rate      int           // that connect per second; 0: all at once
	Caps      string        // capabilities to offer
	Heartbeat time.Duration // to ask for; 0: the edge's
	Spread    bool          // come from 127.0.1.1 to 127.0.1.250
}

// Stat is what a process of devices has come to. Numbers count from its start.
type Stat struct {
	Up       int64          `json:"up"`
	Connects int64          `json:"connects"`
	Lost     int64          `json:"lost"`
	Failures map[string]int `json:"failures"` // by reason
	Pings    int64          `json:"pings"`
	Opens    int64          `json:"opens"`
	In       int64          `json:"in"` // bytes of TCP's payload
	Out      int64          `json:"out"`
	Wire     float64        `json:"wire"` // bytes of IP packets of a device, both ways, so far: a mean of some
}

// worker runs the devices of this process.
type worker struct {
	config     Config
	servers    []*url.URL
	tls        *tls.Config
	handshakes chan struct{}
	devices    []*device
	streams    sync.WaitGroup

	up, pings, opens, in, out atomic.Int64

	mu       sync.Mutex // guards what follows
	lost     int64
	failures map[string]int
}

// maxHandshakes is how many devices of a process connect at the same time.
const maxHandshakes = 256

// Work plays the devices of the configuration, in JSON, until SIGTERM, and prints
// a Stat per half second. SIGUSR1 aborts all connections at once.
func Work(ctx context.Context, config string) error {
	w := &worker{handshakes: make(chan struct{}, maxHandshakes), failures: make(map[string]int)}
	if err := json.Unmarshal([]byte(config), &w.config); err != nil {
		return err
	}
	if err := w.prepare(); err != nil {
		return err
	}
	storm := make(chan os.Signal, 1)
	signal.Notify(storm, syscall.SIGUSR1)
	var all sync.WaitGroup
	defer w.streams.Wait()
	defer all.Wait()
	for i := range w.config.Count {
		d := w.device(i)
		w.devices = append(w.devices, d)
		all.Go(func() {
			if w.config.Rate == 0 || sleep(ctx, time.Duration(i)*time.Second/time.Duration(w.config.Rate)) {
				d.run(ctx)
			}
		})
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	out := json.NewEncoder(os.Stdout)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-storm:
			w.abort()
		case <-tick.C:
			if err := out.Encode(w.stat()); err != nil {
				return err
			}
		}
	}
}

func (w *worker) prepare() error {
	for server := range strings.SplitSeq(w.config.Server, ",") {
		u, err := url.Parse(server)
		if err != nil {
			return err
		}
		if u.Scheme != "ws" && u.Scheme != "wss" || u.Port() == "" {
			return fmt.Errorf("server: %q is not ws://HOST:PORT or wss://HOST:PORT", server)
		}
		w.servers = append(w.servers, u)
	}
	w.tls = &tls.Config{ServerName: w.servers[0].Hostname(), NextProtos: []string{"http/1.1"}}
	if w.config.CA == "" {
		return nil
	}
	text, err := os.ReadFile(w.config.CA)
	if err != nil {
		return err
	}
	w.tls.RootCAs = x509.NewCertPool()
	if !w.tls.RootCAs.AppendCertsFromPEM(text) {
		return fmt.Errorf("%s: no certificate in it", w.config.CA)
	}
	return nil
}

func (w *worker) device(i int) *device {
	instance := make([]byte, 16)
	_, _ = rand.Read(instance) // it never fails
	d := &device{w: w, id: fmt.Sprintf("%s%d", w.config.Prefix, w.config.First+i), instance: hex.EncodeToString(instance), later: make([]time.Time, len(w.servers))}
	if w.config.Spread {
		d.source = net.IPv4(127, 0, 1, byte(1+(w.config.First+i)%250))
	}
	return d
}

// abort ends all connections as a crash of a whole network would: with a reset.
func (w *worker) abort() {
	for _, d := range w.devices {
		if c := d.conn.Load(); c != nil {
			_ = c.SetLinger(0) // it may have ended meanwhile
			c.Close()
		}
	}
}

func (w *worker) count(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if errors.Is(err, errLost) {
		w.lost++
	}
	if len(w.failures) < 50 { // texts may hold ports
		w.failures[reason(err)]++
	}
}

// reason is a short text of which there are few.
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

func (w *worker) stat() Stat {
	s := Stat{Up: w.up.Load(), Pings: w.pings.Load(), Opens: w.opens.Load(), In: w.in.Load(), Out: w.out.Load(), Wire: w.wire()}
	w.mu.Lock()
	defer w.mu.Unlock()
	s.Lost, s.Failures = w.lost, make(map[string]int)
	for reason, n := range w.failures {
		s.Failures[reason] = n
	}
	s.Connects = s.Up + s.Lost
	return s
}

// sample is of how many devices wire asks the kernel.
const sample = 100

// packet is what IP and TCP put in front of a segment, with its time stamps.
const packet = 20 + 20 + 12

// wire is the mean number of bytes in IP packets of some connections that are up.
func (w *worker) wire() float64 {
	total, n := 0.0, 0
	for i := 0; i < len(w.devices); i += max(1, len(w.devices)/sample) {
		c := w.devices[i].conn.Load()
		if c == nil {
			continue
		}
		raw, err := c.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) { // else it has just ended
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil {
				total += float64(info.Bytes_acked+info.Bytes_received) + packet*float64(info.Segs_in+info.Segs_out)
				n++
			}
		})
	}
	if n == 0 {
		return 0
	}
	return total / float64(n)
}
