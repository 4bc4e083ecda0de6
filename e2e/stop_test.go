package e2e

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestStop ends the edge with SIGTERM while visitors are there: what ends within the
// grace period ends well, the rest is cut with it, agents are told to come back, and
// do so once the edge is there again.
func TestStop(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		const grace = 3 * time.Second // of the harness' edges
		f := harness.Own(t, k, harness.Setup{TCPPorts: 4})
		h := newHeld(t, f)
		hand := harness.DialHand(t, f, f.NewDevice(t))
		feed, ws := h.openFeed(t), h.openSocket(t)
		if err := errors.Join(feed.want(3), echoes(ws, 1, "before")); err != nil {
			t.Fatal(err)
		}
		c := dialTCP(t, "127.0.0.1:"+h.port)
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		short := make(chan error, 1)
		go func() { // ends with its timeout
			r, err := try(harness.Visitor(t, f, true), request(t, "GET", h.url("/slow?ms=1500&id=7"), nil))
			if err == nil && r.body != "slow 7\n" {
				err = errors.New(r.String())
			}
			short <- err
		}()
		harness.Eventually(t, harness.VisitorTimeout, "the feed goes on", func() error { return feed.want(6) })

		began, stopped := time.Now(), make(chan time.Duration, 1)
		go func() { // f.Stop has a limit
			f.Stop(t)
			stopped <- time.Since(began)
		}()
		if code := harness.CloseCode(t, hand.Conn, grace); code != 1012 {
			t.Errorf("the tunnel was closed with %d", code)
		}
		if err := feed.want(5); err != nil { // streams outlive their tunnel
			t.Errorf("within the grace period: %v", err)
		}
		if err := <-short; err != nil {
			t.Errorf("a request that was under way: %v", err)
		}
		took := <-stopped
		t.Logf("ended after %v", took.Round(time.Millisecond))
		inTime(t, "an edge ends that has a grace period of 3 s", took, grace+4*time.Second)
		if err := feed.want(1 << 20); err == nil {
			t.Error("the feed goes on without an edge")
		}
		h.agent.Forget() // it may have been at another node that was about to end
		f.Start(t)
		h.same(t, "the edge has stopped")
	})
}
