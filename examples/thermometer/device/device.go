// Package device is a thermometer that does not exist: a simulated probe, the
// web page and the line protocol that a small real device would have.
//
// It knows nothing of tunnels. Handler and ServeLines take whatever brings them
// requests and connections: sockets, or the listeners of an agent.
package device

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Config describes a Device. The zero value works.
type Config struct {
	Seed     uint64        // of the simulation
	Interval time.Duration // between readings; 1 s
	Logger   *slog.Logger  // slog.Default()
}

const (
	// historyLength is how many readings are kept: ten minutes at one a second.
	historyLength = 600
	// subscriberQueue is how many changes a visitor may lag behind before it is
	// dropped; a page then connects again and gets a fresh snapshot.
	subscriberQueue = 16
	// visitorsMax bounds the event streams and WebSockets together.
	visitorsMax = 256
)

// Device measures while Run runs, and tells its visitors. All methods may be
// called concurrently.
type Device struct {
	probe    Probe
	interval time.Duration
	log      *slog.Logger
	started  time.Time
	done     chan struct{} // closed when Run stops: every visitor's loop ends

	// mu guards what follows.
	mu          sync.Mutex
	settings    Settings
	history     []Reading // oldest first, at most historyLength
	firmware    *Firmware // last upload; nil: none yet
	subscribers map[chan change]struct{}
	stopped     bool
	visitors    sync.WaitGroup // event streams and WebSockets; Add only while !stopped
	count       int            // of visitors
}

// change is what subscribers get: one of the fields is set.
type change struct {
	reading  *Reading
	settings *Settings
	firmware *Firmware
}

// Firmware describes an upload. Nothing of it is kept but this.
type Firmware struct {
	Bytes  int64     `json:"bytes"`
	SHA256 string    `json:"sha256"`
	At     time.Time `json:"at"`
}

// New makes a device with a past: readings up to now.
func New(cfg Config) *Device {
	if cfg.Interval <= 0 {
		cfg.Interval = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	d := &Device{
		probe: Probe{Seed: cfg.Seed}, interval: cfg.Interval, log: cfg.Logger, started: time.Now(),
		done: make(chan struct{}), settings: DefaultSettings(),
		subscribers: make(map[chan change]struct{}),
	}
	for i := historyLength - 1; i >= 0; i-- {
		d.history = append(d.history, d.probe.At(d.started.Add(-time.Duration(i)*d.interval)))
	}
	return d
}

// Run measures until ctx ends; then it ends every event stream and WebSocket and
// waits for them. A device runs once.
func (d *Device) Run(ctx context.Context) {
	tick := time.NewTicker(d.interval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			d.measure(now)
		case <-ctx.Done():
			d.mu.Lock()
			d.stopped = true
			d.mu.Unlock()
			close(d.done)
			d.visitors.Wait()
			return
		}
	}
}

func (d *Device) measure(now time.Time) {
	r := d.probe.At(now)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.history) == historyLength {
		copy(d.history, d.history[1:])
		d.history = d.history[:historyLength-1]
	}
	d.history = append(d.history, r)
	d.tellLocked(change{reading: &r})
}

// Reading is the last measurement.
func (d *Device) Reading() Reading {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.history[len(d.history)-1]
}

// Settings are those in force.
func (d *Device) Settings() Settings {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settings
}

// Set changes settings, which ParseSettings has checked.
func (d *Device) Set(s Settings) {
	d.update(func(old *Settings) { *old = s })
}

// update changes single settings without losing another visitor's change.
func (d *Device) update(f func(*Settings)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.settings)
	s := d.settings
	d.tellLocked(change{settings: &s})
}

func (d *Device) setFirmware(f Firmware) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.firmware = &f
	d.tellLocked(change{firmware: &f})
}

// tellLocked hands c to every subscriber, and drops those that do not keep up.
// It wants mu.
func (d *Device) tellLocked(c change) {
	for ch := range d.subscribers {
		select {
		case ch <- c:
		default:
			delete(d.subscribers, ch)
			close(ch)
		}
	}
}

// snapshot is the state that a subscription starts from.
type snapshot struct {
	settings Settings
	history  []Reading
	firmware *Firmware
}

// subscribe returns the state of now and a channel of what changes from now on,
// which is closed when its reader lags behind. leave is called once, by the
// reader. ok is false when the device is stopping or has its fill of visitors.
func (d *Device) subscribe() (now snapshot, changes <-chan change, leave func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped || d.count >= visitorsMax {
		return snapshot{}, nil, nil, false
	}
	d.count++
	d.visitors.Add(1)
	ch := make(chan change, subscriberQueue)
	d.subscribers[ch] = struct{}{}
	now = snapshot{settings: d.settings, history: append([]Reading(nil), d.history...), firmware: d.firmware}
	return now, ch, func() {
		d.mu.Lock()
		delete(d.subscribers, ch)
		d.count--
		d.mu.Unlock()
		d.visitors.Done()
	}, true
}
