// Package webhook tells what happens to devices by signed HTTP requests.
package webhook

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The events that a webhook can tell of.
const (
	Online   = "online"   // a device has connected
	Offline  = "offline"  // and has left
	Cloned   = "cloned"   // two devices use one id
	Flapping = "flapping" // a device comes and goes: it is told no more of until it is steady
	Limited  = "limited"  // a device has met one of its limits
	Drained  = "drained"  // a node that drains has no device any more
)

// Events are all of them.
var Events = []string{Online, Offline, Cloned, Flapping, Limited, Drained}

// Settings are those of one webhook, which its URL names.
type Settings struct {
	URL string
	// Secrets sign each request: one, or two while receivers change.
	Secrets []string
	// Events are the names that are told.
	Events []string
	// OfflineAfter is how long a device must have been away to be told of; then its
	// return is told, too. 0: each time, at once.
	OfflineAfter time.Duration
	// Batch is how many events a request has at most, and BatchWait how long the first
	// of them waits for others.
	Batch     int
	BatchWait time.Duration
	// Flaps is how often within FlapWindow a device must leave to be flapping; 0: none
	// ever is.
	Flaps      int
	FlapWindow time.Duration
	// Retry is how long an event is kept that cannot be delivered.
	Retry time.Duration
}

// wants reports whether the event is one that is told.
func (s *Settings) wants(event string) bool { return slices.Contains(s.Events, event) }

// Event is what is told. Its JSON is in docs/operations.md.
type Event struct {
	ID       string    `json:"id"` // the same each time it is sent
	Event    string    `json:"event"`
	At       time.Time `json:"at"`
	Node     string    `json:"node"`
	Device   string    `json:"device,omitempty"`
	Label    string    `json:"label,omitempty"`
	Hostname string    `json:"hostname,omitempty"`
	Why      string    `json:"why,omitempty"`   // of offline
	Limit    string    `json:"limit,omitempty"` // of limited
	Times    int       `json:"times,omitempty"` // of flapping: how often it has left
}

// Fleet is what is known of devices beyond this node. Its methods may fail while the
// registry is away.
type Fleet interface {
	// Connected reports whether a device is connected to any node.
	Connected(ctx context.Context, device string) (bool, error)
	// LastAbsence is when a device has left before it came now. ok is false if it is
	// not known to have left: it has not, or nothing was ever known of it; first tells
	// which.
	LastAbsence(ctx context.Context, device string) (at time.Time, ok, first bool, err error)
}

// Results of an event, as Config.Count is told.
const (
	Sent    = "sent"
	Dropped = "dropped" // a queue was full, or the edge has ended
	Expired = "expired" // it could not be delivered for Settings.Retry
)

// Config is what Hooks are made of.
type Config struct {
	Node  string
	Fleet Fleet
	// Hostname is the full name of a label; nil: events tell none.
	Hostname func(label string) string
	Log      func() *slog.Logger
	// Count is told what became of n events.
	Count func(result string, n int)
	// Client sends the requests; nil: one that follows no redirects.
	Client *http.Client
}

// Hooks are the webhooks of a node. All methods may be called concurrently.
type Hooks struct {
	config Config
	any    atomic.Bool // there is a hook

	mu     sync.Mutex // guards what follows
	closed bool
	hooks  map[string]*hook // by URL
	wg     sync.WaitGroup   // of those that end
}

// New returns Hooks without any webhook: see Update.
func New(c Config) *Hooks {
	if c.Client == nil {
		c.Client = &http.Client{
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, MaxIdleConns: 8, IdleConnTimeout: 90 * time.Second,
				TLSHandshakeTimeout: postTime, ForceAttemptHTTP2: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &Hooks{config: c, hooks: make(map[string]*hook)}
}

// Update makes these the webhooks. One whose URL stays keeps what it has to tell.
func (h *Hooks) Update(all []Settings) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	gone := maps.Clone(h.hooks)
	for _, s := range all {
		if one := h.hooks[s.URL]; one != nil {
			one.settings.Store(&s)
			delete(gone, s.URL)
			continue
		}
		h.hooks[s.URL] = startHook(h.config, s)
	}
	for url, one := range gone {
		delete(h.hooks, url)
		h.wg.Go(one.close)
	}
	h.any.Store(len(h.hooks) > 0)
}

// Tell has an event told by the webhooks that want it. It never blocks.
func (h *Hooks) Tell(name string, data map[string]any) {
	if !h.any.Load() {
		return
	}
	text := func(key string) string { s, _ := data[key].(string); return s }
	e := Event{
		Event: name, At: time.Now().UTC(), Node: h.config.Node,
		Device: text("device"), Label: text("label"), Why: text("why"), Limit: text("limit"),
	}
	if e.Label != "" && h.config.Hostname != nil {
		e.Hostname = h.config.Hostname(e.Label)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, one := range h.hooks {
		select {
		case one.happened <- e:
		default:
			h.config.Count(Dropped, 1)
			one.lost.Add(1)
		}
	}
}

// Waiting is how many events no receiver has taken yet: those of requests that are sent
// again are among them.
func (h *Hooks) Waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, one := range h.hooks {
		n += len(one.happened) + one.queue.size() + int(one.sending.Load())
	}
	return n
}

// Close tries for a moment to send what is waiting, and ends all webhooks.
func (h *Hooks) Close() {
	h.Update(nil)
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.wg.Wait()
	h.config.Client.CloseIdleConnections()
}

// hook is one webhook: decide finds out what is to be told, deliver tells it.
type hook struct {
	config   Config
	settings atomic.Pointer[Settings]
	happened chan Event
	lost     atomic.Int64 // events of which nobody has been told that they are lost
	queue    queue
	sending  atomic.Int64 // events of the request under way
	quit     chan struct{}
	wg       sync.WaitGroup
}

// maxHappened bounds events that nobody has looked at yet.
const maxHappened = 20_000

func startHook(c Config, s Settings) *hook {
	k := &hook{config: c, happened: make(chan Event, maxHappened), quit: make(chan struct{})}
	k.settings.Store(&s)
	k.queue.more = make(chan struct{}, 1)
	k.wg.Go(k.decide)
	return k
}

// close ends k when what is waiting was sent, or could not be in lastTime.
func (k *hook) close() {
	close(k.quit)
	k.wg.Wait()
}

// decide runs until close: it has a sender of its own, which ends after it.
func (k *hook) decide() {
	stopping, stop := context.WithCancel(context.Background())
	var sender sync.WaitGroup
	sender.Go(func() { k.deliver(stopping) })
	defer sender.Wait()
	defer stop()
	d := newDesk(k.config.Fleet)
	tick := time.NewTicker(lookTime)
	defer tick.Stop()
	for {
		select {
		case e := <-k.happened:
			k.put(d.take(k.settings.Load(), e))
		case <-tick.C:
			ctx, cancel := context.WithTimeout(context.Background(), askTime)
			k.put(d.look(ctx, k.settings.Load(), time.Now()))
			cancel()
			k.report()
		case <-k.quit:
			for len(k.happened) > 0 {
				k.put(d.take(k.settings.Load(), <-k.happened))
			}
			return
		}
	}
}

// put queues what is to be told.
func (k *hook) put(events []Event) {
	if lost := k.queue.put(events); lost > 0 {
		k.config.Count(Dropped, lost)
		k.lost.Add(int64(lost))
	}
}

// report logs what was lost.
func (k *hook) report() {
	if n := k.lost.Swap(0); n > 0 {
		k.config.Log().Warn("webhook: events are lost: more happens than can be sent", "url", Place(k.settings.Load().URL), "events", n)
	}
}
