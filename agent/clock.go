package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

// written is a time that has passed when this was written: a clock that is behind it
// has never been set.
var written = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	// dateTime bounds a question for the date.
	dateTime = 5 * time.Second
	// dateEvery is how long an answer counts: whoever gave a wrong one has no more of it.
	dateEvery = time.Minute
	// dateLayout is that of the header Date (RFC 9110 §5.6.7).
	dateLayout = "Mon, 02 Jan 2006 15:04:05 GMT"
)

// clock tells the time by which certificates are judged. That of a device without a
// battery is years behind until it is set, often by the network that needs it; then
// the edge is asked. Nobody vouches for its answer: who is on the way can have a
// certificate accepted that has expired, but none from before the build, and none that
// no authority has signed.
type clock struct {
	now   func() time.Time // the system's
	built time.Time        // what is before that is wrong
	log   *slog.Logger

	mu   sync.Mutex // guards what follows
	date time.Time  // of an edge; zero: none
	at   time.Time  // when it said so; of the monotonic clock
}

func newClock(c Config) *clock {
	k := &clock{now: time.Now, built: written, log: c.Logger}
	if c.Built.After(written) {
		k.built = c.Built
	}
	return k
}

// judge is the time for certificates.
func (k *clock) judge() time.Time {
	now := k.now()
	if !now.Before(k.built) {
		return now
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.date.IsZero() {
		return k.built
	}
	return k.date.Add(time.Since(k.at))
}

// due reports whether it is time to ask for the date.
func (k *clock) due() bool {
	if !k.now().Before(k.built) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.date.IsZero() || time.Since(k.at) >= dateEvery
}

// learn takes a date, unless it is before the build.
func (k *clock) learn(date time.Time) {
	if date.Before(k.built) {
		return
	}
	k.mu.Lock()
	first := k.date.IsZero()
	k.date, k.at = date, time.Now()
	k.mu.Unlock()
	if first {
		k.log.Warn("this device's clock is behind the day on which this program was made: certificates are judged by the date that the edge tells, for which nobody vouches; set the clock",
			"clock", k.now().UTC().Format(time.DateTime), "edge", date.UTC().Format(time.DateTime))
	}
}

// askDate asks the server of r for the date, if the clock is wrong: over plain HTTP,
// where most answer with a redirect, and else over TLS that proves nothing, which is as
// good. Nothing secret is sent. What fails is tried again with the next attempt.
func (d *dialer) askDate(ctx context.Context, r route) {
	if r.url.Scheme != "wss" || !d.clock.due() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*dateTime)
	defer cancel()
	plain := &url.URL{Scheme: "ws", Host: net.JoinHostPort(r.url.Hostname(), "80")}
	for _, u := range []*url.URL{plain, r.url} {
		if date, err := d.dateOf(ctx, route{url: u, proxy: r.proxy}); err == nil {
			d.clock.learn(date)
			return
		}
	}
}

// dateOf asks one server.
func (d *dialer) dateOf(ctx context.Context, r route) (date time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, dateTime)
	defer cancel()
	first := r.url
	if r.proxy != nil {
		first = r.proxy
	}
	conn, err := d.tcp(ctx, 0, hostPort(first))
	if err != nil {
		return date, err
	}
	if r.proxy != nil {
		if conn, err = d.throughProxy(ctx, conn, r.proxy, hostPort(r.url)); err != nil {
			return date, err
		}
	}
	if r.url.Scheme == "wss" {
		trusting := &tls.Config{ServerName: r.url.Hostname(), InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
		if conn, err = d.secure(ctx, conn, trusting, ""); err != nil {
			return date, err
		}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) // ends calls under way
	defer stop()
	if _, err = fmt.Fprintf(conn, "HEAD / HTTP/1.1\r\nHost: %s\r\nUser-Agent: iottunnel-agent\r\nConnection: close\r\n\r\n", r.url.Host); err != nil {
		return date, err
	}
	a, err := socket.ReadAnswer(bufio.NewReaderSize(conn, 512))
	if err != nil {
		return date, err
	}
	return time.Parse(dateLayout, a.Header.Get("Date"))
}
