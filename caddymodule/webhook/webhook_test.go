package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// receiver is a webhook's other end, without a network: time can be the subject.
type receiver struct {
	mu      sync.Mutex // guards what follows
	refuse  int        // requests to be answered with 503; -1: all
	after   string     // Retry-After of these
	bodies  []string
	headers []http.Header
	events  []Event
	at      []time.Time // of each event
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies, r.headers = append(r.bodies, string(body)), append(r.headers, req.Header)
	answer := &http.Response{StatusCode: 204, Status: "204 No Content", Body: http.NoBody, Header: make(http.Header), Request: req}
	if r.refuse != 0 {
		r.refuse--
		answer.StatusCode, answer.Status = 503, "503 Service Unavailable"
		answer.Header.Set("Retry-After", r.after)
		return answer, nil
	}
	var batch struct{ Events []Event }
	if err := json.Unmarshal(body, &batch); err != nil {
		return nil, err
	}
	for _, e := range batch.Events {
		r.events, r.at = append(r.events, e), append(r.at, time.Now())
	}
	return answer, nil
}

// told are the events that came, as `event device`.
func (r *receiver) told() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		list = append(list, strings.TrimSpace(e.Event+" "+e.Device))
	}
	return list
}

func (r *receiver) event(i int) Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[i]
}

// requests are the bodies and headers that came.
func (r *receiver) requests() ([]string, []http.Header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.bodies), slices.Clone(r.headers)
}

func (r *receiver) refuses(n int, after string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse, r.after = n, after
}

// fleet is a registry.
type fleet struct {
	mu        sync.Mutex // guards what follows
	connected map[string]bool
	left      map[string]time.Time
	first     map[string]bool
	err       error
}

func (f *fleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fleet) Connected(_ context.Context, device string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.connected[device], f.err
}

func (f *fleet) LastAbsence(_ context.Context, device string) (time.Time, bool, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.left[device]
	return at, ok, f.first[device], f.err
}

// rig is Hooks with one webhook.
type rig struct {
	*Hooks
	receiver *receiver
	fleet    *fleet
	mu       sync.Mutex // guards counts
	counts   map[string]int
}

func (r *rig) count(result string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[result]
}

func basic() Settings {
	return Settings{
		URL: "https://hooks.example/in", Secrets: []string{"0123456789abcdef"}, Events: Events,
		Batch: 100, BatchWait: time.Second, Flaps: 6, FlapWindow: 10 * time.Minute, Retry: time.Hour,
	}
}

func newRig(s ...Settings) *rig {
	r := &rig{receiver: new(receiver), fleet: &fleet{connected: map[string]bool{}, left: map[string]time.Time{}, first: map[string]bool{}}, counts: map[string]int{}}
	r.Hooks = New(Config{
		Node: "edge-1", Fleet: r.fleet,
		Hostname: func(label string) string { return label + ".devices.example" },
		Log:      func() *slog.Logger { return slog.New(slog.DiscardHandler) },
		Count: func(result string, n int) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.counts[result] += n
		},
		Client: &http.Client{Transport: r.receiver},
	})
	r.Update(s)
	return r
}

func (r *rig) device(event, device string) {
	r.Tell(event, map[string]any{"device": device, "label": device})
}

func pass(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

func mustTell(t *testing.T, r *rig, want ...string) {
	t.Helper()
	if got := r.receiver.told(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// unreachable is a network on which nothing answers.
type unreachable struct{}

func (unreachable) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("no route to host")
}

// What a receiver knows its senders by often stands in the URL: it is in no log.
func TestLogHasNoSecretOfURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		s := basic()
		s.URL, s.Retry = "https://robot:passw0rd@hooks.example/services/hushhush?key=hushhush", time.Second
		h := New(Config{
			Node: "edge-1", Fleet: &fleet{}, Log: func() *slog.Logger { return logger },
			Count: func(string, int) {}, Client: &http.Client{Transport: unreachable{}},
		})
		h.Update([]Settings{s})
		h.Tell(Cloned, map[string]any{"device": "cam-17"})
		pass(10 * time.Second) // refused, and then lost
		h.Tell(Cloned, map[string]any{"device": "cam-17"})
		h.Close()
		text := log.String()
		for _, secret := range []string{"passw0rd", "hushhush"} {
			if strings.Contains(text, secret) {
				t.Errorf("the log has %q:\n%s", secret, text)
			}
		}
		for _, want := range []string{"sent again", "are lost", "were not sent", "https://hooks.example", "no route to host"} {
			if !strings.Contains(text, want) {
				t.Errorf("the log lacks %q:\n%s", want, text)
			}
		}
	})
}

func TestBatchIsSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := basic()
		s.Secrets = []string{"new-secret-of-us", "old-secret-of-us"}
		r := newRig(s)
		defer r.Close()
		r.Tell(Offline, map[string]any{"device": "cam-1", "label": "abc", "why": "goodbye"})
		r.Tell(Drained, map[string]any{"node": "edge-1"})
		r.Tell("other", map[string]any{"device": "cam-1"})
		pass(2 * time.Second)
		mustTell(t, r, "offline cam-1", "drained")
		bodies, headers := r.receiver.requests()
		if len(bodies) != 1 {
			t.Fatalf("%d requests, want one for both", len(bodies))
		}
		body, h := bodies[0], headers[0]
		parts := strings.Split(h.Get("Iottunnel-Signature"), ",")
		if len(parts) != 3 || parts[0] != fmt.Sprintf("t=%d", time.Now().Add(-time.Second).Unix()) {
			t.Fatalf("signature %q", parts)
		}
		for i, secret := range s.Secrets {
			mac := hmac.New(sha256.New, []byte(secret))
			mac.Write([]byte(strings.TrimPrefix(parts[0], "t=") + "." + body))
			if want := "v1=" + hex.EncodeToString(mac.Sum(nil)); parts[i+1] != want {
				t.Errorf("signature %d: %s, want %s", i, parts[i+1], want)
			}
		}
		e := r.receiver.event(0)
		if e.ID == "" || e.Node != "edge-1" || e.Hostname != "abc.devices.example" || e.Why != "goodbye" || e.At.IsZero() {
			t.Errorf("event %+v", e)
		}
		if h.Get("Content-Type") != "application/json" || h.Get(DeliveryHeader) == "" {
			t.Errorf("headers %v", h)
		}
		if r.count(Sent) != 2 {
			t.Errorf("counted %v", r.counts)
		}
	})
}

func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(basic())
		defer r.Close()
		r.receiver.refuses(3, "")
		r.device(Online, "cam-1")
		pass(time.Minute)
		mustTell(t, r, "online cam-1")
		bodies, headers := r.receiver.requests()
		if len(bodies) != 4 {
			t.Errorf("%d requests, want 4", len(bodies))
		}
		for i, h := range headers {
			if h.Get(DeliveryHeader) != headers[0].Get(DeliveryHeader) || bodies[i] != bodies[0] {
				t.Errorf("request %d is another delivery", i)
			}
		}
	})
}

func TestRetryAfterIsObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(basic())
		defer r.Close()
		r.receiver.refuses(1, "100")
		r.device(Online, "cam-1")
		pass(90 * time.Second)
		mustTell(t, r)
		pass(15 * time.Second)
		mustTell(t, r, "online cam-1")
	})
}

func TestEventsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := basic()
		s.Retry = 10 * time.Minute
		r := newRig(s)
		defer r.Close()
		r.receiver.refuses(-1, "")
		r.device(Online, "cam-1")
		pass(5 * time.Minute)
		if n := r.Waiting(); n != 1 {
			t.Errorf("%d wait while the receiver refuses one", n)
		}
		pass(7 * time.Minute)
		if n := r.Waiting(); r.count(Expired) != 1 || n != 0 {
			t.Errorf("counted %v, %d wait", r.counts, n)
		}
		bodies, _ := r.receiver.requests()
		if n := len(bodies); n < 8 || n > 30 {
			t.Errorf("%d requests in ten minutes", n)
		}
	})
}

// TestQueueIsBounded has a receiver refuse everything.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(basic())
		r.receiver.refuses(-1, "")
		for range 2 * maxWaiting / 1000 {
			for i := range 1000 {
				r.device(Online, fmt.Sprintf("cam-%d", i))
			}
			pass(time.Second)
		}
		if n, batch := r.Waiting(), basic().Batch; n > maxWaiting+batch {
			t.Errorf("%d wait, want at most %d, and %d on their way", n, maxWaiting, batch)
		}
		if dropped := r.count(Dropped); dropped < maxWaiting-1000 {
			t.Errorf("%d dropped", dropped)
		}
		r.Close()
		if sum := r.count(Dropped) + r.count(Sent); sum != 2*maxWaiting {
			t.Errorf("%d events accounted for, want %d: %v", sum, 2*maxWaiting, r.counts)
		}
	})
}

func TestOfflineAfter(t *testing.T) {
	s := basic()
	s.OfflineAfter = 5 * time.Minute
	run := func(name string, body func(t *testing.T, r *rig)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(s)
				defer r.Close()
				body(t, r)
			})
		})
	}
	run("short", func(t *testing.T, r *rig) {
		r.device(Offline, "cam-1")
		pass(4 * time.Minute)
		r.device(Online, "cam-1")
		pass(10 * time.Minute)
		mustTell(t, r)
	})
	run("long", func(t *testing.T, r *rig) {
		left := time.Now()
		r.device(Offline, "cam-1")
		pass(5*time.Minute - 5*time.Second)
		mustTell(t, r)
		pass(10 * time.Second)
		mustTell(t, r, "offline cam-1")
		if e := r.receiver.event(0); !e.At.Equal(left) {
			t.Errorf("it has left at %v, told %v", left, e.At)
		}
		r.fleet.set(func() { r.fleet.left["cam-1"] = left })
		r.device(Online, "cam-1")
		pass(5 * time.Second)
		mustTell(t, r, "offline cam-1", "online cam-1")
	})
	run("twice", func(t *testing.T, r *rig) {
		r.device(Offline, "cam-1")
		pass(4 * time.Minute)
		r.device(Online, "cam-1")
		r.device(Offline, "cam-1")
		pass(2 * time.Minute)
		mustTell(t, r) // the second absence is two minutes old
		pass(4 * time.Minute)
		mustTell(t, r, "offline cam-1")
	})
	run("came to another node", func(t *testing.T, r *rig) {
		r.device(Offline, "cam-1")
		r.fleet.set(func() { r.fleet.connected["cam-1"] = true })
		pass(10 * time.Minute)
		mustTell(t, r)
	})
	run("comes from another node", func(t *testing.T, r *rig) {
		r.fleet.set(func() { r.fleet.left["cam-1"] = time.Now().Add(-time.Minute) })
		r.device(Online, "cam-1")
		r.fleet.set(func() { r.fleet.left["cam-2"] = time.Now().Add(-time.Hour) })
		r.device(Online, "cam-2")
		r.fleet.set(func() { r.fleet.first["cam-3"] = true })
		r.device(Online, "cam-3")
		r.device(Online, "cam-4") // was online, and nobody knows that it has left
		pass(time.Minute)
		mustTell(t, r, "online cam-2", "online cam-3")
	})
	run("no registry", func(t *testing.T, r *rig) {
		r.fleet.set(func() { r.fleet.err = errors.New("away") })
		r.device(Offline, "cam-1")
		pass(5*time.Minute + 30*time.Second)
		mustTell(t, r)
		pass(time.Minute)
		mustTell(t, r, "offline cam-1")
	})
}

func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(basic())
		defer r.Close()
		r.device(Online, "quiet")
		pass(2 * time.Second)
		want := []string{"online quiet"}
		for i := range 20 {
			r.device(Offline, "cam-1")
			pass(10 * time.Second)
			r.device(Online, "cam-1")
			pass(10 * time.Second)
			if i < 5 {
				want = append(want, "offline cam-1", "online cam-1")
			}
		}
		want = append(want, "flapping cam-1")
		mustTell(t, r, want...)
		if e := r.receiver.event(len(want) - 1); e.Times != 6 {
			t.Errorf("flapping after %d times", e.Times)
		}
		pass(12 * time.Minute)
		want = append(want, "online cam-1") // how it is, now that it is steady
		mustTell(t, r, want...)
		r.device(Offline, "cam-1")
		pass(2 * time.Second)
		mustTell(t, r, append(want, "offline cam-1")...)
	})
}

func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := basic()
		s.OfflineAfter = 5 * time.Minute
		r := newRig(s)
		r.device(Offline, "cam-1")
		pass(time.Minute)
		s.Events = []string{Offline}
		r.Update([]Settings{s}) // what it waits for stays
		pass(5 * time.Minute)
		mustTell(t, r, "offline cam-1")
		r.fleet.set(func() { r.fleet.first["cam-2"] = true })
		r.device(Online, "cam-2")
		pass(time.Minute)
		mustTell(t, r, "offline cam-1")
		r.Update(nil)
		r.device(Offline, "cam-3")
		pass(time.Hour)
		mustTell(t, r, "offline cam-1")
		r.Close()
		r.Update([]Settings{s}) // does nothing
	})
}

// TestCloseSends has what is waiting sent before it returns, if that goes at once.
func TestCloseSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(basic())
		for i := range 250 {
			r.device(Offline, fmt.Sprintf("cam-%d", i))
		}
		r.Close()
		bodies, _ := r.receiver.requests()
		if n := len(r.receiver.told()); n != 250 || len(bodies) != 3 {
			t.Errorf("told %d events in %d requests", n, len(bodies))
		}
	})
}

// TestNothingMovesWithoutHooks: events cost nothing where no webhook is configured.
func TestNothingMovesWithoutHooks(t *testing.T) {
	r := newRig()
	defer r.Close()
	data := map[string]any{"device": "cam-1"}
	if n := testing.AllocsPerRun(100, func() { r.Tell(Online, data) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
