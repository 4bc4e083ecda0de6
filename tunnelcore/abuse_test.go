package tunnelcore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// limitCount counts what hubs tell of limits.
type limitCount struct {
	unobserved
	mu sync.Mutex // guards by
	by map[string]int
}

func (c *limitCount) Limited(limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = make(map[string]int)
	}
	c.by[limit]++
}

func (c *limitCount) of(limit string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by[limit]
}

// idleHub is a hub that has settings and does nothing.
func idleHub(change func(*Settings)) (h *Hub, counts *limitCount, events *[]string) {
	counts, events = new(limitCount), new([]string)
	h = &Hub{observer: counts, visitors: newVisitors()}
	h.setSettings(change, events)
	return h, counts, events
}

func (h *Hub) setSettings(change func(*Settings), events *[]string) {
	s := Defaults()
	s.Events = func(name string, data map[string]any) {
		*events = append(*events, fmt.Sprint(name, " ", data["device"], " ", data["limit"]))
	}
	s.Logger = slog.New(slog.DiscardHandler)
	change(&s)
	h.settings.Store(&s)
}

func TestRequestsPerDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, counts, events := idleHub(func(s *Settings) { s.Limits.RequestsPerDevice = 10 })
		addr := netip.MustParseAddr("192.0.2.1")
		ask := func(device string, n int) (served, refused int) {
			for range n {
				leave, err := h.Enter(context.Background(), device, addr)
				var answer *answers.Error
				switch {
				case err == nil:
					leave()
					served++
				case errors.As(err, &answer) && answer.Code == wire.TooMany && answer.RetryAfter == time.Second:
					refused++
				default:
					t.Fatal(err)
				}
			}
			return served, refused
		}
		if served, refused := ask("cam-1", 15); served != 10 || refused != 5 {
			t.Errorf("served %d, refused %d, want 10 and 5", served, refused)
		}
		if served, _ := ask("cam-2", 10); served != 10 {
			t.Errorf("another device served %d, want 10", served)
		}
		<-time.After(time.Second)
		if served, refused := ask("cam-1", 15); served != 10 || refused != 5 {
			t.Errorf("a second later: served %d, refused %d", served, refused)
		}
		if n := counts.of("requests"); n != 10 {
			t.Errorf("counted %d, want 10", n)
		}
		if len(*events) != 1 || (*events)[0] != "limited cam-1 requests" {
			t.Errorf("events %q, want one a minute", *events)
		}
		<-time.After(time.Minute)
		ask("cam-1", 11)
		if len(*events) != 2 {
			t.Errorf("events %q, want another one after a minute", *events)
		}
		h.setSettings(func(s *Settings) { s.Limits.RequestsPerDevice = 0 }, events)
		if served, _ := ask("cam-1", 100); served != 100 {
			t.Errorf("without a limit: served %d of 100", served)
		}
	})
}

func TestUsageForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u usage
		held := u.of("held", true)
		for i := range 10 * usersSwept {
			one := u.of(fmt.Sprintf("cam-%d", i), false)
			one.requests.set(1, 1)
			one.requests.take()
			if i%usersSwept == 0 {
				<-time.After(2 * time.Second)
			}
		}
		if n := len(u.by); n > 3*usersSwept {
			t.Errorf("%d devices are remembered", n)
		}
		if u.of("held", false) != held {
			t.Error("one that is in use is forgotten")
		}
		for i := range 2 * maxLimited {
			u.tell(limitedKey{fmt.Sprint(i), limitRequests})
		}
		if len(u.told) > maxLimited {
			t.Errorf("%d are remembered", len(u.told))
		}
	})
}

// TestPace sends through real streams: time is that of the clock, so that bounds are
// wide.
func TestPace(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Limits.BandwidthPerDevice = 1 << 20 })
	a := e.connect(hello("cam-17"))
	visitor, device := a.open("cam-17")
	defer visitor.Close()
	defer device.Close()
	if _, ok := visitor.(*pacedStream); !ok {
		t.Fatalf("a %T", visitor)
	}
	const size = 5 << 19 // 2.5 MiB: one at once, as the device was quiet, the rest in 1.5 s
	began := time.Now()
	go func() { device.Write(make([]byte, size)) }() // fails when the test does
	if n, err := io.CopyN(io.Discard, visitor, size); err != nil {
		t.Fatal(n, err)
	}
	if took := time.Since(began); took < 1200*time.Millisecond {
		t.Errorf("took %v, want 1.5 s", took)
	}
	e.event("limited cam-17")
	// The other direction counts, too; who closes does not wait.
	sent := make(chan error, 1)
	go func() {
		_, err := visitor.Write(make([]byte, 100<<20))
		sent <- err
	}()
	if _, err := io.ReadFull(device, make([]byte, 1<<10)); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, device) // ends with it
	visitor.(*pacedStream).Abort()
	select {
	case err := <-sent:
		if err == nil {
			t.Error("100 MiB were sent")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a write goes on after Abort")
	}
	e.hub.usage.mu.Lock()
	u := e.hub.usage.by["cam-17"]
	e.hub.usage.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.paced != 0 {
		t.Errorf("%d connections are held", u.paced)
	}
}

// TestPaceIsFree: without a bound a stream is what it was.
func TestPaceIsFree(t *testing.T) {
	h, _, _ := idleHub(func(*Settings) {})
	c := new(stream.Stream)
	if got := h.pace("cam-17", c); got != c {
		t.Errorf("a %T", got)
	}
	if n := testing.AllocsPerRun(100, func() { _ = h.permit("cam-17") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
