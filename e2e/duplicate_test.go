package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestLiveDeviceStays starts agents with the id and token of a device that lives,
// one after the other on another host, while visitors load pages: each of them is
// refused and says why, and no visitor notices.
func TestLiveDeviceStays(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		newcomers := 20
		if heavy {
			newcomers = 100
		}
		f := newFar(t, k, harness.Setup{}, 0)
		other := f.net.Host(t, "other")
		s := f.newSite(t, harness.AgentSetup{})
		feed := s.openFeed(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		var pages atomic.Int64
		for range 16 {
			wg.Go(func() {
				c := f.visitor.Visitor(t, f.face, true)
				for ctx.Err() == nil {
					r, err := try(c, request(t, "GET", s.url("/bytes?n=20000"), nil))
					if err != nil || r.StatusCode != 200 || len(r.body) != 20000 {
						t.Errorf("a visitor got %v %v", r, err)
						return
					}
					pages.Add(1)
				}
			})
		}
		for i := range newcomers {
			paced(ctx, i)
			status, out, errs := other.AgentToEnd(t, f.face, 60*time.Second, harness.AgentSetup{
				Device: s.agent.Device, Forwards: []string{"80=127.0.0.1:1"}, Flags: []string{"--once"},
			})
			if status != 3 || out != "" || !strings.Contains(errs, "device_connected") {
				t.Errorf("newcomer %d ended with %d, standard output %q:\n%s", i+1, status, out, errs)
			}
		}
		cancel()
		wg.Wait()
		if err := feed.want(20); err != nil {
			t.Errorf("the device lost something: %v", err)
		}
		if lines := s.agent.Stdout.Since(0); len(lines) != 1 {
			t.Errorf("the device came up more than once: %q", lines)
		}
		t.Logf("%d refused; %d pages meanwhile", newcomers, pages.Load())
	})
}

// paced has the newcomers of a device come no more often than a node lets in: 30 at
// once, and one every two seconds from then on.
func paced(ctx context.Context, i int) {
	if i >= 20 {
		rest(ctx, 2100*time.Millisecond)
	}
}

// TestRebootedDevice lets a device die without a word, its connections open at the
// edge, and wants it back soon: after a reboot, at the same address and another
// host.
func TestRebootedDevice(t *testing.T) {
	const most = 3 * time.Second
	onFaces(t, func(t *testing.T, k harness.Kind) {
		reboots := 6
		if heavy {
			reboots = 40
		}
		f := newFar(t, k, harness.Setup{}, 0)
		other := f.net.Host(t, "other")
		s := f.newSite(t, harness.AgentSetup{})
		elsewhere := other.StartOrigin(t)
		at, addr := f.device, s.origin.Addr
		var took []time.Duration
		for i := range reboots {
			s.mustServe(t) // and there are transfer sockets
			ports := at.Ports(t, f.edge.Addr)
			if len(ports) == 0 {
				t.Fatal("the device has no connection")
			}
			var lift []func()
			for _, port := range ports {
				lift = append(lift, at.Block(t, port))
			}
			s.agent.Kill()
			if i%2 == 1 { // every other reboot is on another network
				if at == f.device {
					at, addr = other, elsewhere.Addr
				} else {
					at, addr = f.device, s.origin.Addr
				}
			}
			began := time.Now()
			s.agent = at.StartAgent(t, f.face, harness.AgentSetup{Device: s.agent.Device, Forwards: []string{"80=" + addr}})
			up := s.agent.UpWithin(t, 60*time.Second)
			took = append(took, time.Since(began))
			if host := up.Hostname(t, 80); host != s.host {
				t.Fatalf("the name became %s", host)
			}
			s.mustServe(t)
			for _, l := range lift { // late packets of the dead change nothing
				l()
			}
		}
		slices.Sort(took)
		t.Logf("back after %v (median), %v (slowest of %d)", took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), len(took))
		inTime(t, "a rebooted device is back", took[len(took)-1], most)
	})
}

// TestControlSocketIsCut ends a device's control socket and leaves the others: the
// agent is back at once, and what visitors have open goes on as if nothing was.
func TestControlSocketIsCut(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{}, 0)
		s := f.newSite(t, harness.AgentSetup{})
		ports := f.device.Ports(t, f.edge.Addr)
		if len(ports) != 1 {
			t.Fatalf("an idle device has %d connections", len(ports))
		}
		feed, ws := s.openFeed(t), s.openSocket(t)
		if err := feed.want(3); err != nil {
			t.Fatal(err)
		}
		mark := s.agent.Stderr.Mark()
		f.device.AbortConnection(t, ports[0])
		began := time.Now()
		if host := s.agent.Up(t).Hostname(t, 80); host != s.host {
			t.Errorf("the name became %s", host)
		}
		t.Logf("up again after %v", time.Since(began).Round(time.Millisecond))
		if err := feed.want(20); err != nil {
			t.Errorf("a visitor's stream did not survive its control socket: %v", err)
		}
		if err := echoes(ws, 1, "still here"); err != nil {
			t.Errorf("a visitor's WebSocket did not survive its control socket: %v", err)
		}
		s.mustServe(t)
		for _, line := range s.agent.Stderr.Since(mark) {
			if strings.Contains(line, "device_connected") {
				t.Errorf("refused for the sake of its own past: %s", line)
			}
		}
	})
}

// TestNewAddress takes a device's address away under its agent and gives it
// another one: nobody tells either end, so it takes the heartbeats to notice.
func TestNewAddress(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		const heartbeat = 10 * time.Second
		f := newFar(t, k, harness.Setup{}, 0)
		s := f.newSite(t, harness.AgentSetup{Flags: []string{"--heartbeat", heartbeat.String()}})
		s.mustServe(t)
		feed, ws := s.openFeed(t), s.openSocket(t)
		if err := errors.Join(feed.want(3), echoes(ws, 1, "before")); err != nil {
			t.Fatal(err)
		}
		old := f.device.Addr
		mark := s.agent.Stderr.Mark()
		f.device.Readdress(t)
		began := time.Now()
		// Two heartbeats and a grace of 10 s, since what came last; then the first retry.
		if host := s.agent.UpWithin(t, 2*heartbeat+20*time.Second).Hostname(t, 80); host != s.host {
			t.Errorf("the name became %s", host)
		}
		t.Logf("up %v after the change of %s to %s", time.Since(began).Round(time.Millisecond), old, f.device.Addr)
		s.mustServe(t)
		// What was open ends on both sides: no visitor waits for what cannot come.
		ws.SetReadDeadline(time.Now().Add(time.Minute))
		_, _, err := ws.ReadMessage()
		var timeout net.Error
		if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("a visitor's WebSocket goes on a minute after the change: %v", err)
		}
		end := time.AfterFunc(2*time.Minute, func() { feed.body.Close() })
		if err := feed.want(1 << 30); !end.Stop() {
			t.Errorf("a visitor's stream goes on minutes after the change: %v", err)
		}
		t.Logf("a WebSocket and a stream have ended %v after the change", time.Since(began).Round(time.Millisecond))
		if heavy {
			s.origin.WaitGone(t, "/ws", 5*time.Minute)
			t.Logf("the device knows after %v", time.Since(began).Round(time.Millisecond))
		}
		for _, line := range s.agent.Stderr.Since(mark) {
			if strings.Contains(line, "device_connected") {
				t.Errorf("refused for the sake of its own past: %s", line)
			}
		}
	})
}

// TestCloneWaits runs two agents with one id that both want to be up: the first
// keeps the device for as long as it lives, the other one has it after, and then
// the first is the one to wait.
func TestCloneWaits(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{}, 0)
		other := f.net.Host(t, "other")
		s := f.newSite(t, harness.AgentSetup{Flags: []string{"--heartbeat", "10s"}})
		clone := other.StartAgent(t, f.face, harness.AgentSetup{
			Device: s.agent.Device, Forwards: []string{"80=" + other.StartOrigin(t).Addr}, Flags: []string{"--max-backoff", "1s"},
		})
		clone.WaitStderr(t, 0, harness.UpTime, "device_connected")
		s.mustServe(t)

		lift := f.device.Block(t, 0)
		mark := s.agent.Stderr.Mark()
		if host := clone.UpWithin(t, 60*time.Second).Hostname(t, 80); host != s.host {
			t.Errorf("the name became %s", host)
		}
		lift()
		// The first one is told that it was replaced, or finds the other one there.
		s.agent.WaitStderr(t, mark, 60*time.Second, "tunnel down")
		s.mustServe(t)
		if lines := clone.Stdout.Since(0); len(lines) != 1 {
			t.Errorf("the clone lost the device again: %q", lines)
		}
		if lines := s.agent.Stdout.Since(0); len(lines) != 1 {
			t.Errorf("the first took the device back from a live one: %s", fmt.Sprint(lines))
		}
	})
}
