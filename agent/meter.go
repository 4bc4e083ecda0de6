package agent

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Traffic is what crossed the connections to edges, in bytes: TLS included, TCP and IP
// not. Of connections without TLS the control socket alone is counted.
type Traffic struct {
	Received, Sent       int64 // since the agent was made
	DayReceived, DaySent int64 // in the last 24 hours, give or take one
}

// meter counts. Its zero value is ready.
type meter struct {
	received, sent atomic.Int64

	mu    sync.Mutex  // guards what follows
	hours [24]Traffic // totals at the end of each of the last hours, the oldest at next
	next  int
}

// read returns what was counted.
func (m *meter) read() Traffic {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := Traffic{Received: m.received.Load(), Sent: m.sent.Load()}
	before := m.hours[m.next]
	t.DayReceived, t.DaySent = t.Received-before.Received, t.Sent-before.Sent
	return t
}

// roll takes note that an hour is over.
func (m *meter) roll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hours[m.next] = Traffic{Received: m.received.Load(), Sent: m.sent.Load()}
	m.next = (m.next + 1) % len(m.hours)
}

// run rolls until ctx ends, and logs once a day.
func (m *meter) run(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for hour := 1; ; hour++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if hour%24 == 0 {
			t := m.read()
			log.Info("traffic of a day", "received", t.DayReceived, "sent", t.DaySent)
		}
		m.roll()
	}
}

// on makes c a connection that is counted.
func (m *meter) on(c net.Conn) net.Conn { return &metered{c, m} }

type metered struct {
	net.Conn
	meter *meter
}

// NetConn is what lies below.
func (c *metered) NetConn() net.Conn { return c.Conn }

func (c *metered) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.meter.received.Add(int64(n))
	return n, err
}

func (c *metered) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.meter.sent.Add(int64(n))
	return n, err
}
